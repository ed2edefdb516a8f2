"""A user's story without a browser: the same bytes as from `rc.Story`, scenes, files, two users."""

import copy
import gc
import threading
import weakref
from pathlib import Path

import pytest

import realcustom_jax as rc
from realcustom_jax.studio.cast import save_character
from realcustom_jax.studio.jobs import Report, Stopped
from realcustom_jax.studio.script import (
    Script,
    export_story,
    generate,
    load_story,
    scene_fields,
    scene_of,
    set_look,
)

FEW = {"steps": 2, "mask_steps": 2}
SCENES = ("Mika on the beach", "Mika and Bolt in the snow", "Bolt at night")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("photos")
    for word in ("bird", "boat"):
        rc.example(word).save(folder / f"{word}.png")
    return {word: str(folder / f"{word}.png") for word in ("bird", "boat")}


@pytest.fixture
def report() -> Report:
    return Report(threading.Event(), lambda update: None)


def filled(photos, script: Script | None = None) -> Script:
    """A story as the page makes it."""
    script = script or Script()
    script.story.options = dict(FEW)
    save_character(script.story, "Mika", photos["bird"], "bird")
    save_character(script.story, "Bolt", photos["boat"], "boat", "", "", (1.0, 0.8))
    for prompt in SCENES:
        script.add(scene_of(prompt, "", "", "", ""))
    return script


def files_of(story: rc.Story) -> list[bytes]:
    return [page.samples.png_files()[0] for page in story.pages]


def test_page_gives_the_bytes_of_the_library(flat_pipe, photos, report):
    script = filled(photos)
    generate(flat_pipe, script.story, report)
    bird, boat = (Path(photos[word]).read_bytes() for word in ("bird", "boat"))
    characters = [rc.Character("Mika", bird, "bird"), rc.Character("Bolt", boat, "boat", body_strength=0.8)]
    story = rc.Story(characters, SCENES, options=FEW)
    story.generate(flat_pipe, progress=False)
    assert files_of(script.story) == files_of(story)
    generate(flat_pipe, script.story, report, reroll=1)
    story.reroll(flat_pipe, 1, progress=False)
    assert files_of(script.story) == files_of(story)


def test_reroll_leaves_the_other_scenes_alone(flat_pipe, photos, report):
    script = filled(photos)
    generate(flat_pipe, script.story, report)
    before = files_of(script.story)
    generate(flat_pipe, script.story, report, reroll=1)
    after = files_of(script.story)
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    generate(flat_pipe, script.story, report)  # nothing is missing
    assert files_of(script.story) == after


def test_stopped_story_keeps_what_it_had(flat_pipe, photos, report):
    script, stop = filled(photos), threading.Event()
    generate(flat_pipe, script.story, report)
    before = files_of(script.story)
    stop.set()
    with pytest.raises(Stopped):
        generate(flat_pipe, script.story, Report(stop, lambda update: None), reroll=0)
    assert files_of(script.story) == before and script.story.scenes[0].seed == 0


def test_exported_story_is_read_and_made_again_to_the_byte(flat_pipe, photos, report, tmp_path):
    script = filled(photos)
    generate(flat_pipe, script.story, report)
    paths = export_story(script.story, tmp_path)
    assert [path.name for path in paths] == ["story.zip", "contact_sheet.png", "story.pdf"]
    again = load_story(str(paths[0]))
    assert files_of(again) == files_of(script.story)
    generate(flat_pipe, again, report, again=True)
    assert files_of(again) == files_of(script.story)


def test_story_without_images_is_exported_as_one_file(photos, tmp_path):
    assert [path.name for path in export_story(filled(photos).story, tmp_path)] == ["story.zip"]
    with pytest.raises(rc.UserError, match="the story is empty"):
        export_story(rc.Story(), tmp_path)


def test_two_users_share_nothing(flat_pipe, photos, report, tmp_path):
    """Neither characters, scenes nor files. Each has a copy of one state, as Gradio makes it."""
    folders = iter(range(100))

    def new_folder() -> Path:
        folder = tmp_path / str(next(folders))
        folder.mkdir()
        return folder

    state = Script()
    two = copy.deepcopy(state)
    one = filled(photos, copy.deepcopy(state))
    assert not two.story.characters and not two.story.pages and not two.story.options
    generate(flat_pipe, one.story, report)
    assert not two.pages(new_folder) and not two.shelf(new_folder)
    save_character(two.story, "Mika", photos["boat"], "boat")
    assert one.story.character("Mika").word == "bird"
    files = [
        {file for file, _ in [*script.shelf(new_folder), *script.pages(new_folder)]} for script in (one, two)
    ]
    assert len(files[0]) == 5 and len(files[1]) == 1 and not files[0] & files[1]
    assert all(Path(file).resolve().is_relative_to(tmp_path.resolve()) for own in files for file in own)


def test_shown_files_are_written_once_and_hold_the_images(flat_pipe, photos, report, tmp_path):
    script = filled(photos)
    generate(flat_pipe, script.story, report)

    def folder() -> Path:
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        path.mkdir()
        return path

    shown = script.pages(folder)
    assert [Path(file).read_bytes() for file, _ in shown] == files_of(script.story)
    assert [caption for _, caption in shown] == [f"{k}. {text}" for k, text in enumerate(SCENES, 1)]
    script.story.move(0, 2)
    assert {file for file, _ in script.pages(folder)} == {file for file, _ in shown}
    script.story.change(0, prompt="Mika at night")
    assert script.pages(folder)[0][1].endswith("(changed since)")
    assert [line[-1] == "✓" for line, _ in script.scenes()] == [False, True, True]


def test_images_of_before_a_reroll_are_let_go(flat_pipe, photos, report, tmp_path):
    script = filled(photos)
    generate(flat_pipe, script.story, report)
    script.pages(lambda: tmp_path)
    before = [weakref.ref(page.samples) for page in script.story.pages]
    generate(flat_pipe, script.story, report, reroll=1)
    script.pages(lambda: tmp_path)
    gc.collect()
    assert [one() is None for one in before] == [False, True, False]


def test_fields_of_a_scene_are_read_back():
    fields = ("Mika on the beach", "7", "people", "Mika: with a hat", "Mika: face 1, body 0.5")
    scene = rc.Scene(**scene_of(*fields))
    assert scene.strengths == {"Mika": {"face_strength": 1, "body_strength": 0.5}}
    assert (scene.seed, scene.negative_prompt, scene.wishes) == (7, "people", {"Mika": "with a hat"})
    assert scene_fields(scene) == fields
    assert scene_fields(rc.Scene(**scene_of("a", "", "", "", ""))) == ("a", "", "", "", "")


def test_scenes_of_imported_stories_can_be_edited_without_loss():
    strengths = {"Mika": {"strength": 1e6, "body_strength": 1 / 3}, "Bolt": {"face_strength": 1e-7}}
    scene = rc.Scene("Mika and Bolt", strengths=strengths, wishes={"Mika": "with\na hat"})
    again = scene_of(*scene_fields(scene))
    assert again["strengths"] == strengths and again["wishes"] == {"Mika": "with a hat"}


def test_look_is_that_of_all_scenes():
    story = rc.Story()
    set_look(story, " watercolour ", "people", "9", True)
    assert (story.style, story.negative_prompt, story.seed, story.same_seed) == (
        "watercolour",
        "people",
        9,
        True,
    )
    with pytest.raises(rc.UserError, match="seed"):
        set_look(story, "", "", "x", False)
    assert story.style == "watercolour"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("", "", "", "", ""), "the prompt is empty"),
        (("a", "-1", "", "", ""), "the seed must be"),
        (("a", "", "", "a hat", ""), "a wish must be a line"),
        (("a", "", "", "", "Mika: nose 2"), "the strengths of Mika"),
        (("a", "", "", "", "Mika: body 1.2.3"), "the strengths of Mika"),
        (("a", "", "", "", "Mika: body -1"), "the strengths of Mika"),
    ],
)
def test_mistakes_in_scenes_raise_one_sentence(fields, message):
    with pytest.raises(rc.UserError, match=message) as error:
        scene_of(*fields)
    assert "\n" not in str(error.value)
