"""200 hostile inputs, made from rules: each is one sentence; odd pictures work."""

import io
import itertools
import json
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import realcustom_jax as rc
from realcustom_jax.studio.api import form_of_request
from realcustom_jax.studio.cast import load_character, make_candidates, save_character
from realcustom_jax.studio.create import create
from realcustom_jax.studio.fields import box_of, changed_options, seed_of
from realcustom_jax.studio.inspect_tab import look_inside
from realcustom_jax.studio.jobs import Report
from realcustom_jax.studio.script import generate, load_story, scene_of, set_look
from realcustom_jax.studio.studio import Studio

FEW = {"steps": 1, "mask_steps": 1}
LONG = "a bird " * 1500  # 10,500 characters
BIRD = np.asarray(rc.example("bird"))


@pytest.fixture(scope="module")
def toybox() -> rc.Pipeline:
    return rc.load("toybox")


@pytest.fixture(scope="module")
def studio(toybox, tmp_path_factory) -> Studio:
    return Studio(lambda: toybox, toybox.defaults, tmp_path_factory.mktemp("studio"))


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def bird(mode: str = "RGB", side: int = 64) -> Image.Image:
    return Image.fromarray(BIRD).resize((side, side)).convert(mode)


def huge(side: int) -> bytes:
    """A PNG of a few bytes that claims to have `side` × `side` pixels."""
    content = bytearray(encoded(bird(), "PNG"))
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def bad_pictures() -> dict[str, bytes]:
    cases = {f"huge {side}": huge(side) for side in (20_000, 100_000, 2**31 - 1)}
    cases |= {"empty.png": b"", "text.png": b"no picture", "html.png": b"<html><script>alert(1)</script>"}
    cases["svg.svg"] = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    cases["zip.png"] = zipped({"a.txt": b"a"})
    for kind, share in itertools.product(("PNG", "JPEG", "GIF", "WEBP", "TIFF"), (0.02, 0.2, 0.5)):
        whole = encoded(bird(side=256), kind)
        cases[f"{kind} cut at {share}"] = whole[: max(4, int(share * len(whole)))]
    noise = np.random.default_rng(0)
    return cases | {f"noise {size}": noise.bytes(size) for size in (1, 100, 10_000)}


def odd_pictures() -> dict[str, bytes]:
    """Unusual pictures that must work."""
    rotated = Image.Exif()
    rotated[0x0112] = 6
    cases = {"1x1": encoded(bird(side=1), "PNG"), "wide": encoded(bird().resize((500, 2)), "PNG")}
    cases |= {mode: encoded(bird(mode), "PNG") for mode in ("L", "LA", "P", "RGBA", "1", "I")}
    cases |= {"CMYK": encoded(bird("CMYK"), "JPEG"), "EXIF": encoded(bird(), "JPEG", exif=rotated)}
    frames = [bird(), bird().rotate(90)]
    for kind in ("GIF", "PNG", "WEBP"):
        cases[f"animated {kind}"] = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    return cases


def zipped(files: dict[str, bytes], link: str = "") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o120777 << 16 if name == link else 0
            archive.writestr(entry, content)
    return buffer.getvalue()


def bad_zips() -> dict[str, bytes]:
    story = b'{"scenes": ["a bird"]}'
    one = b'{"name": "A", "word": "bird", "description": "", "images": ["a.png"]}'
    cases: dict[str, bytes] = {"empty": b"", "text": b"no zip", "cut": zipped({"story.json": story})[:40]}
    for name in ("../evil", "/etc/evil", "a/../../evil", "C:\\evil", "..\\evil"):
        cases[f"name {name}"] = zipped({"story.json": story, "character.json": one, name: b"x"})
    cases["link"] = zipped(
        {"story.json": story, "character.json": one, "a.png": b"/etc/passwd"}, link="a.png"
    )
    cases["zeros"] = zipped({"story.json": bytes(600 * 2**20)})
    cases["many"] = zipped({f"{k}": b"" for k in range(1200)})
    cases["no story"] = zipped({"a.txt": b"a"})
    return cases | {f"JSON {k}": zipped({"story.json": text, "character.json": text}) for k, text in texts()}


def texts() -> Iterator[tuple[int, bytes]]:
    """JSON that is neither a story nor a character."""
    values: list[Any] = [
        None, 5, "x", [], {}, {"scenes": 5}, {"scenes": [5]}, {"scenes": [{}]}, {"scenes": [], "x": 1},
        {"scenes": [], "characters": ["../x"]}, {"scenes": [], "characters": [5]}, {"scenes": [], "seed": -1},
        {"scenes": ["a"], "options": {"steps": 0}}, {"name": "", "word": "", "description": "", "images": []},
        {"name": "A", "word": "a", "description": "", "images": ["../a.png"]},
        {"name": "A", "word": "a", "description": "", "images": ["no.png"]}, {"scenes": ["x" * 20_000]},
    ]  # fmt: skip
    for k, value in enumerate([*map(json.dumps, values), "", "{", "[" * 10_000, "\x00", "NaN"]):
        yield k, value.encode()


def cases(studio: Studio, pipe: rc.Pipeline, folder: Path) -> Iterator[tuple[str, Any]]:
    """(name, act): each act raises a `UserError`."""
    report = Report(threading.Event(), lambda update: None)
    good = folder / "bird.png"
    good.write_bytes(encoded(bird(), "PNG"))

    def request(
        prompt: Any = "a bird", pictures: Any = (good,), words: Any = ("bird",), seed: Any = "0", **rest
    ):
        form = form_of_request(studio, prompt, list(pictures), words, seed, **{"options": FEW, **rest})
        return create(pipe, form, report)

    for name, content in bad_pictures().items():
        path = folder / f"bad_{name.replace(' ', '_')}"
        path.write_bytes(content)
        yield f"create {name}", lambda p=path: request(pictures=[p])
        yield f"character {name}", lambda p=path: save_character(rc.Story(), "Mika", str(p), "bird")
    for prompt in ("", "  ", "\n", LONG, None, 5, ["a bird"], {"a": 1}, "\ud800"):
        yield f"prompt {prompt!r:.20}", lambda t=prompt: request(t)
        if prompt not in (None, "", "  ", "\n"):
            yield (
                f"scene {prompt!r:.20}",
                lambda t=prompt: rc.Story().add(rc.Scene(**scene_of(t, "", "", "", ""))),
            )
    for words in (["dragon"], ["bird", "boat"], "bird", 5, [5], [None], [["bird"]], [{"colour": 1}],
                  [{"face": "1 2"}], [{"face": [1, 2, 3]}], [{"face": [4, 4, 1, 1]}], [{"face": ["a"] * 4}],
                  [{"word": 5}], [{"face_strength": "x"}], [{"body_strength": -1}], [{"face_strength": 2}],
                  ["bird#9"], ["a" * 5000]):  # fmt: skip
        yield f"words {words!r:.30}", lambda w=words: request(words=w)
    for seed in ("-1", str(2**64), "1e3", "x", "1.5", "9" * 50, "½", "0x10", "1 2", [1], {}):
        yield f"seed {seed!r:.20}", lambda s=seed: request(seed=s)
        yield f"typed seed {seed!r:.20}", lambda s=seed: seed_of(s)
    for count in (0, -1, 5, 1.5, 10**9, "x", True):
        yield f"count {count}", lambda c=count: request(count=c)
    for options in ({"steps": 0}, {"steps": "x"}, {"steps": 10**12}, {"x": 1}, [1], "x", {"width": 3},
                    {"width": 2**30}, {"solver": "magic"}, {"gamma_num": 2}, {"mask_layers": "a"},
                    {"text_weight": 1e39}, {"eta": None, "guidance_start": 2}):  # fmt: skip
        yield f"options {options!r:.30}", lambda o=options: request(options=o)
    for box in ("1, 2, 3", "a b c d", "1,2,3,4,5", "nan nan nan nan", "4 4 1 1"):
        yield f"box {box}", lambda b=box: save_character(rc.Story(), "Mika", str(good), "bird", "", b)
        yield f"face {box}", lambda b=box: rc.Subject(str(good), "bird", face=box_of(b) or (0, 0, 0, 0))
    for name in ("", " ", "123", "x" * 50, "\x00", "a\u202eb", "😀", "../" * 30):
        yield f"name {name!r:.20}", lambda n=name: save_character(rc.Story(), n, str(good), "bird")
    for text in ("Mika", ": x", "Mika:", "Mika with a hat"):
        yield f"wish {text}", lambda t=text: scene_of("a", "", "", t, "")
        yield f"strength {text}", lambda t=text: scene_of("a", "", "", "", t)
    yield "strength words", lambda: scene_of("a", "", "", "", "Mika: power 3")
    yield "no picture", lambda: save_character(rc.Story(), "Mika", None, "bird")
    yield "no scenes", lambda: generate(pipe, rc.Story(), report)
    yield "no references", lambda: look_inside(pipe, form_of_request(studio, "a", [], [], "0"), report)
    yield "look", lambda: set_look(rc.Story(), "\ud800", "", "0", False)
    yield "field", lambda: changed_options({"mask_layers": "1, x"}, pipe.defaults)
    for word, description in (("", ""), (LONG, ""), ("bird", LONG)):
        yield f"candidate {word:.9}", lambda w=word, d=description: make_candidates(pipe, w, d, "0", report)
    for name, content in bad_zips().items():
        path = folder / f"{len(list(folder.iterdir()))}.zip"
        path.write_bytes(content)
        yield f"story {name}", lambda p=path: generate(pipe, load_story(str(p)), report)
        yield f"character zip {name}", lambda p=path: load_character(str(p))
    for number, content in texts():
        path = folder / f"{number}.json"
        path.write_bytes(content)
        yield f"story.json {number}", lambda p=path: generate(pipe, load_story(str(p)), report)


def test_hostile_inputs_are_one_sentence_each(studio, toybox, tmp_path):
    faults, count = [], 0
    for name, act in cases(studio, toybox, tmp_path):
        count += 1
        try:
            act()
        except rc.UserError as error:
            text = str(error)
            if "\n" in text or not text or str(tmp_path) in text or len(text) > 400:
                faults.append((name, text[:300]))
        except Exception as error:
            faults.append((name, repr(error)[:200]))
        else:
            faults.append((name, "no error"))
    assert count >= 200
    assert not faults, "\n".join(map(str, faults))


def test_odd_pictures_work(studio, toybox, tmp_path):
    report = Report(threading.Event(), lambda update: None)
    for name, content in odd_pictures().items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(content)
        form = form_of_request(studio, "a bird", [path], ["bird"], "0", options=FEW)
        assert create(toybox, form, report).images.shape == (1, 64, 64, 3), name
