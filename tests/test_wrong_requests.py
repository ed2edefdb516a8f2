"""Wrong arguments of `rc.sample` and `rc.Subject`: each raises a one-line error."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import realcustom_jax as rc

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("sample_helpers.py"))))
CAT, SUBJECT, FEW = common.CAT, common.SUBJECT, common.FEW
WRONG = {
    "word not in the prompt": (
        {"prompt": "a dog on the beach", "subjects": [SUBJECT]},
        "'cat'.*not in the prompt.*dog",
    ),
    "word cut off": (
        {"prompt": "very " * 80 + "big cat", "subjects": [SUBJECT]},
        "cat.*cut off.*77",
    ),
    "unreadable image": ({"subjects": [rc.Subject(b"not a picture", "cat")]}, "cannot|can't|not .*image"),
    "missing image": ({"subjects": [rc.Subject("no/such/photo.png", "cat")]}, "no/such/photo.png"),
    "height": ({"height": 18}, "height of 18 pixels cannot be halved.*multiple of 4"),
    "width": ({"width": 0}, "width of 0 pixels"),
    "unknown option": ({"gama_scope": 0.3}, "'gama_scope' is not a sampling option; known: text_weight"),
    "another library's name": (
        {"num_inference_steps": 3},
        "'num_inference_steps' is not a sampling option; num_inference_steps is called steps here",
    ),
    "several at once": ({"num_images_per_prompt": 3}, r"several seeds here, as seed=\[0, 1, 2, 3\]"),
    "no seed": ({"seed": []}, "there is no seed"),
    "no pixel left": ({"subjects": [SUBJECT], "gamma_scope": 0.001}, "gamma_scope 0.001 leaves no pixel"),
    "grid too small": ({"subjects": [SUBJECT], "mask_downscale": 8}, "no pixel of the mask grid of 1x1"),
    "option of the other guidance": (
        {"rescale": 0.5},
        "rescale has no effect: it is an option of guidance 'direct', and the guidance is 'paper'",
    ),
    "beyond any memory": ({"width": 2**40}, "need more than .* GiB of memory"),
    "half a character": ({"prompt": "a \ud800 cat"}, "is not valid Unicode: lone surrogate at position 2"),
    "unknown solver": ({"solver": "heun"}, "solver 'heun' is unknown; known: ddim"),
    "unknown guidance": ({"guidance": "strong"}, "guidance 'strong' is unknown; known: paper, direct"),
    "too many mask steps": ({"mask_steps": 5}, "mask_steps must be from 1 to 2"),
    "layer out of range": ({"subjects": [SUBJECT], "mask_layers": (99,)}, "mask_layers"),
    "no such mask grid": ({"mask_downscale": 3}, "mask_downscale 3 does not divide"),
    "subjects not nested": (
        {"prompt": ["a cat", "a cat"], "subjects": [SUBJECT]},
        "subjects must be a list of 2",
    ),
    "no subject": ({"subjects": ["cat.png"]}, "rc.Subject"),
    "seeds": ({"prompt": ["a cat", "a dog"], "seed": [1]}, "seed must be a list of 2"),
    "numbers": ({"prompt": ["a cat", "a dog"], "gamma_scope": [0.1, 0.2, 0.3]}, "gamma_scope must be one"),
    "share": ({"gamma_scope": 1.5}, "gamma_scope must be from 0 to 1"),
    "no prompt": ({"prompt": []}, "no prompt"),
    "prompt None": ({"prompt": None}, "prompt must be a string or a list of strings, not NoneType"),
    "prompt of bytes": ({"prompt": b"a cat"}, "prompt must be a string or a list of strings, not bytes"),
    "prompts not text": ({"prompt": ["a cat", 2]}, "prompt must be .* strings, not a list with int"),
    "negatives": ({"negative_prompt": ["", ""]}, "negative_prompt must be a list of 1"),
    "bare subject": ({"subjects": SUBJECT}, r"subjects must be a list, even for one: subjects=\[rc.Subject"),
    "bare subject for two": ({"prompt": ["a cat"] * 2, "subjects": SUBJECT}, "subjects must be a list, even"),
    "a path for subjects": ({"subjects": "cat.png"}, "subjects must be a list of rc.Subject.*not str"),
    "one subject for each": (
        {"prompt": ["a cat"] * 2, "subjects": [SUBJECT] * 2},
        "subjects must be a list of lists of rc.Subject.*not a list with Subject",
    ),
    "nested too deep": ({"subjects": [[SUBJECT]]}, "a subject must be rc.Subject.*not list"),
    "words of a number": (
        {"subjects": [rc.Subject(CAT, 5)]},
        "target words of .* must be a string or a list of strings, not int",
    ),
    "words empty": ({"subjects": [rc.Subject(CAT, " ")]}, "target words of .* are empty"),
    "words of bytes": (
        {"subjects": [rc.Subject(CAT, [b"cat"])]},
        "or a list of strings, not a list with bytes",
    ),
    "second phrase": ({"subjects": [rc.Subject(CAT, ("cat", "dog"))]}, "'dog' are not in the prompt"),
    "other case": ({"subjects": [rc.Subject(CAT, "Cat", match_case=True)]}, "'Cat' are not in the prompt"),
    "mask missing": ({"subjects": [rc.Subject(CAT, "cat", "no/mask.png")]}, "'no/mask.png' does not exist"),
    "mask unreadable": ({"subjects": [rc.Subject(CAT, "cat", b"no")]}, "the mask cannot be decoded"),
    "mask too large": (
        {"subjects": [rc.Subject(CAT, "cat", np.full((4, 4), 2.0))]},
        r"the mask .* outside \[0, 1\]",
    ),
    "mask of integers": (
        {"subjects": [rc.Subject(CAT, "cat", np.ones((4, 4), np.int64))]},
        "the mask array must be uint8 or floating point, but it is int64",
    ),
    "mask without pixels": (
        {"subjects": [rc.Subject(CAT, "cat", np.ones((0, 4)))]},
        "the mask array must have",
    ),
    "image of a number": ({"subjects": [rc.Subject(5, "cat")]}, "an image must be a path.*not int"),
    "image of a list": ({"subjects": [rc.Subject([CAT], "cat")]}, "an image must be a path.*not list"),
    "seed of float": ({"seed": 7.0}, r"seed must be a whole number, not 7\.0"),
    "seed of text": ({"seed": "7"}, "seed must be a whole number, not '7'"),
    "seed of bool": ({"seed": True}, "seed must be a whole number, not True"),
    "seed in a list": ({"seed": [None]}, "seed must be a whole number, not None"),
    "seed negative": ({"seed": -1}, "seed must be 0 or more, not -1"),
    "seed too large": ({"seed": 2**64}, "seed must be from 0 to .*, not 18446744073709551616"),
    "steps of text": ({"steps": "50"}, "steps must be a whole number, not '50'"),
    "height of float": ({"height": 64.0}, r"height must be a whole number, not 64\.0"),
    "weight not finite": ({"text_weight": float("nan")}, "text_weight must be finite in float32, not nan"),
    "noise that the solver has not": ({"solver": "euler", "eta": 0.5}, "eta is an option of ddim"),
    "more steps than timesteps": ({"steps": 1001}, "number of steps must be from 1 to 1000"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gives_one_line_error(micro_pipe, case):
    request, sentence = WRONG[case]
    with pytest.raises(rc.UserError, match=f"(?s){sentence}") as error:
        rc.sample(micro_pipe, **{"prompt": "a cat on the beach", **FEW, **request})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mask_mode": "both"}, "mask_mode 'both' is unknown; known: instead, intersect"),
        ({"mask_mode": None}, "mask_mode None is unknown"),
        ({"strength": -0.5}, "strength must be 0 or more, not -0.5"),
        ({"strength": float("nan")}, "strength must be finite in float32, not nan"),
        ({"strength": "1"}, "strength must be a number, not '1'"),
        ({"strength": [1.0]}, r"strength must be a number, not \[1.0\]"),
        ({"plurals": 1}, "plurals must be True or False, not 1"),
        ({"match_case": None}, "match_case must be True or False, not None"),
    ],
)
def test_invalid_subject_raises(changes, sentence):
    with pytest.raises(rc.UserError, match=f"^{sentence}"):
        rc.Subject(CAT, "cat", **changes)
