"""The page in a headless Chromium, by roles and labels."""

import contextlib
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import realcustom_jax as rc

# The server and the browser take two minutes.
pytestmark = pytest.mark.slow

# A folder for the screenshots of docs/studio.md; by default they are thrown away.
SHOTS = os.environ.get("STUDIO_SCREENSHOTS")
UPLOAD = "Drop an image file here to upload"


class Tab:
    """One user's tab; it fails on console errors, and on requests to other hosts."""

    def __init__(self, browser, url: str, width: int = 1400, theme: str = "light"):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, accept_downloads=True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.faults: list[str] = []
        self.page.on("console", lambda line: line.type == "error" and self.faults.append(line.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self._check(request.url, url))
        self.page.goto(f"{url}/?__theme={theme}")
        self.button("Create").wait_for()

    def _check(self, address: str, url: str) -> None:
        if not address.startswith((url, "data:", "blob:")):
            self.faults.append(f"request to {address}")

    def button(self, name: str):
        return self.page.get_by_role("button", name=name, exact=True)

    def open(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def unfold(self, name: str) -> None:
        self.page.get_by_role("button", name=name).first.click()

    def fill(self, label: str, text: str) -> None:
        self.page.get_by_role("textbox", name=label).first.fill(text)

    def says(self, text: str, timeout: float = 60_000) -> None:
        """Wait until a status or an error says something."""
        lines = self.page.get_by_role("status").or_(self.page.get_by_role("alert"))
        lines.filter(has_text=text).first.wait_for(timeout=timeout)

    def upload(self, path: str) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.button(UPLOAD).first.click()
        chooser.value.set_files(path)
        self.button(UPLOAD).first.wait_for(state="hidden")

    def example(self, word: str) -> None:
        self.page.get_by_label("Example for reference 1").click()
        self.page.get_by_role("option", name=word, exact=True).click()
        self.page.locator(f".studio-picture img[src*='{word}.png']").wait_for()

    def pictures(self, label: str) -> list[np.ndarray]:
        """The pixels of the pictures in a gallery."""
        found = self.page.locator(f"[aria-label*='Thumbnail'] img, .{label} img")
        return [pixels(self, found.nth(k).get_attribute("src")) for k in range(found.count())]

    def shot(self, name: str) -> None:
        if SHOTS:
            self.page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
            self.page.wait_for_timeout(300)
            path = Path(SHOTS) / f"studio_{name}.png"
            self.page.screenshot(path=str(path), full_page=True)


def pixels(tab: Tab, source: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(tab.context.request.get(source).body())).convert("RGB"))


@pytest.fixture
def tabs(chromium, studio_url) -> Iterator:
    """Opens tabs, and checks at the end that none had a fault."""
    opened: list[Tab] = []

    def new(**options) -> Tab:
        opened.append(Tab(chromium, studio_url, **options))
        return opened[-1]

    yield new
    for tab in opened:
        with contextlib.suppress(Exception):
            tab.context.close()
    assert [fault for tab in opened for fault in tab.faults] == []


def downloaded(tab: Tab, name: str) -> bytes:
    with tab.page.expect_download() as download:
        tab.button(name).click()
    return Path(download.value.path()).read_bytes()


def no_serious_fault(tab: Tab) -> None:
    """Axe finds none, and nothing sticks out of the page."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    page = tab.page
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    faults = axe.Axe().run(page).response["violations"]
    serious = [fault for fault in faults if fault["impact"] in ("serious", "critical")]
    assert [(fault["id"], [node["html"][:200] for node in fault["nodes"]]) for fault in serious] == []


def made_by_python(word: str, prompt: str, seed: int) -> bytes:
    """The PNG file that Python makes of an example's request; it holds its recipe."""
    photo = io.BytesIO()
    rc.example(word).save(photo, "PNG")
    subject = rc.Subject(photo.getvalue(), word, face=rc.example_face(word))
    return rc.sample(rc.load("toybox"), prompt, [subject], seed, progress=False).png_files()[0]


def test_page_keeps_its_title(tabs):
    """Gradio sets it late, and on a busy machine sometimes not at all."""
    tab = tabs()
    assert tab.page.title() == "realcustom_jax studio"
    tab.page.evaluate("document.title = ''")
    tab.page.wait_for_function("document.title == 'realcustom_jax studio'")


def test_create_shows_progress_masks_and_the_bytes_of_python(tabs):
    tab = tabs()
    tab.example("bird")
    tab.fill("Seed", "9")
    tab.button("Create").click()
    tab.says("sampling: step")
    tab.says("done")
    content = downloaded(tab, "Download image_9.png")
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


def slow(tab: Tab) -> None:
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
        content = downloaded(tab, "Download image_0.png")
        assert content == made_by_python(word, f"a {word} in the snow", 0)
    names = [tab.page.content() for tab in (first, second)]
    assert "a boat in the snow" not in names[0] and "a bird in the snow" not in names[1]
    first.open("Story")
    assert first.page.get_by_role("radio").count() == second.page.get_by_role("radio").count() == 0


def import_story(tab: Tab, path: Path) -> None:
    if not tab.button("Export story").is_visible():
        tab.unfold("Import and export the story")
    with tab.page.expect_file_chooser() as chooser:
        tab.page.get_by_role("button", name="Drop a file here to upload").or_(
            tab.page.get_by_role("button", name="Click to upload or drop files")
        ).last.click()
    chooser.value.set_files(str(path))


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
        import_story(opened[-1], path)
        opened[-1].says("2 scenes are imported")
    for tab in opened:
        tab.button("Generate all").click()
    pipe = rc.load("toybox")
    for tab, own, other in zip(opened, stories, ("Pico", "Zora"), strict=True):
        tab.says("done")
        made = exported(tab, tmp_path / "made.zip")
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
    no_serious_fault(tab)
    tab.shot("story")
    first = exported(tab, tmp_path / "first.zip")
    tab.page.get_by_role("radio", name="Mika and Bolt").check()
    tab.button("Re-roll the scene").click()
    tab.says("sampling")
    tab.says("done")
    second = exported(tab, tmp_path / "second.zip")
    same = [
        np.array_equal(a.samples.images, b.samples.images)
        for a, b in zip(first.pages, second.pages, strict=True)
    ]
    assert same == [True, False] and [one.name for one in second.characters] == ["Mika", "Bolt"]
    tab.button("Move up").click()
    tab.says("it is scene 1 now")
    import_story(tab, tmp_path / "first.zip")
    tab.says("2 scenes are imported")
    assert "Mika on the beach" in tab.page.get_by_role("radio").first.locator("xpath=..").inner_text()


def exported(tab: Tab, path: Path) -> rc.Story:
    """Export the story, and read the zip."""
    if not tab.button("Export story").is_visible():
        tab.unfold("Import and export the story")
    tab.button("Export story").click()
    tab.says("the files are below")
    link = (
        tab.page.get_by_role("link", name="story.zip").or_(tab.page.locator("a[download='story.zip']")).first
    )
    path.write_bytes(tab.context.request.get(link.get_attribute("href")).body())
    return rc.Story.load(path)


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


def reach(tab: Tab, name: str, kind: str) -> None:
    """Press Tab until an element of that kind (a role or an HTML tag) and of that name has the focus."""
    here = """() => {
        const at = document.activeElement;
        const name = at.ariaLabel || at.labels?.[0]?.innerText || at.innerText || "";
        return [(at.role || at.tagName).toLowerCase(), name.trim()];
    }"""
    for _ in range(120):
        tab.page.keyboard.press("Tab")
        found, text = tab.page.evaluate(here)
        if found == kind and (text == name if kind == "button" else name in text):
            return
    raise AssertionError(f"the key Tab does not reach {kind} {name!r}")


def press(tab: Tab, name: str, kind: str = "button") -> None:
    """Reach an element with the key Tab, and press Enter."""
    reach(tab, name, kind)
    tab.page.keyboard.press("Enter")


def test_keyboard_alone_creates_an_image(tabs):
    tab = tabs()
    press(tab, "Create")
    tab.says("done")


def upload_by_keys(tab: Tab, path: str) -> None:
    with tab.page.expect_file_chooser() as chooser:
        press(tab, UPLOAD)
    chooser.value.set_files(path)
    tab.button(UPLOAD).first.wait_for(state="hidden")


def test_keyboard_alone_tells_a_story(tabs, bird_file):
    tab = tabs()
    keys = tab.page.keyboard
    press(tab, "Story", "tab")
    upload_by_keys(tab, bird_file)
    for label, text in (("Name", "Mika"), ("Word", "bird")):
        reach(tab, label, "input")
        keys.type(text)
    press(tab, "Save character")
    tab.says("Mika is saved")
    reach(tab, "Scene", "textarea")
    keys.type("Mika on the beach")
    press(tab, "Add scene")
    tab.says("the scene is added")
    press(tab, "Generate all")
    tab.says("done")


def test_keyboard_alone_looks_inside(tabs, bird_file):
    tab = tabs()
    keys = tab.page.keyboard
    press(tab, "Inspect", "tab")
    upload_by_keys(tab, bird_file)
    press(tab, "Inspect")
    tab.says("done: move the slider")
    reach(tab, "Step", "input")
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
        no_serious_fault(tab)


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
    no_serious_fault(tab)
    tab.fill("Seed", "x")
    tab.button("Create").click()
    tab.says("the seed")
    no_serious_fault(tab)
    tab.open("Inspect")
    tab.upload(bird_file)
    tab.button("Inspect").click()
    tab.says("Step 25 of 25")
    tab.page.get_by_alt_text("Word map", exact=True).wait_for()
    no_serious_fault(tab)
