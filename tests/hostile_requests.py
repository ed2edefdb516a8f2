"""Hostile arguments of `rc.sample`, `rc.Subject` and `rc.make_conditioning`, by rules.

Loaded by `runpy`, as tests are no package.
"""

import itertools
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import realcustom_jax as rc
from realcustom_jax.common.foreign_names import _OURS
from realcustom_jax.inputs.transforms import load_image

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("hostile_helpers.py"))))
CAT, NAN, INVALID_VALUES = common.CAT, common.NAN, common.INVALID_VALUES


def option_cases(pipe):
    for name, (label, value) in itertools.product(rc.SamplingOptions.rules(), INVALID_VALUES.items()):
        yield f"{name}={label}", lambda n=name, v=value: rc.sample(pipe, "a cat", **{n: v})


def name_cases(pipe):
    """Other libraries' names, and typing errors."""
    for name in _OURS:
        yield name, lambda n=name: rc.sample(pipe, "a cat", **{n: 1})
    for name in rc.SamplingOptions.rules():
        for typo in (name[:-1], name + "s", name.upper(), name[1:], name.replace("_", "")):
            if typo not in rc.SamplingOptions.rules():
                yield typo, lambda n=typo: rc.sample(pipe, "a cat", **{n: 1})


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
    """Prompts, seeds, subjects, lists of different lengths, progress and previews, contradictions."""
    yield from prompt_cases(pipe)
    yield from seed_cases(pipe)
    yield from subject_list_cases(pipe)
    yield from length_cases(pipe)
    yield from progress_cases(pipe)
    yield from contradiction_cases(pipe)


def prompt_cases(pipe):
    """Prompts and negative prompts that are not text."""
    invalid = [
        None, 5, 1.5, b"a cat", {}, {"a": 1}, {"a cat"}, [], [None], ["a cat", 5], [["a cat"]], print,
        "\ud800", "a \udfff cat", ["a cat", "\udc80"], np.asarray([1, 2]), iter(["a cat"]),
    ]  # fmt: skip
    for i, text in enumerate(invalid):
        yield f"prompt {i}", lambda t=text: rc.sample(pipe, t)
        if text is not None:
            yield f"negative {i}", lambda t=text: rc.sample(pipe, "a cat", negative_prompt=t)


def seed_cases(pipe):
    """Invalid seeds, of one request and of two."""
    seeds = [
        -1, 2**64, 1.5, NAN, "1", b"1", True, {}, object(), [], [None], [1, -1], [[1]], "", 10**400, [True],
        np.asarray([1.5]), np.asarray([[1]]), {1, 2}, print, 1j,
    ]  # fmt: skip
    for i, seed in enumerate(seeds):
        yield f"seed {i}", lambda s=seed: rc.sample(pipe, "a cat", seed=s)
        yield f"seeds {i}", lambda s=seed: rc.sample(pipe, ["a cat", "a dog"], seed=s)


def subject_list_cases(pipe):
    """Values that are not a list of subjects."""
    subject = rc.Subject(CAT, "cat")
    wrong = ["cat.png", 5, {}, subject, [5], [None], [[subject]], [subject, "x"], print, np.zeros(3)]
    for i, subjects in enumerate(wrong):
        yield f"subjects {i}", lambda s=subjects: rc.sample(pipe, "a cat", s)
        yield f"two, subjects {i}", lambda s=subjects: rc.sample(pipe, ["a cat"] * 2, s)


def length_cases(pipe):
    """Lists of different lengths."""
    subject = rc.Subject(CAT, "cat")
    yield "lists 1", lambda: rc.sample(pipe, ["a cat"] * 2, [[subject]])
    yield "lists 2", lambda: rc.sample(pipe, ["a cat"] * 2, seed=[1, 2, 3])
    yield "lists 3", lambda: rc.sample(pipe, ["a cat"] * 2, gamma_num=[0.1] * 3)
    yield "lists 4", lambda: rc.sample(pipe, "a cat", negative_prompt=["x", "y"])


def progress_cases(pipe):
    """Invalid `progress`, `every` and `preview`."""
    for name, values in {
        "progress": [1, "yes", [], 0.5],
        "every": [0, -1, 1.5, "2", True],
        "preview": [5, "print", [print]],
        "fast_preview": [True, 1, None],
    }.items():
        for value in values:
            given = {"preview": print, "every": value} if name == "every" else {name: value}
            yield f"{name} {value!r}", lambda g=given: rc.sample(pipe, "a cat", **g)


def contradiction_cases(pipe):
    """Options that have no effect, that leave no pixel, or that contradict each other."""
    subject = rc.Subject(CAT, "cat")
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
    """What `make_conditioning` cannot encode: an empty batch, or lists of different lengths."""
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
    for label, value in INVALID_VALUES.items():
        for name in ("strength", "mask_mode", "plurals", "match_case"):
            if not (name in ("plurals", "match_case") and value is True):
                yield f"{name}={label}", lambda n=name, v=value: rc.Subject(CAT, "cat", **{n: v})
        yield (
            f"images={label}",
            lambda v=value: [load_image(photo) for photo in rc.Subject(images=v, words="cat").photos],
        )
    words = [
        None, 5, 1.5, {}, [], [""], " ", "\n", b"cat", [b"cat"], [5], [None], ["cat", ""], "dog", "ca",
        "cat#2", "cat#0", "cat#99999999999999999999", "#1", "\ud800", ["cat", "dog"], ".*", "c?t", "cat\0",
        {"cat"},
    ]  # fmt: skip
    for i, value in enumerate(words):
        yield f"words {i}", lambda v=value: rc.sample(pipe, "a cat", [rc.Subject(CAT, v)])
    yield "intersect", lambda: rc.Subject(CAT, "cat", mask_mode="intersect")
    yield "twice", lambda: rc.sample(pipe, "a cat", [rc.Subject(CAT, "cat"), rc.Subject(CAT, "CAT")])
    yield "no subject", lambda: rc.Subject()
