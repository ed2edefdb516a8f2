"""Files that users may upload by mistake or in malice, by rules. Loaded by `runpy`: tests are no package."""

import io
import json
import runpy
import stat
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

files = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "hostile_files.py")))
CAT, encoded = files.common.CAT, files.common.encoded
# Values that JSON can hold, and that no field takes.
JSON_VALUES = (
    True,
    -1,
    1.5,
    10**40,
    1e39,
    float("nan"),
    float("inf"),
    "x",
    "",
    "\ud800",
    [],
    [[1]],
    {},
    {"a": 1},
)


def broken_pictures(folder: Path) -> dict[str, str]:
    """{what it is: path} of files that are no whole picture, or too large a one."""
    contents = {"bomb": files.bomb(), "empty": b"", "text": b"no picture", "zip": b"PK\3\4" + bytes(100)}
    contents |= {"web page": b"<html><script>alert(1)</script>", "vectors": b"<svg xmlns='x'><rect/></svg>"}
    contents |= {"document": b"%PDF-1.7\n1 0 obj", "program": b"\x7fELF" + bytes(60)}
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    contents["20,000 x 20,000"] = buffer.getvalue()
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        whole = encoded(kind)
        contents |= {f"{kind} cut at {cut}": whole[:cut] for cut in (1, 20, len(whole) // 3)}
    rng = np.random.default_rng(0)
    contents |= {f"noise {n}": rng.bytes(n) for n in (1, 100, 10_000)}
    return _written(folder, contents)


def odd_pictures(folder: Path) -> dict[str, str]:
    """{what it is: path} of whole pictures of unusual forms."""
    photo = Image.fromarray(CAT)

    def save(picture: Image.Image, kind: str, **fields) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **fields)
        return buffer.getvalue()

    rotated = Image.Exif()
    rotated[0x0112] = 6
    more = {"save_all": True, "append_images": [photo.rotate(90)]}
    grey16 = Image.fromarray(np.full((9, 7), 40_000, np.uint16))
    contents = {
        "CMYK": save(photo.convert("CMYK"), "JPEG"), "rotated": save(photo, "JPEG", exif=rotated),
        "animated GIF": save(photo, "GIF", **more), "animated PNG": save(photo, "PNG", **more),
        "animated WEBP": save(photo, "WEBP", **more), "pages": save(photo, "TIFF", **more),
        "palette": save(photo.convert("P"), "PNG", transparency=0), "bits": save(photo.convert("1"), "PNG"),
        "16 bits": save(grey16, "PNG"), "transparent": save(Image.new("RGBA", (5, 5)), "PNG"),
        "grey": save(photo.convert("LA"), "PNG"),
    }  # fmt: skip
    shapes = ((1, 1), (2, 1), (1, 3000), (3000, 1))
    contents |= {f"{w} x {h}": save(Image.new("RGB", (w, h), "red"), "PNG") for w, h in shapes}
    return _written(folder, contents)


def character_zips(folder: Path) -> Iterator[tuple[str, str]]:
    """(what it is, path) of zips that are no character."""
    good = {
        "name": "Mika", "word": "cat", "description": "", "images": ["image_0.png"], "face": None,
        "face_strength": 1.0, "body_strength": 1.0,
    }  # fmt: skip
    for field, value in _changes(good, {"description": "", "face": []}):
        yield _zip(folder, f"{field} {value!a:.30}", {"character.json": {**good, field: value}})
    names = (
        "../image_0.png",
        "/etc/passwd",
        "a/../../b.png",
        "C:\\x.png",
        "",
        ".",
        "..",
        "\0",
        "x" * 5000,
        "é\ud800",
    )
    for name in names:
        yield _zip(folder, f"image {name!a:.30}", {"character.json": {**good, "images": [name]}})
    for name, text in {
        "no file": None, "no JSON": "{", "list": "[]", "null": "null", "deep": "[" * 10**5, "latin": b"\xe9",
        "huge number": '{"name": ' + "9" * 5000 + "}",
        "no text": {**good, "name": "7"}, "long name": {**good, "name": "x" * 41},
        "long word": {**good, "word": "x" * 10_000}, "control": {**good, "name": "a\x1bb"},
    }.items():  # fmt: skip
        yield _zip(folder, name, {} if text is None else {"character.json": text})
    many = {"character.json": {**good, "images": ["image_0.png"] * 50_000}, "image_0.png": encoded("PNG")}
    yield _zip(folder, "many images", many)
    for name, picture in (
        ("text", b"no picture"),
        ("empty", b""),
        ("cut", encoded("PNG")[:200]),
        ("bomb", files.bomb()),
    ):
        yield _zip(folder, f"picture {name}", {"character.json": good, "image_0.png": picture})
    yield from dangerous_zips(folder, {"character.json": good})


def stories(folder: Path) -> Iterator[tuple[str, str]]:
    """(what it is, path) of zips and JSON files that are no story."""
    good = {
        "version": 1, "characters": [], "scenes": ["a cat"], "seed": 0, "style": "", "negative_prompt": "",
        "same_seed": False, "options": {}, "model": {},
    }  # fmt: skip
    fine = {
        "characters": [],
        "scenes": [],
        "style": "",
        "negative_prompt": "",
        "options": {},
        "same_seed": True,
    }
    fine |= {"model": ({}, {"a": 1}), "version": -1}
    for field, value in _changes(good, fine):
        yield _zip(folder, f"{field} {value!a:.30}", {"story.json": {**good, field: value}})
    scene = {
        "prompt": "a cat",
        "seed": 1,
        "height": 16,
        "strengths": {},
        "wishes": {},
        "place": None,
        "image": "x.png",
    }
    for field, value in _changes(
        scene, {"strengths": {}, "wishes": {}, "prompt": ("", "x"), "image": JSON_VALUES}
    ):
        yield _zip(
            folder,
            f"scene {field} {value!a:.30}",
            {"story.json": {**good, "scenes": [{**scene, field: value}]}},
        )
    place = {"batch": 1, "row": 0, "slots": 0, "photos": 1}
    for field in place:
        for value in (-1, 65, 10**40, 1.5, "1", None):
            values = {"prompt": "a cat", "place": {**place, field: value}}
            yield _zip(folder, f"place {field} {value!a:.30}", {"story.json": {**good, "scenes": [values]}})
    for name in ("../image.png", "/etc/passwd", "a/../../b", "C:\\x", "", ".", "a\0b", "x" * 5000, "é\ud800"):
        yield _zip(folder, f"character {name!a:.30}", {"story.json": {**good, "characters": [name]}})
        scenes = [{"prompt": "a cat", "place": place, "image": name}]
        yield _zip(folder, f"image {name!a:.30}", {"story.json": {**good, "scenes": scenes}})
    for name, text in {
        "no file": None, "no JSON": "{", "list": "[]", "null": "null", "number": "5", "deep": '{"a":' * 10**5,
        "latin": b"\xe9", "unknown": {**good, "x": 1}, "version 2": {**good, "version": 2},
        "many scenes": {**good, "scenes": ["a cat"] * 100_000}, "long": {**good, "scenes": ["a" * 10_001]},
        "wish": {**good, "scenes": [{"prompt": "a", "wishes": {"Mika": "x"}}]},
    }.items():  # fmt: skip
        content = b"" if text is None else text if isinstance(text, bytes) else _json(text)
        path = folder / f"{name}.json"
        path.write_bytes(content)
        yield f"file {name}", str(path)
        yield _zip(folder, f"zip {name}", {} if text is None else {"story.json": text})
    yield from dangerous_zips(folder, {"story.json": good})


def dangerous_zips(folder: Path, more: dict) -> Iterator[tuple[str, str]]:
    """Zips with names outside their folder, links, too many files, or too large ones; and no zips."""
    for name in ("../a.png", "/etc/a.png", "a/../../b", "C:\\a.png", "..\\a.png"):
        yield _zip(folder, f"holds {name}", {**more, name: b"x"})
    link = zipfile.ZipInfo("image_0.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    yield _zip(folder, "holds a link", {**more, link: b"/etc/passwd"})
    yield _zip(folder, "holds 1001 files", {**more, **{f"{k}.txt": b"" for k in range(1001)}})
    for name, content in {
        "empty": b"", "two letters": b"PK", "text": b"no zip" * 100, "picture": encoded("PNG"),
        "cut": _zipped({**more, "a": bytes(1000)})[:-30], "false end": b"PK\5\6" + b"\xff" * 18,
    }.items():  # fmt: skip
        path = folder / f"{name}.zip"
        path.write_bytes(content)
        yield f"is {name}", str(path)


def zip_of_zeros(folder: Path, bytes_: int) -> str:
    """A small zip that unpacks to many zeros."""
    path = folder / "zeros.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("zeros", "w", force_zip64=True) as file,
    ):
        for _ in range(bytes_ >> 20):
            file.write(bytes(2**20))
    return str(path)


def _changes(good: dict, fine: dict) -> Iterator[tuple[str, object]]:
    """(field, value) of values of wrong types or out of range; `fine` has those that a field takes."""
    for field, right in good.items():
        allowed = fine.get(field, ())
        allowed = allowed if isinstance(allowed, tuple) else (allowed,)
        for value in JSON_VALUES:
            same = isinstance(right, str) and type(value) is str and field in fine and value in ("x", "")
            if not same and not any(type(value) is type(one) and value == one for one in (right, *allowed)):
                yield field, value


def _written(folder: Path, contents: dict[str, bytes]) -> dict[str, str]:
    paths = {}
    for name, content in contents.items():
        path = folder / f"{name.replace(' ', '_').replace(',', '')}.png"
        path.write_bytes(content)
        paths[name] = str(path)
    return paths


def _zip(folder: Path, name: str, entries: dict) -> tuple[str, str]:
    path = folder / f"zip_{len(list(folder.iterdir()))}.zip"
    path.write_bytes(_zipped(entries))
    return name, str(path)


def _zipped(entries: dict) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content if isinstance(content, bytes) else _json(content))
    return buffer.getvalue()


def _json(value: object) -> bytes:
    return (value if isinstance(value, str) else json.dumps(value)).encode()
