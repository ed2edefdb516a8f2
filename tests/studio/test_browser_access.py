"""The page for everyone: keyboard alone, axe, narrow and dark, in a headless Chromium."""

import pytest

# The server and the browser take two minutes.
pytestmark = pytest.mark.slow


def test_page_keeps_its_title(tabs):
    """Gradio sets it late, and on a busy machine sometimes not at all."""
    tab = tabs()
    assert tab.page.title() == "realcustom_jax studio"
    tab.page.evaluate("document.title = ''")
    tab.page.wait_for_function("document.title == 'realcustom_jax studio'")


def test_keyboard_alone_creates_an_image(tabs):
    tab = tabs()
    tab.press("Create")
    tab.says("done")


def test_keyboard_alone_tells_a_story(tabs, bird_file):
    tab = tabs()
    keys = tab.page.keyboard
    tab.press("Story", "tab")
    tab.upload_by_keys(bird_file)
    for label, text in (("Name", "Mika"), ("Word", "bird")):
        tab.reach(label, "input")
        keys.type(text)
    tab.press("Save character")
    tab.says("Mika is saved")
    tab.reach("Scene", "textarea")
    keys.type("Mika on the beach")
    tab.press("Add scene")
    tab.says("the scene is added")
    tab.press("Generate all")
    tab.says("done")


def test_keyboard_alone_looks_inside(tabs, bird_file):
    tab = tabs()
    keys = tab.page.keyboard
    tab.press("Inspect", "tab")
    tab.upload_by_keys(bird_file)
    tab.press("Inspect")
    tab.says("done: move the slider")
    tab.reach("Step", "input")
    keys.press("ArrowDown")
    tab.says("Step 24 of 25")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_axe_finds_no_serious_fault_and_nothing_sticks_out(tabs, width, theme):
    tab = tabs(width=width, theme=theme)
    for name in ("Create", "Story", "Inspect"):
        tab.open(name)
        folded = tab.page.locator("button.label-wrap:not(.open):visible")
        while folded.count():  # opening one may show others
            folded.first.click()
            tab.page.wait_for_timeout(50)
        tab.no_serious_fault()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_axe_finds_no_serious_fault_in_results_and_errors(tabs, bird_file, width, theme):
    tab = tabs(width=width, theme=theme)
    tab.example("bird")
    tab.button("Create").click()
    tab.says("done")
    tab.page.get_by_role("checkbox", name="Masks").check()
    tab.page.wait_for_function("[...document.querySelectorAll('img')].some(e => e.src.includes('_masks'))")
    tab.page.get_by_alt_text("seed 0 · bird", exact=True).wait_for()
    tab.no_serious_fault()
    tab.fill("Seed", "x")
    tab.button("Create").click()
    tab.says("the seed")
    tab.no_serious_fault()
    tab.open("Inspect")
    tab.upload(bird_file)
    tab.button("Inspect").click()
    tab.says("Step 25 of 25")
    tab.page.get_by_alt_text("Word map", exact=True).wait_for()
    tab.no_serious_fault()
