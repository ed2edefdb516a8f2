"""Characters of the Story tab without a browser: made, edited, with a face box, as files."""

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import realcustom_jax as rc
from realcustom_jax.story.create import candidates
from realcustom_jax.studio.cast import (
    CANDIDATES,
    box_of_clicks,
    export_character,
    face_picture,
    load_character,
    make_candidates,
    remove_character,
    save_character,
)
from realcustom_jax.studio.jobs import Report


@pytest.fixture(scope="module")
def bird(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("photos") / "bird.png"
    rc.example("bird").save(path)
    return str(path)


def test_saved_form_is_the_character_of_its_fields(bird):
    story = rc.Story()
    made = save_character(story, " Mika ", bird, "bird", "a bird", "10, 10, 40, 40", (1.0, 0.5))
    assert story.characters == [made] and made.name == "Mika"
    assert (made.face, made.face_strength, made.body_strength) == ((10, 10, 40, 40), 1, 0.5)
    assert made.photos == (Path(bird).read_bytes(),)  # not a path: uploads go


def test_saving_a_name_again_edits_that_character_alone(bird):
    story = rc.Story()
    save_character(story, "Mika", bird, "bird")
    bolt = save_character(story, "Bolt", bird, "bird")
    save_character(story, "Mika", bird, "bird with a crest")
    assert [one.name for one in story.characters] == ["Mika", "Bolt"]
    assert story.characters[0].word == "bird with a crest" and story.characters[1] is bolt


def test_character_of_a_scene_stays(bird):
    story = rc.Story()
    for name in ("Mika", "Bolt"):
        save_character(story, name, bird, "bird")
    story.add("a house")
    story.add("MIKA on the beach")
    with pytest.raises(rc.UserError, match="scene 2 names Mika"):
        remove_character(story, "Mika")
    remove_character(story, "Bolt")
    assert [one.name for one in story.characters] == ["Mika"]


def test_candidates_are_those_of_the_library(flat_pipe):
    report = Report(threading.Event(), lambda update: None)
    made = make_candidates(flat_pipe, "bird", "a red bird", str(2**64 - 1), report)
    own = candidates(flat_pipe, "bird", "a red bird", [2**64 - 1, 0, 1, 2], progress=False)
    assert len(made.images) == CANDIDATES and made.png_files() == own.png_files()


def test_two_clicks_give_the_box_in_pixels_of_the_photo(tmp_path):
    """Small photos are drawn enlarged, and large ones shrunk."""
    for size in ((32, 16), (3000, 1500)):
        path = str(tmp_path / f"{size[0]}.png")
        Image.new("RGB", size).save(path)
        drawn = face_picture(path, None)
        assert 300 < drawn.width <= 1024 and drawn.width == 2 * drawn.height
        scale = drawn.width / size[0]
        box = (size[0] // 4, size[1] // 4, size[0] // 2, size[1])
        left, top, right, bottom = (round(side * scale) for side in box)
        found = box_of_clicks(path, (right, top), (left, bottom))
        np.testing.assert_allclose(found, box, atol=max(1, 1 / scale))


def test_drawn_box_is_where_the_face_is(tmp_path):
    path = str(tmp_path / "grey.png")
    Image.new("RGB", (64, 64), "grey").save(path)
    plain, boxed = (np.asarray(face_picture(path, box), int) for box in (None, (16, 8, 48, 32)))
    rows, columns = np.nonzero(np.abs(boxed - plain).sum(-1))
    scale = plain.shape[0] / 64
    edges = (columns.min(), rows.min(), columns.max(), rows.max())
    np.testing.assert_allclose(edges, np.multiply((16, 8, 48, 32), scale), atol=3)


def test_box_partly_or_wholly_outside_the_photo_is_drawn_where_it_is_inside(bird):
    plain = face_picture(bird, None)
    for box in ((-1e308, -5, float("inf"), 5), (-9, -9, -5, -5), (500, 500, 1e30, 1e30)):
        assert face_picture(bird, box).size == plain.size
    assert face_picture(bird, (100, 100, 200, 200)).tobytes() == plain.tobytes()


def test_exported_character_is_read_back(bird, tmp_path):
    story = rc.Story()
    made = save_character(story, "Mika", bird, "bird", "a bird", "10, 10, 40, 40", (0.5, 1.5))
    path = export_character(story, "Mika", tmp_path)
    assert path == tmp_path / "Mika.zip"
    assert repr(load_character(str(path))) == repr(made)


def test_names_with_path_characters_stay_in_the_folder(bird, tmp_path):
    inner, story = tmp_path / "results", rc.Story()
    inner.mkdir()
    for name in ("../../Mika", "/etc/passwd", "C:\\Mika", "a/b/c", "..a", "Mika\u2028x"):
        made = save_character(story, name, bird, "bird")
        path = export_character(story, name, inner)
        assert path.parent == inner and load_character(str(path)).name == made.name
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_typed_name_finds_the_character_however_it_is_encoded(bird, tmp_path):
    story = rc.Story()
    save_character(story, "Zoe\u0301  B", bird, "bird")
    for name in ("Zo\u00e9 B", " Zoe\u0301 B "):
        assert export_character(story, name, tmp_path).name == "Zo\u00e9_B.zip"
    remove_character(story, "Zoe\u0301 B")
    assert not story.characters


def test_errors_of_uploads_do_not_name_the_servers_folder(tmp_path):
    path = tmp_path / "mika.zip"
    path.write_text("no zip")
    with pytest.raises(rc.UserError, match=r"^mika\.zip cannot be read as a zip"):
        load_character(str(path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("Mika", None, "bird"), "needs a picture"),
        (("", "PHOTO", "bird"), "name is empty"),
        (("Mika", "PHOTO", ""), "word is empty"),
        (("Mika", "PHOTO", "bird", "", "1, 2"), "must be four numbers"),
        (("Mika", "PHOTO", "bird", "", "", (0.5, 1.0)), "face_strength needs a face box"),
        (("Mika", "PHOTO", "bird", "", "", (1.0, float("nan"))), "must be finite"),
        (("Mika", "no/gone.png", "bird"), "^gone.png cannot be read: No such file"),
    ],
)
def test_mistakes_raise_one_sentence(bird, fields, message):
    story = rc.Story()
    with pytest.raises(rc.UserError, match=message) as error:
        save_character(story, *(bird if value == "PHOTO" else value for value in fields))
    assert "\n" not in str(error.value) and not story.characters
