"""Stories: requests of scenes, images that stay the same, editing, and files."""

import copy
import dataclasses
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

import realcustom_jax as rc
from realcustom_jax.inputs.requests import Request
from realcustom_jax.story.batches import Place, fill_batches, fits, new_places
from realcustom_jax.toybox import Identity, render_reference

FEW = {"steps": 2, "mask_steps": 2}
CAT = render_reference(Identity("cat", 9)).image
DOG = render_reference(Identity("dog", 19)).image


@pytest.fixture(scope="module")
def toybox() -> rc.Pipeline:
    return rc.load("toybox")


def cast() -> list[rc.Character]:
    mika = rc.Character("Mika", CAT, "cat", "a round cat", face=(20, 10, 44, 30), body_strength=0.8)
    return [mika, rc.Character("Bolt", DOG, "dog")]


def new_story(**changes) -> rc.Story:
    scenes = ["Mika on the beach", "Mika and Bolt in the snow", "the beach at night"]
    return rc.Story(cast(), scenes, **{"seed": 7, "options": FEW, **changes})


@pytest.fixture(scope="module")
def generated(toybox) -> rc.Story:
    """Not to be changed: `made` is a copy for each test."""
    story = new_story()
    story.generate(toybox, progress=False)
    return story


@pytest.fixture
def made(generated) -> rc.Story:
    story = copy.copy(generated)
    story.characters, story.pages = list(story.characters), list(story.pages)
    return story


def pixels(story: rc.Story) -> list[np.ndarray]:
    return [page.samples.images[0] for page in story.pages]


def test_request_has_words_strengths_and_seeds():
    story = new_story(style="watercolour", negative_prompt="blurry")
    story.change(1, strengths={"Mika": {"body_strength": 0.5, "strength": 2}}, wishes={"Bolt": "with a hat"})
    request = story.request(1)
    assert request.prompt == "a cat and a dog with a hat in the snow, watercolour"
    assert (request.seed, request.negative_prompt) == (8, "blurry")
    mika, bolt = request.subjects
    assert (mika.words, mika.face_strength, mika.body_strength, mika.strength) == (("cat",), 1, 0.5, 2)
    assert (bolt.words, bolt.body_strength) == (("dog",), 1)
    assert story.request(2).subjects == () and story.request(2).prompt == "the beach at night, watercolour"


def test_style_is_no_target():
    """A word of a character in the style is not narrowed."""
    request = new_story(style="drawn by a cat").request(0)
    assert request.prompt == "a cat on the beach, drawn by a cat"
    assert request.subjects[0].words == ("cat#1",)


def test_seeds_follow_each_other_or_are_shared():
    assert [scene.seed for scene in new_story().scenes] == [7, 8, 9]
    assert [scene.seed for scene in new_story(same_seed=True).scenes] == [7, 7, 7]
    story = new_story()
    story.remove(1)
    story.add("Bolt alone", at=0)
    assert [scene.seed for scene in story.scenes] == [8, 7, 9]


def test_images_equal_those_of_sample(made, toybox):
    """In one batch, by the public function."""
    requests = [made.request(i) for i in range(3)]
    out = rc.sample(
        toybox, [r.prompt for r in requests], [r.subjects for r in requests], [r.seed for r in requests],
        progress=False, **FEW,
    )  # fmt: skip
    for own, image in zip(pixels(made), out.images, strict=True):
        np.testing.assert_array_equal(own, image)
    assert [page.samples.words[0] for page in made.pages] == [[("cat",)], [("cat",), ("dog",)], []]
    assert [page.samples.masks.shape[2] for page in made.pages] == [1, 2, 0]


def during(act):
    """A progress function that acts after the first step, as another thread may."""
    return lambda stage, done, total: act() if stage == "sampling" and done == 1 else None


def test_story_that_changes_while_images_are_made_keeps_each_with_its_scene(made, toybox):
    """Scenes move, one is changed, and a character is replaced before the images are there."""
    story = new_story()

    def act():
        story.move(2, 0)  # "the beach at night" comes first
        story.change(2, prompt="Bolt alone")  # was "Mika and Bolt in the snow"

    story.generate(toybox, progress=during(act))
    assert [page.scene.prompt for page in story.pages] == [
        "the beach at night",
        "Mika on the beach",
        "Bolt alone",
    ]
    np.testing.assert_array_equal(story.pages[0].samples.images, made.pages[2].samples.images)
    np.testing.assert_array_equal(story.pages[1].samples.images, made.pages[0].samples.images)
    assert story.pages[2].samples is None

    story = new_story()
    cat = rc.Character("Mika", CAT[:, ::-1], "cat")
    story.generate(toybox, progress=during(lambda: story.add_character(cat)))
    assert [story.is_made(i) for i in range(3)] == [False, False, True]


def test_scene_that_is_removed_while_it_is_rerolled_stays_removed(made, toybox):
    others = made.pages[1:]
    samples = made.reroll(toybox, 0, progress=during(lambda: made.remove(0)))
    assert len(samples) == 1
    assert made.pages == others, "the others keep their images"


def test_only_what_changed_is_made_again(made, toybox):
    story, before = made, pixels(made)
    assert all(map(story.is_made, range(3)))
    story.reroll(toybox, 1, progress=False)
    after = pixels(story)
    assert story.scenes[1].seed == 1008 and not np.array_equal(before[1], after[1])
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[2], after[2])
    story.change(2, prompt="Bolt on the beach at night")
    assert [story.is_made(i) for i in range(3)] == [True, True, False]
    story.generate(toybox, progress=False)
    np.testing.assert_array_equal(pixels(story)[0], before[0])
    other = dataclasses.replace(story.characters[1], body_strength=0.1)
    story.add_character(other)
    assert [story.is_made(i) for i in range(3)] == [True, False, False]


@pytest.mark.parametrize("photos", [1, 2])
def test_everything_again_gives_the_same_pixels_after_editing(toybox, photos):
    """Scenes remember the shape of the batch that they ran in: rows, slots, photos."""
    story = new_story()
    story.add_character(rc.Character("Bolt", images=[DOG] * photos, word="dog"))
    story.generate(toybox, progress=False)
    story.reroll(toybox, 1, progress=False)
    story.add("Mika in the forest")
    story.generate(toybox, progress=False)
    story.move(3, 0)
    story.remove(2)
    before = pixels(story)
    story.generate(toybox, again=True, progress=False)
    for old, new in zip(before, pixels(story), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("name", ["story", "story.zip"])
def test_saved_story_is_read_and_made_again_to_the_byte(toybox, tmp_path, name):
    story = new_story(style="plain")
    story.generate(toybox, progress=False)
    path = story.save(tmp_path / name)
    again = rc.Story.load(path)
    assert again.scenes == story.scenes and all(map(again.is_made, range(3)))
    for character, other in zip(story.characters, again.characters, strict=True):
        assert repr(character) == repr(other)
    files = [page.samples.png_files()[0] for page in story.pages]
    assert [page.samples.png_files()[0] for page in again.pages] == files
    again.generate(rc.load("toybox"), again=True, progress=False)
    assert [page.samples.png_files()[0] for page in again.pages] == files


def test_files_of_a_saved_story(made, tmp_path):
    path = made.save(tmp_path / "story")
    names = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    assert {"story.json", "contact_sheet.png", "story.pdf", "scenes/scene_1.png"} <= names
    assert {"characters/Mika/character.json", "characters/Bolt/image_0.png"} <= names
    assert (path / "story.pdf").read_bytes().startswith(b"%PDF-")
    sheet = Image.open(path / "contact_sheet.png")
    assert sheet.width > 3 * 320 and np.asarray(sheet).std() > 10
    values = json.loads((path / "story.json").read_text())
    assert values["scenes"][0]["prompt"] == "Mika on the beach" and values["model"]["model"] == "toybox"
    # A second save replaces the first, and removes files of scenes that are gone.
    shorter = rc.Story.load(path)
    shorter.remove(2)
    shorter.remove(1)
    shorter.save(path)
    assert not (path / "scenes" / "scene_2.png").exists() and (path / "scenes" / "scene_1.png").exists()


def test_missing_image_is_named_with_its_scene(made, tmp_path):
    path = made.save(tmp_path / "story")
    (path / "scenes" / "scene_2.png").unlink()
    with pytest.raises(rc.UserError, match=r"scene 2: the image 'scenes/scene_2.png' is missing"):
        rc.Story.load(path)


def test_images_that_unpack_to_far_more_than_their_files_are_refused(made, tmp_path):
    """48 MB from a file of less than 1 MB; without a limit, 200 such scenes fill the memory."""
    story = rc.Story.load(made.save(tmp_path / "story"))
    page = story.pages[0]
    plain = dataclasses.replace(page.samples, images=np.zeros((1, 4000, 4000, 3), np.uint8))
    story.restore(0, plain, page.place)
    path = story.save(tmp_path / "large.zip")
    assert path.stat().st_size < 2**20
    with pytest.raises(rc.UserError, match=r"unpack to 480\d+, which is too much"):
        rc.Story.load(path)
    page.samples.images.fill(0)  # an image of the model's size may be plain
    story.restore(0, page.samples, page.place)
    assert rc.Story.load(story.save(tmp_path / "small.zip")).is_made(0)


def test_story_written_by_hand_needs_only_scenes(tmp_path):
    cast()[0].save(tmp_path / "mika")
    (tmp_path / "mine.json").write_text(
        json.dumps({"characters": ["mika"], "scenes": ["Mika at sea", {"prompt": "Mika", "seed": 3}]})
    )
    story = rc.Story.load(tmp_path / "mine.json")
    assert [scene.seed for scene in story.scenes] == [0, 3]
    assert story.write(0).prompt == "a cat at sea"


def test_result_becomes_a_character(made):
    again = made.use_as_reference(0, "Mika 2", "cat with the pink hat")
    np.testing.assert_array_equal(np.asarray(again.image), pixels(made)[0])
    made.add_character(again)
    made.add("Mika 2 in the snow")
    assert made.write(len(made.pages) - 1).prompt == "a cat with the pink hat in the snow"


# ---------------------------------------------------------------- batches


def request(subjects: int, photos: int = 1) -> Request:
    return Request("a", (rc.Subject(images=[CAT] * photos, words="a"),) * subjects)


def test_scenes_of_one_size_share_batches():
    sizes = [(64, 64)] * 5 + [(32, 64)] + [(64, 64)]
    requests = [request(1), request(0), request(2), request(1, 3), request(0), request(1), request(3)]
    places = new_places(sizes, requests)
    assert [place.batch for place in places] == [4, 4, 4, 4, 2, 1, 2]
    assert [place.row for place in places] == [0, 1, 2, 3, 0, 0, 1]
    assert [place.slots for place in places] == [2, 2, 2, 2, 3, 1, 3]
    assert [place.photos for place in places] == [3, 3, 3, 3, 1, 1, 1]


def test_batches_put_requests_at_their_places():
    """Fillers give a batch its slots and photos; the second image of a place gets a batch of its own."""
    requests = [request(1), request(2), request(0)]
    places = [Place(3, 1, 2, 2), Place(3, 1, 2, 2), Place(3, 0, 2, 2)]
    batches = fill_batches(requests, [(64, 64)] * 3, places)
    assert [rows for _, rows in batches] == [[2, 0, -1], [-1, 1, -1]]
    for batch, rows in batches:
        assert [batch[row] for row, i in enumerate(rows) if i >= 0] == [requests[i] for i in rows if i >= 0]
        for filler in (batch[row] for row, i in enumerate(rows) if i < 0):
            assert [(len(s.photos), s.strength) for s in filler.subjects] == [(2, 0), (2, 0)]


def test_full_batch_that_lost_its_shape_keeps_a_row_for_a_filler():
    requests = [request(1), request(1)]
    batches = fill_batches(requests, [(64, 64)] * 2, [Place(2, 0, 1, 2), Place(2, 1, 1, 2)])
    assert [rows for _, rows in batches] == [[0, -1], [-1, 1]]


def test_place_in_a_batch_of_one_fits_its_own_shape_only():
    assert fits(Place(1, 0, 1), request(1)) and not fits(Place(1, 0, 2), request(1))
    assert fits(Place(2, 0, 2, 2), request(1)) and not fits(Place(2, 0, 2, 2), request(1, 3))


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: rc.Story(cast(), "Mika"), "must be a list of prompts"),
        (lambda: rc.Story(cast()[0]), "must be a list of rc.Character"),
        (lambda: rc.Story([*cast(), rc.Character("MIKA", CAT, "cat")]), "two characters are called Mika"),
        (lambda: rc.Story(seed=-1), "the story's seed must be"),
        (lambda: rc.Story(style=3), "style must be a text"),
        (lambda: rc.Story(style="x" * 20_000), "the story's style has 20000 characters"),
        (lambda: new_story().add(3), "must be a prompt or a Scene"),
        (lambda: new_story().change(9), "there is no scene 9; the story has 3"),
        (lambda: new_story().change(0, colour="red"), "a scene has no field 'colour'"),
        (lambda: new_story().add(rc.Scene("x", wishes={"Olga": "hat"})), "is about 'Olga'"),
        (lambda: rc.Scene("x", strengths={"Mika": {"power": 1}}), "must be among strength"),
        (lambda: rc.Scene("x", strengths={"Mika": {"strength": -1}}), "must be 0 or more"),
        (lambda: rc.Scene("x", height="tall"), "must be a whole number"),
        (lambda: rc.Scene("a" * 20_000), "20000 characters"),
        (lambda: rc.Scene("\ud800"), "is not valid Unicode"),
        (lambda: rc.Story(scenes=[" "]).request(0), "has no prompt"),
        (lambda: crowd(17).request(0), "names 17 characters; at most 16"),
        (lambda: new_story().use_as_reference(0, "A", "cat"), "has no image yet"),
        (lambda: new_story().character("Olga"), "has no character 'Olga'; it has: Mika, Bolt"),
    ],
)
def test_mistakes_raise_one_sentence(act, message):
    with pytest.raises(rc.UserError, match=message) as error:
        act()
    assert "\n" not in str(error.value)


def crowd(count: int) -> rc.Story:
    """A story whose only scene names many characters."""
    characters = [rc.Character(f"Mika {chr(65 + k)}", CAT, "cat") for k in range(count)]
    return rc.Story(characters, [" and ".join(one.name for one in characters)])


def placed(changes: dict[str, int] | None = None, **fields) -> str:
    """A story.json with one scene that has a place."""
    place = {"batch": 1, "row": 0, "slots": 0, "photos": 1, **(changes or {})}
    return json.dumps({"scenes": [{"prompt": "x", "place": place, **fields}]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "needs a list of scenes"),
        ('{"scenes": 3}', "scenes must be list"),
        ('{"scenes": [], "colour": 1}', "unknown key 'colour'"),
        ('{"scenes": [3]}', "scene 1: a scene must be a prompt or a JSON object"),
        ('{"scenes": [{"seed": 3}]}', "scene 1: a scene needs a prompt"),
        ('{"scenes": [{"prompt": "x", "seed": "a"}]}', "scene 1: a scene's seed must be"),
        ('{"scenes": [], "characters": ["../mika"]}', "is not the name of a file of the story"),
        ('{"scenes": [], "characters": ["mika"]}', "there is no character.json"),
        ('{"scenes": [], "version": 99}', "version 99"),
        ('{"scenes": [{"prompt": "x", "place": {"batch": 1}}]}', "place needs batch, row, slots, photos"),
        (placed({"row": 1}), "row 1 is not in"),
        (placed({"batch": 4, "slots": 16, "photos": 16}), "more than 256 photos"),
        (placed({"batch": 5}), "batch must be from 1 to 4"),
        (placed({"slots": 17}), "slots must be from 0 to 16"),
        (placed({"photos": 17}), "photos must be from 1 to 16"),
        ('{"scenes": [], "characters": ["%s"]}' % ("x" * 256), "is not the name of a file of the story"),
        (placed(image="/a.png"), "is not the name of a file"),
    ],
)
def test_damaged_story_raises_one_sentence(tmp_path, content, message):
    (tmp_path / "story.json").write_text(content)
    with pytest.raises(rc.UserError, match=message) as error:
        rc.Story.load(tmp_path)
    assert "\n" not in str(error.value)


def test_foreign_folder_is_not_overwritten(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(rc.UserError, match="holds other files"):
        new_story().save(tmp_path)


def test_zip_without_story_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("a.txt", "a")
    with pytest.raises(rc.UserError, match=r"there is no story\.json"):
        rc.Story.load(tmp_path / "x.zip")
