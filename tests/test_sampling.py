"""`rc.sample`: what it gives, and one clear sentence for every wrong input."""

import io
import runpy
import sys

import numpy as np
import pytest
from PIL import Image

import realcustom_jax as rc
from realcustom_jax.toybox import Identity, render_reference

CAT = render_reference(Identity("cat", 9)).image
FEW = {"steps": 2}


def test_one_prompt_and_a_list(micro_pipe):
    """Shapes and types of the contract; a list of one request is that request."""
    subject = rc.Subject(CAT, "cat")
    single = rc.sample(micro_pipe, "a cat on the beach", subjects=[subject], seed=7, **FEW)
    assert single.images.shape == (1, 16, 16, 3) and single.images.dtype == np.uint8
    assert single.masks.shape == (1, 2, 1, 8, 8) and single.masks.dtype == np.float32
    listed = rc.sample(micro_pipe, ["a cat on the beach"], subjects=[[subject]], seed=[7], **FEW)
    np.testing.assert_array_equal(single.images, listed.images)
    np.testing.assert_array_equal(single.masks, listed.masks)


def test_text_only_has_no_masks(micro_pipe):
    out = rc.sample(micro_pipe, ["a cat", "a dog"], seed=[1, 2], **FEW)
    assert out.images.shape == (2, 16, 16, 3) and out.masks.shape == (2, 2, 0, 8, 8)
    assert not np.array_equal(out.images[0], out.images[1])


def test_one_seed_for_all_and_images_of_any_kind(micro_pipe, tmp_path):
    """A path, bytes, a PIL image and an array of the same picture give the same image."""
    path, buffer = tmp_path / "cat.png", io.BytesIO()
    Image.fromarray(CAT).save(path)
    Image.fromarray(CAT).save(buffer, "PNG")
    kinds = [str(path), path, buffer.getvalue(), Image.open(path), CAT]
    subjects = [[rc.Subject(kind, "cat")] for kind in kinds]
    out = rc.sample(micro_pipe, ["a cat"] * 5, subjects=subjects, seed=3, **FEW)
    for image in out.images[1:]:
        np.testing.assert_array_equal(image, out.images[0])


def test_other_sizes(micro_pipe):
    out = rc.sample(micro_pipe, "a cat", subjects=[rc.Subject(CAT, "cat")], height=24, width=16, **FEW)
    assert out.images.shape == (1, 24, 16, 3) and out.masks.shape == (1, 2, 1, 12, 8)


WRONG = {
    "word not in the prompt": (
        {"prompt": "a dog on the beach", "subjects": [rc.Subject(CAT, "cat")]},
        "'cat'.*not in the prompt.*dog",
    ),
    "word cut off": (
        {"prompt": "very " * 80 + "big cat", "subjects": [rc.Subject(CAT, "cat")]},
        "cat.*cut off.*77",
    ),
    "unreadable image": ({"subjects": [rc.Subject(b"not a picture", "cat")]}, "cannot|can't|not .*image"),
    "missing image": ({"subjects": [rc.Subject("no/such/photo.png", "cat")]}, "no/such/photo.png"),
    "height": ({"height": 18}, "height of 18 pixels cannot be halved.*multiple of 4"),
    "width": ({"width": 0}, "width of 0 pixels"),
    "unknown option": ({"gama_scope": 0.3}, "'gama_scope' is no sampling option; known: text_weight"),
    "unknown solver": ({"solver": "heun"}, "solver 'heun' is unknown; known: ddim"),
    "unknown guidance": ({"guidance": "strong"}, "guidance 'strong' is unknown; known: paper, direct"),
    "too many mask steps": ({"mask_steps": 5}, "mask_steps must be from 1 to 2"),
    "layer out of range": ({"subjects": [rc.Subject(CAT, "cat")], "mask_layers": (99,)}, "mask_layers"),
    "no such mask grid": ({"mask_downscale": 3}, "mask_downscale 3 does not divide"),
    "subjects not nested": (
        {"prompt": ["a cat", "a cat"], "subjects": [rc.Subject(CAT, "cat")]},
        "subjects must be a list of 2",
    ),
    "no subject": ({"subjects": ["cat.png"]}, "rc.Subject"),
    "seeds": ({"prompt": ["a cat", "a dog"], "seed": [1]}, "seed must be a list of 2"),
    "numbers": ({"prompt": ["a cat", "a dog"], "gamma_scope": [0.1, 0.2, 0.3]}, "gamma_scope must be one"),
    "share": ({"gamma_scope": 1.5}, "gamma_scope must be from 0 to 1"),
    "no prompt": ({"prompt": []}, "no prompt"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gets_one_sentence(micro_pipe, case):
    request, sentence = WRONG[case]
    with pytest.raises(rc.UserError, match=f"(?s){sentence}") as error:
        rc.sample(micro_pipe, **{"prompt": "a cat on the beach", **FEW, **request})
    assert "\n" not in str(error.value)


def test_a_base_without_realcustom_takes_no_subjects(micro_pipe):
    import dataclasses

    base = micro_pipe.replace(models=dataclasses.replace(micro_pipe.models, realcustom=None))
    with pytest.raises(rc.UserError, match="no realcustom/ weights"):
        rc.sample(base, "a cat", subjects=[rc.Subject(CAT, "cat")], **FEW)


def run_sample(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["sample", *arguments])
    runpy.run_module("realcustom_jax.sample", run_name="__main__")


def test_the_command_writes_images_and_masks(micro_pipe, tmp_path, monkeypatch, capsys):
    rc.save(micro_pipe, tmp_path / "model")
    Image.fromarray(CAT).save(tmp_path / "cat.png")
    arguments = ["--model", str(tmp_path / "model"), "--prompt", "a cat", "--subject"]
    arguments += [f"cat={tmp_path / 'cat.png'}", "--steps", "2", "--seed", "5", "6", "--masks"]
    run_sample(monkeypatch, *arguments, "--out", str(tmp_path / "out"))
    expected = rc.sample(micro_pipe, "a cat", subjects=[rc.Subject(CAT, "cat")], seed=5, **FEW)
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "out" / "image_5.png")), expected.images[0]
    )
    assert Image.open(tmp_path / "out" / "image_6_mask_0.png").size == (2 * 8, 8)
    assert "image_5.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "no/such/model", "--prompt", "a cat"], "no model folder 'no/such/model'"),
        (["--prompt", "a cat", "--subject", "cat"], "must be WORDS=IMAGE"),
    ],
)
def test_the_command_ends_with_status_2(monkeypatch, capsys, arguments, sentence):
    with pytest.raises(SystemExit) as stop:
        run_sample(monkeypatch, *arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1
