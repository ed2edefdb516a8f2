"""The command `sample`: files, flags, help, and one line and status 2 for a mistake."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import realcustom_jax as rc
from realcustom_jax.inputs.transforms import load_image

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("sample_helpers.py"))))
CAT, SUBJECT, FEW, assert_same_picture = common.CAT, common.SUBJECT, common.FEW, common.assert_same_picture


def run_sample(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["sample", *arguments])
    runpy.run_module("realcustom_jax.sample", run_name="__main__")


def test_command_writes_images_and_masks(micro_pipe, tmp_path, monkeypatch, capsys):
    rc.save(micro_pipe, tmp_path / "model")
    Image.fromarray(CAT).save(tmp_path / "cat.png")
    arguments = ["--model", str(tmp_path / "model"), "--prompt", "a cat", "--subject"]
    arguments += [f"cat={tmp_path / 'cat.png'}", "--steps", "2", "--seed", "5", "6", "--masks"]
    run_sample(monkeypatch, *arguments, "--out", str(tmp_path / "out"))
    expected = rc.sample(micro_pipe, "a cat", subjects=[SUBJECT], seed=5, **FEW)
    assert_same_picture(np.asarray(Image.open(tmp_path / "out" / "image_5.png")), expected.images[0])
    assert Image.open(tmp_path / "out" / "image_6_mask_0.png").size == (2 * 8, 8)
    assert "image_5.png" in capsys.readouterr().out


def test_command_writes_the_bytes_of_python(micro_pipe, tmp_path, monkeypatch):
    """The same model, request and seed: also the record in the file is the same."""
    rc.save(micro_pipe, tmp_path / "model")
    Image.fromarray(CAT).save(tmp_path / "cat.png")
    run_sample(
        monkeypatch, "--model", str(tmp_path / "model"), "--prompt", "a cat", "--steps", "2", "--seed", "5",
        "--subject", f"cat={tmp_path / 'cat.png'}", "--out", str(tmp_path / "out"),
    )  # fmt: skip
    pipe = rc.load(str(tmp_path / "model"))
    out = rc.sample(pipe, "a cat", [rc.Subject(tmp_path / "cat.png", "cat")], 5, steps=2)
    assert (tmp_path / "out" / "image_5.png").read_bytes() == out.png_files()[0]


def test_command_parses_subjects(tmp_path, monkeypatch):
    """Phrases, masks, strengths and switches of two subjects, and one without words."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(CAT).save("cat.png")
    Image.fromarray(np.eye(4, dtype=bool)).save("mask.png")
    command = runpy.run_module("realcustom_jax.sample")
    line = "--prompt x --subject cat|kitten=cat.png --subject cat.png --subject auto=cat.png --plurals"
    line += " --mask 2=mask.png --mask-mode intersect --strength 1=0.5 --strength 3=2"
    first, second, third = command["_subjects"](command["_parser"]().parse_args(line.split()), ())
    assert [s.words for s in (first, second, third)] == [("cat", "kitten"), "auto", "auto"]
    assert [s.strength for s in (first, second, third)] == [0.5, 1.0, 2.0]
    assert first.mask is None and third.mask is None and second.mask_mode == "intersect"
    np.testing.assert_array_equal(second.mask, np.eye(4))
    assert first.plurals and not first.match_case
    for subject in (first, second, third):
        np.testing.assert_array_equal(load_image(subject.photos[0]), CAT)


def test_command_has_a_flag_for_every_option():
    """With the option's own type; options that are not given are left to the model."""
    command = runpy.run_module("realcustom_jax.sample")
    values = {float: "0.5", int: "2"}
    arguments = ["--prompt", "a cat"]
    for name, rule in rc.SamplingOptions.rules().items():
        arguments += ["--" + name.replace("_", "-"), values.get(rule.kind) or rule.choices[-1]]
    options = command["given_options"](command["_parser"]().parse_args(arguments))
    assert options.keys() == rc.SamplingOptions.rules().keys()
    assert options["mask_layers"] == (2,) and options["eta"] == 0.5 and options["scoring"] == "none"
    assert command["given_options"](command["_parser"]().parse_args(arguments[:2])) == {}


def test_help_describes_command_and_every_option(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run_sample(monkeypatch, "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert not stop.value.code and "the reference image for words of the prompt" in text
    for rule in rc.SamplingOptions.rules().values():
        assert rule.help in text
    assert "share of the image where a subject may act: 0 to 1 (0.25)" in text
    assert "(ddim, SDXL dpmpp_2s)" in text and "(all, SDXL 12)" in text and "(the model's own)" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "no/such/model"], "no model folder 'no/such/model'"),
        (["--subject", "cat"], "--subject 'cat' must be WORDS=IMAGE, such as dog=photo.png, or an IMAGE"),
        (["--mask", "mask.png"], "--mask 'mask.png' must be N=VALUE"),
        (["--mask", "1=mask.png"], "--mask '1=mask.png' is for subject 1, but the number of subjects is 0"),
        (["--subject", "cat=CAT", "--mask", "1=no.png"], "the image 'no.png' does not exist"),
        (
            ["--subject", "cat=CAT", "--strength", "0=1"],
            "--strength '0=1' is for subject 0, but the number of subjects is 1",
        ),
        (["--subject", "cat=CAT", "--strength", "1=1", "--strength", "1=2"], "given twice for subject 1"),
        (["--subject", "cat=CAT", "--strength", "1=-1"], "--strength 1 must be 0 or more, not -1.0"),
        (["--subject", "cat=CAT", "--strength", "1=much"], "--strength 1 must be a number, not 'much'"),
        (["--num-inference-steps", "5"], "--num-inference-steps is called --steps here, see --help"),
        (["--cfg_scale=5"], "--cfg_scale is called --text-weight here, see --help"),
        (["--mask-mode", "intersect"], "--mask-mode needs a --mask"),
        (["--plurals"], "--plurals needs a --subject: it is about its words"),
        (["--match-case"], "--match-case needs a --subject: it is about its words"),
        (["--subject", "dog=CAT"], "the target words 'dog' are not in the prompt; its words are: a, cat"),
        (["--height", "30"], "the height of 30 pixels cannot be halved"),
        (["--width", "1099511627776"], "GiB of memory"),
        (["--steps", "2000"], "the number of steps must be from 1 to 1000"),
        (["--steps", "5", "--mask-steps", "6"], "mask_steps must be from 1 to 5"),
        (["--negative-prompt", "@none"], "--negative-prompt '@none': there is no file 'none'"),
        (["--from", "CAT"], "'CAT' does not say how it was made"),
        (["--from", "none"], "the image 'none' does not exist"),
        (["--mask-mode", "both"], "argument --mask-mode: invalid choice: 'both'"),
        (["--steps", "2.5"], "argument --steps: invalid int value: '2.5', see --help"),
        (["--steps", "0"], "--steps must be 1 or more, not 0"),
        (["--gamma-scope", "1.5"], "--gamma-scope must be from 0 to 1, not 1.5"),
        (["--text-weight", "nan"], "--text-weight must be finite in float32, not nan"),
        (["--solver", "heun"], "--solver 'heun' is unknown; known: ddim"),
        (["--mask-layers", "0", "-1"], "--mask-layers must be 0 or more, not -1"),
        (["--gama-scope", "0.5"], "unrecognized arguments: --gama-scope 0.5"),
        (["--mask-st", "1"], "unrecognized arguments: --mask-st 1"),
        (["--subject", "cat=no/such.png"], "the image 'no/such.png' does not exist"),
        (["--seed", "-1"], "--seed must be 0 or more, not -1"),
        (["--seed", "five"], "argument --seed: invalid int value: 'five'"),
        (["--seed", "1", "2", "1"], "--seed 1 is given twice"),
        (["--out", "FILE"], "is a file, it must be a folder"),
        (["--out", "gs://b/images"], "is an address, not a folder"),
        (["--out", "FILE/deeper"], "cannot be written to: Not a directory"),
    ],
    ids=" ".join,
)
def test_command_mistake_gives_one_line_and_status_2(monkeypatch, tmp_path, capsys, arguments, sentence):
    (tmp_path / "FILE").touch()
    Image.fromarray(CAT).save(tmp_path / "CAT", "PNG")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run_sample(monkeypatch, "--prompt", "a cat", *arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1


def test_mistakes_are_found_before_loading_a_model(monkeypatch, tmp_path, capsys):
    """Words, sizes and steps, from the model's configs alone."""
    Image.fromarray(CAT).save(tmp_path / "cat.png")
    monkeypatch.setattr("realcustom_jax.pipeline.load", lambda *_, **__: pytest.fail("loaded"))
    for wrong, message in (
        (["--subject", f"dog={tmp_path / 'cat.png'}"], "'dog' are not in the prompt"),
        (["--width", "33"], "33"),
        (["--mask-steps", "99"], "mask_steps"),
    ):
        with pytest.raises(SystemExit) as status:
            run_sample(monkeypatch, "--prompt", "a cat", "--out", str(tmp_path / "out"), *wrong)
        assert status.value.code == 2 and message in capsys.readouterr().err


def test_command_without_prompt_fails(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run_sample(monkeypatch)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: the following arguments are required: --prompt, see --help\n"
