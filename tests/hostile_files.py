"""Hostile images, masks, records, model paths and command lines, by rules.

Loaded by `runpy`, as tests are no package.
"""

import contextlib
import io
import os
import runpy
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import realcustom_jax as rc
from realcustom_jax.inputs.transforms import load_image
from realcustom_jax.inputs.user_masks import load_mask
from realcustom_jax.outputs.records import KEY, read_record

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("hostile_helpers.py"))))
CAT, NAN, INF, encoded = common.CAT, common.NAN, common.INF, common.encoded


def bomb() -> bytes:
    """A PNG of a few bytes that claims 100,000 × 100,000 pixels."""
    content = bytearray(encoded("PNG"))
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def invalid_images(folder) -> dict:
    """Values that are neither an image nor a mask."""
    os.mkfifo(folder / "fifo")
    (folder / "empty").touch()
    (folder / "text.png").write_text("no picture")
    closed = (folder / "empty").open("rb")
    closed.close()
    deleted_array = jnp.zeros((4, 4, 3))
    deleted_array.delete()
    closed_image = Image.open(io.BytesIO(encoded("PNG")))
    closed_image.close()
    cases = {
        "number": 5, "float": 1.5, "list": [], "dict": {}, "tuple": (1,), "object": object(), "type": int,
        "array in a list": [CAT], "folder": folder, "fifo": folder / "fifo", "device": "/dev/zero",
        "null": "/dev/null",
        "missing": "no/such.png", "empty name": "", "NUL": "a\0b.png", "long name": "x" * 5000,
        "half": "\ud800.png",
        "empty": folder / "empty", "text": folder / "text.png", "no bytes": b"", "closed": closed,
        "bomb": bomb(),
        "empty file": io.BytesIO(), "text file": io.StringIO("x"),
        "deleted": deleted_array, "closed PIL image": closed_image,
        "write only": (folder / "new").open("wb"), "pipe": os.fdopen(os.pipe()[0], "rb"),
    }  # fmt: skip
    shapes = [(), (3,), (0, 0), (0, 4, 3), (4, 0, 3), (4, 4, 2), (4, 4, 5), (4, 4, 3, 1), (2, 4, 4, 3)]
    cases |= {f"shape {shape}": np.zeros(shape, np.uint8) for shape in shapes}
    kinds = (np.int64, np.int8, np.uint16, np.complex64, "U1", "M8[s]", object)
    cases |= {f"dtype {kind}": np.zeros((4, 4, 3), kind) for kind in kinds}
    values = (NAN, INF, -INF, -0.1, 1.1, 255.0)
    cases |= {f"float {value}": np.full((4, 4, 3), value, np.float32) for value in values}
    pictures = ((NAN, np.float32), (-1, np.float32), (1e6, np.float32), (-1, np.int32), (70000, np.int32))
    cases |= {f"PIL {v} {t}": Image.fromarray(np.full((4, 4), v, t)) for v, t in pictures}
    cases["huge array"] = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (2**20, 2**20, 3))
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        whole = encoded(kind)
        cases |= {f"{kind} cut at {cut}": whole[:cut] for cut in (1, 7, 20, len(whole) // 3)}
    noise = np.random.default_rng(0)
    cases |= {f"noise {n}": noise.bytes(n) for n in (1, 10, 100, 10_000)}
    return cases


def image_cases(folder):
    for label, value in invalid_images(folder).items():
        yield f"image {label}", lambda v=value: load_image(rc.Subject(v, "cat").image)
        yield f"mask {label}", lambda v=value: load_mask(rc.Subject(CAT, "cat", v).mask)


def load_cases(folder):
    invalid_paths = [
        None,
        5,
        b"toybox",
        "",
        "\0",
        "\ud800",
        "no/such",
        "a/b/c",
        {},
        [],
        object(),
        folder,
        folder / "text.png",
    ]
    for i, path in enumerate(invalid_paths):
        yield f"load {i}", lambda p=path: rc.load(p)
    for name in ("realcustom", "unet", "matcher"):
        for i, path in enumerate([*invalid_paths[1:], "x" * 1000, "~/x", "/dev/zero", folder / "fifo", True]):
            yield f"{name} {i}", lambda n=name, p=path: rc.load("toybox", **{n: p})
            if name == "unet":
                yield f"image encoder {i}", lambda p=path: rc.load("toybox", image_encoders=[p])
                yield f"tokenizer {i}", lambda p=path: rc.load("toybox", tokenizers=[p])
    for revision in (5, b"main", True, {}):
        yield f"revision {revision!r}", lambda r=revision: rc.load("toybox", revision=r)
    for dtype in ("float33", "int32", 5, object(), "", np.int32, "f2 "):
        yield f"dtype {dtype!r}", lambda d=dtype: rc.load("toybox", d)
    for mesh in (5, "data", []):
        yield f"mesh {mesh!r}", lambda m=mesh: rc.load("toybox", mesh=m)
    for sharding in (5, "data", object(), []):
        yield f"sharding {sharding!r}", lambda s=sharding: rc.load("toybox", sharding=s)


def record_cases(folder):
    """PNG files with invalid records of how they were made."""
    good = '{"prompt": "a cat", "negative_prompt": "", "seed": 0, "model": {"model": "toybox"}, '
    good += '"options": {}, "subjects": []}'
    subject = (
        '[{"words": "cat", "mask_mode": "instead", "strength": 1, "plurals": false, "match_case": false, '
    )
    texts = [
        "",
        "5",
        "[]",
        "{}",
        "null",
        "[" * 10**5,
        '{"a":' * 10**4,
        good[:-5],
        good.replace("prompt", "p"),
    ]
    options = ("5", '{"steps": -1}', '{"x": 1}', '{"steps": "5"}', "[1]")
    texts += [good.replace('"options": {}', f'"options": {value}') for value in options]
    models = ("5", '"toybox"', "[]", '{"model": 5}', '{"model": null}', '{"unet": [1]}')
    texts += [good.replace('{"model": "toybox"}', value) for value in models]
    changes = {'"a cat"': ("5", "null", "[]"), '"seed": 0': ('"seed": "0"', '"seed": 1.5', '"seed": true')}
    texts += [good.replace(old, new) for old, news in changes.items() for new in news]
    for images in ("[]", "[0]", "[-1]", "[1.5]", '"0"', "5", "null", "[null]"):
        texts.append(good.replace("[]", subject + f'"images": {images}, "mask": null}}]'))
    for i, text in enumerate(texts):
        info = _png_info(text)
        path = folder / f"record_{i}.png"
        Image.fromarray(CAT).save(path, pnginfo=info)
        yield f"record {i}", lambda p=path: read_record(p)


def _png_info(text: str):
    info = PngInfo()
    info.add_text(KEY, text)
    return info


def command_cases(folder):
    Image.fromarray(CAT).save(folder / "cat.png")
    cat, out = str(folder / "cat.png"), str(folder / "out")
    base = ["--prompt", "a cat", "--out", out]
    subject = ["--subject", f"cat={cat}"]
    lines = [
        *(["--subject", f"cat={folder / name}"] for name in ("fifo", "empty", "text.png", "none", "")),
        *(["--subject", text] for text in ("", "=", "cat=", "=x", "cat", "/dev/zero", f"dog={cat}")),
        ["--subject", str(folder)],
        *([*subject, "--mask", text] for text in ("", "1", "1=", "0=x", "2=x", "1=none", "x=1")),
        *([*subject, "--mask", f"1={folder / name}"] for name in ("fifo", "empty", "text.png")),
        *([*subject, "--strength", f"1={text}"] for text in ("", "nan", "inf", "-1", "x", "1e39")),
        *([*subject, "--gamma-scope", text] for text in ("0", "1e-9", "-1", "2", "nan")),
        *(["--seed", text] for text in ("-1", "x", "1.5", "", str(2**64), "nan", str(10**400))),
        *(["--width", text] for text in ("0", "-4", "1", "1099511627776", str(10**30), "x", "1.5")),
        *(["--steps", text] for text in ("0", "-1", "1001", "x", str(10**18))),
        *(["--from", text] for text in ("", "none", cat, str(folder), str(folder / "fifo"), "/dev/zero")),
        *(["--model", text] for text in ("", "none", str(folder), str(folder / "empty"), "\0")),
        *(["--negative-prompt", text] for text in ("@", "@none", f"@{folder}", f"@{cat}", "@/dev/zero")),
        ["--negative-prompt", "\ud800"], ["--prompt", "\ud800"],
        ["--guidance", "direct", "--image-weight", "3"], ["--rescale", "0.5"],
        ["--mask-mode", "intersect"], ["--out", "/proc/no"],
        ["--out", cat], ["--seed", "1", "1"], ["--nothing"],
    ]  # fmt: skip
    long = "x" * 300  # more than a name may have
    lines += [[flag, long] for flag in ("--model", "--subject", "--from", "--out")]
    lines += [["--subject", f"cat={long}"], ["--negative-prompt", f"@{long}"]]
    for line in lines:
        yield " ".join(line).encode("ascii", "replace").decode(), lambda a=line: _run([*base, *a])


def _run(arguments: list[str]) -> None:
    """Run the command; one error line on stderr and status 2 become a `UserError` again."""
    before, sys.argv = sys.argv, ["sample", *arguments]
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            runpy.run_module("realcustom_jax.sample", run_name="__main__")
    except SystemExit as stop:
        lines = [line for line in errors.getvalue().splitlines() if not line.startswith("warning: ")]
        if stop.code == 2 and len(lines) == 1 and lines[0].startswith("error: "):
            raise rc.UserError(lines[0]) from None
        raise
    finally:
        sys.argv = before
