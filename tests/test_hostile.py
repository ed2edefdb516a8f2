"""Hostile inputs of sampling, made by rules: each is one clear sentence, or right.

A traceback, a hang and an input that is wrong and taken without a word are counted, and must be 0, 0, 0. All
that is here fails before anything compiles.
"""

import contextlib
import io
import itertools
import os
import runpy
import signal
import sys
import warnings
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import realcustom_jax as rc
from realcustom_jax.common.foreign_names import _OURS
from realcustom_jax.inputs.encoder_pair import load_pair
from realcustom_jax.inputs.transforms import load_image
from realcustom_jax.inputs.user_masks import load_mask
from realcustom_jax.models.family import Models
from realcustom_jax.outputs.records import KEY, read_record
from realcustom_jax.toybox import Identity, render_reference

CAT = render_reference(Identity("cat", 9)).image
SECONDS = 20  # each takes milliseconds
NAN, INF = float("nan"), float("inf")


class Hang(Exception):
    pass


def outcome(action) -> str:
    """ "sentence", or what is wrong: "silent", "hang" or "traceback …"."""

    def ring(*_):
        raise Hang

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            action()
    except rc.UserError as error:
        text = str(error)
        return "sentence" if text and "\n" not in text and len(text) < 2000 else f"not a sentence: {text!r}"
    except Hang:
        return "hang"
    except BaseException as error:
        return f"traceback {type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "silent"


def check(cases) -> int:
    """How many there are; all of them must end in a sentence."""
    results = [(name, outcome(action)) for name, action in cases]
    wrong = [result for result in results if result[1] != "sentence"]
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong)
    return len(results)


# What no option can be, whatever its kind.
NO_VALUES = {
    "nan": NAN, "inf": INF, "-inf": -INF, "1e39": 1e39, "True": True, "bytes": b"5", "a dict": {},
    "a set": {1},
    "an object": object(), "complex": 1j, "empty text": "", "text": "0.5", "lone surrogate": "\ud800",
    "nested": [[1]], "list of None": [None], "array 2-d": np.ones((2, 2)), "function": print, "type": int,
    "array of text": np.asarray(["a"]), "NaT": np.datetime64("NaT"), "huge": 10**400, "-huge": -(10**400),
}  # fmt: skip


def option_cases(pipe):
    for name, (label, value) in itertools.product(rc.SamplingOptions.rules(), NO_VALUES.items()):
        yield f"{name}={label}", lambda n=name, v=value: rc.sample(pipe, "a cat", **{n: v})


def name_cases(pipe):
    """Other libraries' names, and slips of the finger."""
    for name in _OURS:
        yield name, lambda n=name: rc.sample(pipe, "a cat", **{n: 1})
    for name in rc.SamplingOptions.rules():
        for slip in (name[:-1], name + "s", name.upper(), name[1:], name.replace("_", "")):
            if slip not in rc.SamplingOptions.rules():
                yield slip, lambda n=slip: rc.sample(pipe, "a cat", **{n: 1})


def size_cases(pipe):
    sizes = [0, -4, 1, 3, 5, 17, 2**31, 2**40, 2**63, 2**64, 10**30, 10**400, -(2**40)]
    for name, size in itertools.product(("height", "width"), sizes):
        yield (
            f"{name}={size:.0e}" if size < 10**300 else name,
            lambda n=name, s=size: rc.sample(pipe, "a cat", **{n: s}),
        )
    yield "both", lambda: rc.sample(pipe, "a cat", height=2**20, width=2**20)
    for name, value in itertools.product(("steps", "mask_steps", "mask_downscale"), (0, -1, 2**40, 10**400)):
        yield f"{name} {value > 0}", lambda n=name, v=value: rc.sample(pipe, "a cat", **{n: v})
    for layers in ((-1,), (10**30,), (99,), ()):
        subject = [rc.Subject(CAT, "cat")]
        yield f"layers {layers}", lambda v=layers, s=subject: rc.sample(pipe, "a cat", s, mask_layers=v)


def request_cases(pipe):
    """Prompts, seeds, lists that do not fit each other, what looks on."""
    bad_texts = [
        None,
        5,
        1.5,
        b"a cat",
        {},
        {"a": 1},
        {"a cat"},
        [],
        [None],
        ["a cat", 5],
        [["a cat"]],
        print,
    ]
    bad_texts += ["\ud800", "a \udfff cat", ["a cat", "\udc80"], np.asarray([1, 2]), iter(["a cat"])]
    for i, text in enumerate(bad_texts):
        yield f"prompt {i}", lambda t=text: rc.sample(pipe, t)
        if text is not None:
            yield f"negative {i}", lambda t=text: rc.sample(pipe, "a cat", negative_prompt=t)
    seeds = [
        -1,
        2**64,
        1.5,
        NAN,
        "1",
        b"1",
        True,
        {},
        object(),
        [],
        [None],
        [1, -1],
        [[1]],
        "",
        10**400,
        [True],
    ]
    seeds += [np.asarray([1.5]), np.asarray([[1]]), {1, 2}, print, 1j]
    for i, seed in enumerate(seeds):
        yield f"seed {i}", lambda s=seed: rc.sample(pipe, "a cat", seed=s)
        yield f"seeds {i}", lambda s=seed: rc.sample(pipe, ["a cat", "a dog"], seed=s)
    subject = rc.Subject(CAT, "cat")
    wrong = [
        "cat.png",
        5,
        {},
        subject,
        [5],
        [None],
        [[subject]],
        [subject, "x"],
        print,
        np.zeros(3),
    ]
    for i, subjects in enumerate(wrong):
        yield f"subjects {i}", lambda s=subjects: rc.sample(pipe, "a cat", s)
        yield f"two, subjects {i}", lambda s=subjects: rc.sample(pipe, ["a cat"] * 2, s)
    yield "lists 1", lambda: rc.sample(pipe, ["a cat"] * 2, [[subject]])
    yield "lists 2", lambda: rc.sample(pipe, ["a cat"] * 2, seed=[1, 2, 3])
    yield "lists 3", lambda: rc.sample(pipe, ["a cat"] * 2, gamma_num=[0.1] * 3)
    yield "lists 4", lambda: rc.sample(pipe, "a cat", negative_prompt=["x", "y"])
    for name, values in {
        "progress": [1, "yes", [], 0.5],
        "every": [0, -1, 1.5, "2", True],
        "preview": [5, "print", [print]],
    }.items():
        for value in values:
            given = {"preview": print, "every": value} if name == "every" else {name: value}
            yield f"{name} {value!r}", lambda g=given: rc.sample(pipe, "a cat", **g)
    for given in (
        {"rescale": 0.5},
        {"scoring": "none", "gamma_num": 0.5},
        {"guidance": "direct", "image_weight": 1},
    ):
        yield f"no effect {given}", lambda g=given: rc.sample(pipe, "a cat", **g)
    for given in ({"gamma_scope": 0.0}, {"gamma_scope": 1e-9}, {"mask_downscale": 8}):
        yield f"empty scope {given}", lambda g=given: rc.sample(pipe, "a cat", [subject], **g)
    for given in (
        {"eta": 1.0, "solver": "euler"},
        {"mask_steps": 51},
        {"guidance_start": 0.9, "guidance_stop": 0.1},
    ):
        yield f"contradiction {given}", lambda g=given: rc.sample(pipe, "a cat", **g)


def conditioning_cases(pipe):
    """What `make_conditioning` cannot encode: no batch, or lists that do not fit each other."""
    lists = [
        ([], [], []), ((), (), ()), (np.zeros(0), [], []), ([], [[]], [""]), ("a cat", [[]], [""]),
        (None, [], []), (5, [], []), ({"a cat"}, [[]], [""]), (["a cat"], [], [""]),
        (["a cat"], [[], []], [""]), (["a cat"], [[]], []),
        (["a cat"], [[]], ["", ""]), (["a cat"], [[]], ""), (["a cat"], [[]], None),
        (["a cat"], [[]], [None]), ([None], [[]], [""]), ([b"a cat"], [[]], [""]), (["\ud800"], [[]], [""]),
        (["a cat"], [[5]], [""]), (["a cat"], "x", [""]), (["a cat"] * 2, [[]] * 2, [""]),
    ]  # fmt: skip
    for i, given in enumerate(lists):
        yield f"conditioning {i}", lambda g=given: rc.make_conditioning(pipe, *g, pipe.defaults)


def subject_cases(pipe):
    for label, value in NO_VALUES.items():
        for name in ("strength", "mask_mode", "plurals", "match_case"):
            if not (name in ("plurals", "match_case") and value is True):
                yield f"{name}={label}", lambda n=name, v=value: rc.Subject(CAT, "cat", **{n: v})
        yield (
            f"images={label}",
            lambda v=value: [load_image(photo) for photo in rc.Subject(images=v, words="cat").photos],
        )
    words = [
        None,
        5,
        1.5,
        {},
        [],
        [""],
        " ",
        "\n",
        b"cat",
        [b"cat"],
        [5],
        [None],
        ["cat", ""],
        "dog",
        "ca",
        "cat#2",
    ]
    words += [
        "cat#0",
        "cat#99999999999999999999",
        "#1",
        "\ud800",
        ["cat", "dog"],
        ".*",
        "c?t",
        "cat\0",
        {"cat"},
    ]
    for i, value in enumerate(words):
        yield f"words {i}", lambda v=value: rc.sample(pipe, "a cat", [rc.Subject(CAT, v)])
    yield "intersect", lambda: rc.Subject(CAT, "cat", mask_mode="intersect")
    yield "twice", lambda: rc.sample(pipe, "a cat", [rc.Subject(CAT, "cat"), rc.Subject(CAT, "CAT")])
    yield "no subject", lambda: rc.Subject()


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 100,000 × 100,000."""
    content = bytearray(encoded("PNG"))
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(CAT).save(buffer, kind)
    return buffer.getvalue()


def no_images(folder) -> dict:
    """What is no image, nor a mask."""
    os.mkfifo(folder / "fifo")
    (folder / "empty").touch()
    (folder / "text.png").write_text("no picture")
    closed = (folder / "empty").open("rb")
    closed.close()
    gone = jnp.zeros((4, 4, 3))
    gone.delete()
    shut = Image.open(io.BytesIO(encoded("PNG")))
    shut.close()
    cases = {
        "number": 5, "float": 1.5, "list": [], "dict": {}, "tuple": (1,), "object": object(), "type": int,
        "array in a list": [CAT], "folder": folder, "fifo": folder / "fifo", "device": "/dev/zero",
        "null": "/dev/null",
        "missing": "no/such.png", "empty name": "", "NUL": "a\0b.png", "long name": "x" * 5000,
        "half": "\ud800.png",
        "empty": folder / "empty", "text": folder / "text.png", "no bytes": b"", "closed": closed,
        "bomb": bomb(),
        "empty file": io.BytesIO(), "text file": io.StringIO("x"), "deleted": gone, "shut": shut,
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
    for label, value in no_images(folder).items():
        yield f"image {label}", lambda v=value: load_image(rc.Subject(v, "cat").image)
        yield f"mask {label}", lambda v=value: load_mask(rc.Subject(CAT, "cat", v).mask)


def load_cases(folder):
    odd = [
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
    for i, path in enumerate(odd):
        yield f"load {i}", lambda p=path: rc.load(p)
    for name in ("realcustom", "unet", "matcher"):
        for i, path in enumerate([*odd[1:], "x" * 1000, "~/x", "/dev/zero", folder / "fifo", True]):
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
    """PNG files that say in odd ways how they were made."""
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
    """The command; its sentence on stderr and status 2 become the `UserError` that it had."""
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


RULES = (option_cases, name_cases, size_cases, request_cases, conditioning_cases, subject_cases)
FOLDER_RULES = (image_cases, record_cases, load_cases)


@pytest.mark.parametrize("rule", [*RULES, *FOLDER_RULES], ids=lambda rule: rule.__name__)
def test_hostile_inputs_are_one_sentence(flat_pipe, tmp_path, rule):
    check(rule(tmp_path if rule in FOLDER_RULES else flat_pipe))


def test_the_command_answers_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("realcustom_jax.pipeline.load", lambda *_, **__: pytest.fail("a model was loaded"))
    no_images(tmp_path)
    assert check(command_cases(tmp_path)) > 60


def test_there_are_enough(flat_pipe, tmp_path):
    folders = {rule: tmp_path / rule.__name__ for rule in FOLDER_RULES}
    for folder in folders.values():
        folder.mkdir()
    cases = [rule(folders.get(rule, flat_pipe)) for rule in (*RULES, *FOLDER_RULES)]
    assert sum(len(list(of_rule)) for of_rule in cases) >= 500


@pytest.mark.parametrize("value", [np.uint8, bool, np.float32])
def test_masks_of_0_and_1_are_off_and_on(value):
    mask = (np.arange(64).reshape(8, 8) % 3 == 0).astype(value)
    for form in (mask, jnp.asarray(mask), np.stack([mask] * 3, -1) if value is np.uint8 else mask):
        np.testing.assert_array_equal(load_mask(form), mask.astype(np.float32))


def test_extreme_photos_are_right(flat_pipe):
    """One pixel, and one line of many: views of the size that the towers take."""
    photos = [np.full(shape, 200, np.uint8) for shape in ((1, 1, 3), (1, 3000, 3), (3000, 1, 3), (2, 2))]
    subjects = [[rc.Subject(photo, "cat")] for photo in photos]
    made = rc.make_conditioning(flat_pipe, ["a cat"] * 4, subjects, [""] * 4, flat_pipe.defaults)
    assert np.isfinite(made.features[0]).all()
    for row in made.features[0][1:]:
        np.testing.assert_allclose(row, made.features[0][0], atol=1e-4)


def test_a_strength_beyond_numbers_is_an_error(flat_pipe):
    """Not a black image."""
    with pytest.raises(rc.UserError, match="result of request 0 is not finite"):
        rc.sample(flat_pipe, "a cat", [rc.Subject(CAT, "cat", strength=3e38)], steps=2, gamma_scope=1.0)


def test_sentences_name_what_the_user_gave(micro_configs):
    """A CLIP that is not there has no toybox; a missing tower is named by its folder; a path is no list."""
    with pytest.raises(rc.UserError, match="no model folder 'nope'") as error:
        load_pair("nope")
    assert "toybox" not in str(error.value)
    realcustom = {**micro_configs["realcustom"], "projector": "deep", "feature_layers": [[-1], [-1]]}
    with pytest.raises(
        rc.UserError, match="2 image towers, but the model has 1: image_encoder_2/ is missing"
    ):
        Models.from_configs({**micro_configs, "realcustom": realcustom})
    with pytest.raises(rc.UserError, match="image_encoders must be a list"):
        rc.load("toybox", image_encoders="some/folder")
