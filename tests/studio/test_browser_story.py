"""The tab Story in a headless Chromium: characters, scenes, files, two users."""

import numpy as np
import pytest

import realcustom_jax as rc

# The server and the browser take two minutes.
pytestmark = pytest.mark.slow


def test_two_users_tell_their_own_stories(tabs, tmp_path):
    """At the same time, and neither sees the other's names."""
    stories, opened = [], []
    for name, word in (("Zora", "bird"), ("Pico", "boat")):
        character = rc.Character(name, rc.example(word), word)
        prompts = [f"{name} on the beach", f"{name} in the snow"]
        stories.append(rc.Story([character], prompts, seed=3, options={"steps": 4, "mask_steps": 2}))
        path = stories[-1].save(tmp_path / f"{name}.zip")
        opened.append(tabs())
        opened[-1].open("Story")
        opened[-1].import_story(path)
        opened[-1].says("2 scenes are imported")
    for tab in opened:
        tab.button("Generate all").click()
    pipe = rc.load("toybox")
    for tab, own, other in zip(opened, stories, ("Pico", "Zora"), strict=True):
        tab.says("done")
        made = tab.exported(tmp_path / "made.zip")
        own.generate(pipe, progress=False)
        pairs = zip(made.pages, own.pages, strict=True)
        assert all(a.samples.png_files() == b.samples.png_files() for a, b in pairs)
        assert other not in tab.page.content()


def test_story_of_an_upload_and_a_description(tabs, bird_file, tmp_path):
    tab = tabs()
    tab.open("Story")
    tab.upload(bird_file)
    tab.fill("Name", "Mika")
    tab.fill("Word What", "bird")
    tab.button("Save character").click()
    tab.says("Mika is saved")
    tab.fill("Name", "Bolt")
    tab.fill("Word What", "robot")
    tab.fill("Description", "a blue robot")
    tab.unfold("No picture?")
    tab.button("Make candidates").click()
    tab.says("choose a candidate")
    tab.button("Thumbnail 2 of 4").click()
    tab.says("the candidate is the picture now")
    tab.unfold("No picture?")
    tab.button("Save character").click()
    tab.says("Bolt is saved")
    for prompt in ("Mika on the beach", "Mika and Bolt in the snow"):
        tab.page.get_by_role("textbox", name="Scene", exact=True).fill(prompt)
        tab.button("Add scene").click()
        tab.page.get_by_role("radio", name=prompt).wait_for()
    tab.button("Generate all").click()
    tab.says("done")
    tab.no_serious_fault()
    tab.shot("story")
    first = tab.exported(tmp_path / "first.zip")
    tab.page.get_by_role("radio", name="Mika and Bolt").check()
    tab.button("Re-roll the scene").click()
    tab.says("sampling")
    tab.says("done")
    second = tab.exported(tmp_path / "second.zip")
    same = [
        np.array_equal(a.samples.images, b.samples.images)
        for a, b in zip(first.pages, second.pages, strict=True)
    ]
    assert same == [True, False] and [one.name for one in second.characters] == ["Mika", "Bolt"]
    tab.button("Move up").click()
    tab.says("it is scene 1 now")
    tab.import_story(tmp_path / "first.zip")
    tab.says("2 scenes are imported")
    assert "Mika on the beach" in tab.page.get_by_role("radio").first.locator("xpath=..").inner_text()


def standing(element) -> dict[str, float]:
    """The box of an element, after it did not change for half a second."""
    element.wait_for()
    for _ in range(100):
        before = element.bounding_box()
        element.page.wait_for_timeout(500)
        if before is not None and before == element.bounding_box():
            return before
    raise AssertionError("the element keeps moving")


def test_face_is_drawn_by_two_clicks(tabs, bird_file):
    tab = tabs()
    tab.open("Story")
    tab.upload(bird_file)
    tab.unfold("Face and strength")
    drawn = tab.page.locator(".studio-picture img").last
    for share in (0.25, 0.75):
        # Its own opening, and hints about the upload, may still resize and move the picture.
        box = standing(drawn)
        side = min(box["width"], box["height"])
        at = {"x": (box["width"] - side) / 2 + share * side, "y": (box["height"] - side) / 2 + share * side}
        drawn.click(position=at)
        tab.says("one corner is set" if share == 0.25 else "the face is set")
    sides = tab.page.get_by_role("textbox", name="Face box of the character").input_value()
    assert np.abs(np.asarray(list(map(float, sides.split(",")))) - (16, 16, 48, 48)).max() <= 1
