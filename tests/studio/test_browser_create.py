"""The tabs Create and Inspect in a headless Chromium: images, progress, stop, two users."""

import io
import time

import numpy as np
import pytest

import realcustom_jax as rc

# The server and the browser take two minutes.
pytestmark = pytest.mark.slow


def made_by_python(word: str, prompt: str, seed: int) -> bytes:
    """The PNG file that Python makes of an example's request; it holds its recipe."""
    photo = io.BytesIO()
    rc.example(word).save(photo, "PNG")
    subject = rc.Subject(photo.getvalue(), word, face=rc.example_face(word))
    return rc.sample(rc.load("toybox"), prompt, [subject], seed, progress=False).png_files()[0]


def test_create_shows_progress_masks_and_the_bytes_of_python(tabs):
    tab = tabs()
    tab.example("bird")
    tab.fill("Seed", "9")
    tab.button("Create").click()
    tab.says("sampling: step")
    tab.says("done")
    content = tab.downloaded("Download image_9.png")
    assert content == made_by_python("bird", "a bird on the beach", 9)
    plain = tab.pictures("studio-images")
    tab.page.get_by_role("checkbox", name="Masks").check()
    tab.page.wait_for_function("[...document.querySelectorAll('img')].some(e => e.src.includes('_masks'))")
    masked = tab.pictures("studio-images")
    assert any(not np.array_equal(a, b) for a, b in zip(plain, masked, strict=True))
    tab.shot("create")
    tab.page.get_by_role("checkbox", name="Masks").uncheck()
    tab.button("Use as reference 1").click()
    tab.says("the image is reference 1 now")


def test_typed_mistakes_are_one_sentence_and_words_are_proposed(tabs):
    tab = tabs()
    from playwright.sync_api import expect  # `tabs` skips the test without it

    tab.fill("Prompt", "a bird and a house")
    tab.example("bird")
    tab.fill("Word of reference 1", "")
    tab.button("Propose words").click()
    tab.says("words proposed")
    assert tab.page.get_by_role("textbox", name="Word of reference 1").input_value() == "bird"
    tab.fill("Prompt", "on the beach at sunset")
    tab.fill("Word of reference 1", "")
    tab.button("Propose words").click()
    expect(tab.page.get_by_role("textbox", name="Prompt").first).to_have_value(
        "a bird on the beach at sunset"
    )
    tab.fill("Word of reference 1", "dragon")
    tab.button("Create").click()
    tab.says("dragon")
    tab.fill("Word of reference 1", "bird")
    tab.fill("Seed", "minus one")
    tab.button("Create").click()
    tab.says("the seed must be a whole number")


def test_live_draws_while_one_types(tabs):
    tab = tabs()
    tab.page.get_by_role("checkbox", name="Live").check()
    tab.says("done")
    prompt = tab.page.get_by_role("textbox", name="Prompt").first
    prompt.press("End")
    prompt.press_sequentially(" at sunset", delay=20)
    tab.page.get_by_text("a bird on the beach at sunset", exact=True).last.wait_for()


def slow(tab) -> None:
    """Begin a request of many steps."""
    tab.unfold("Advanced")
    tab.page.get_by_role("spinbutton", name="Steps", exact=True).fill("1000")
    tab.button("Create").click()
    tab.says("of 1000", timeout=240_000)  # it compiles


def test_stop_ends_the_work_within_a_step(tabs):
    tab = tabs()
    slow(tab)
    begun = time.monotonic()
    tab.button("Stop").click()
    tab.says("stopped")
    assert time.monotonic() - begun < 5
    tab.page.get_by_role("spinbutton", name="Steps", exact=True).fill("25")
    tab.button("Create").click()
    tab.says("done")


def test_closed_tab_frees_its_place(tabs):
    first, second = tabs(), tabs()
    slow(first)
    second.button("Create").click()
    second.says("waiting: 1 request first")
    first.context.close()
    second.says("done", timeout=20_000)


def test_two_users_get_their_own_images(tabs):
    first, second = tabs(), tabs()
    for tab, word in ((first, "bird"), (second, "boat")):
        tab.example(word)
        tab.fill("Prompt", f"a {word} in the snow")
        tab.button("Create").click()
    for tab, word in ((first, "bird"), (second, "boat")):
        tab.says("done")
        tab.page.get_by_text(f"a {word} in the snow", exact=True).last.wait_for()
        content = tab.downloaded("Download image_0.png")
        assert content == made_by_python(word, f"a {word} in the snow", 0)
    names = [tab.page.content() for tab in (first, second)]
    assert "a boat in the snow" not in names[0] and "a bird in the snow" not in names[1]
    first.open("Story")
    assert first.page.get_by_role("radio").count() == second.page.get_by_role("radio").count() == 0


def test_inspect_shows_each_step(tabs, bird_file):
    tab = tabs()
    tab.open("Inspect")
    tab.upload(bird_file)
    tab.button("Inspect").click()
    tab.says("done: move the slider")
    tab.says("Step 25 of 25. “bird” may act in 25% of the image")
    tab.shot("inspect")
    slider = tab.page.get_by_role("slider", name="Step")
    slider.focus()
    slider.press("ArrowLeft")
    tab.says("Step 24 of 25")
