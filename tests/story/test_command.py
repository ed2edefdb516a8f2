"""The command `python -m realcustom_jax.story`, and characters from a description."""

import json
import runpy
import sys
import zipfile

import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax.story.create import candidate_prompt

FEW = ["--steps", "1", "--mask-steps", "1"]


@pytest.fixture(scope="module")
def toybox() -> rc.Pipeline:
    return rc.load("toybox")


@pytest.fixture
def folder(tmp_path):
    """A story that was written by hand: one character, two scenes."""
    rc.Character("Mika", rc.example("bird"), "bird").save(tmp_path / "mika")
    values = {"characters": ["mika"], "scenes": ["Mika on the beach", {"prompt": "Mika at night", "seed": 3}]}
    (tmp_path / "tale.json").write_text(json.dumps(values))
    return tmp_path


def run(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["story", *map(str, arguments)])
    runpy.run_module("realcustom_jax.story", run_name="__main__")


def test_story_of_a_file_is_written_kept_and_rerolled(folder, monkeypatch, capsys):
    run(monkeypatch, folder / "tale.json", *FEW)
    out = folder / "tale"
    assert str(out) in capsys.readouterr().out
    first = [(out / "scenes" / f"scene_{k}.png").read_bytes() for k in (1, 2)]
    assert json.loads((out / "story.json").read_text())["options"] == {"steps": 1, "mask_steps": 1}
    # Nothing is missing, so nothing is made; the zip has the same images.
    monkeypatch.setattr("realcustom_jax.story.run.sample", lambda *_, **__: pytest.fail("made again"))
    run(monkeypatch, out, "--out", folder / "copy.zip")
    with zipfile.ZipFile(folder / "copy.zip") as file:
        assert [file.read(f"scenes/scene_{k}.png") for k in (1, 2)] == first
    monkeypatch.undo()
    run(monkeypatch, folder / "copy.zip", "--out", folder / "other", "--reroll", 2)
    again = [(folder / "other" / "scenes" / f"scene_{k}.png").read_bytes() for k in (1, 2)]
    assert again[0] == first[0] and again[1] != first[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.json"], "there is no story.json"),
        (["tale.json", "--reroll", "9"], "--reroll 9: the story has scenes 1 to 2"),
        (["tale.json", "--width", "33"], "33"),
        (["empty.json"], "has no scenes"),
    ],
)
def test_mistakes_end_before_the_model_is_loaded(folder, monkeypatch, capsys, arguments, message):
    (folder / "empty.json").write_text('{"scenes": []}')
    monkeypatch.setattr("realcustom_jax.pipeline.load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(SystemExit) as status:
        run(monkeypatch, folder / arguments[0], *arguments[1:])
    assert status.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "description", "prompt"),
    [
        ("cat", "", "a cat on a plain background"),
        ("owl", "", "an owl on a plain background"),
        ("cat", "a round orange cat.", "a round orange cat on a plain background"),
        ("cat", "round and orange", "a cat, round and orange, on a plain background"),
    ],
)
def test_candidate_prompts_name_the_word(toybox, word, description, prompt):
    assert candidate_prompt(toybox, word, description) == prompt


def test_candidate_becomes_a_character(toybox):
    made = rc.candidates(
        toybox, "bird", "a red and blue striped bird", seeds=(4, 5), steps=1, mask_steps=1, progress=False
    )
    assert len(made) == 2 and made.records[1].seed == 5
    nilo = rc.Character("Nilo", made.pil()[1], "bird")
    np.testing.assert_array_equal(np.asarray(nilo.image), made.images[1])
    with pytest.raises(rc.UserError, match="needs a word"):
        rc.candidates(toybox, " ")
