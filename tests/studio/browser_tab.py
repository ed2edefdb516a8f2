"""One user's tab in a headless Chromium, by roles and labels."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import realcustom_jax as rc

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
        self.page.on("pageerror", lambda error: self.faults.append(error.stack or str(error)))
        self.page.on("request", lambda request: self._check(request.url, url))
        self.page.goto(f"{url}/?__theme={theme}")
        self.button("Create").wait_for()
        # The page's first event ends last. Until then, Gradio is still making components, and fails in its
        # own code when the key Tab comes to one of them.
        self.page.wait_for_function(
            "performance.getEntriesByType('resource').some(entry => entry.name.includes('/queue/data'))"
        )

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
        return [self.pixels(found.nth(k).get_attribute("src")) for k in range(found.count())]

    def shot(self, name: str) -> None:
        if SHOTS:
            self.page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
            self.page.wait_for_timeout(300)
            path = Path(SHOTS) / f"studio_{name}.png"
            self.page.screenshot(path=str(path), full_page=True)

    def pixels(self, source: str) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(self.context.request.get(source).body())).convert("RGB"))

    def downloaded(self, name: str) -> bytes:
        with self.page.expect_download() as download:
            self.button(name).click()
        return Path(download.value.path()).read_bytes()

    def _show_export(self) -> None:
        if not self.button("Export story").is_visible():
            self.unfold("Import and export the story")

    def import_story(self, path: Path) -> None:
        self._show_export()
        with self.page.expect_file_chooser() as chooser:
            self.page.get_by_role("button", name="Drop a file here to upload").or_(
                self.page.get_by_role("button", name="Click to upload or drop files")
            ).last.click()
        chooser.value.set_files(str(path))

    def exported(self, path: Path) -> rc.Story:
        """Export the story, and read the zip."""
        self._show_export()
        self.button("Export story").click()
        self.says("the files are below")
        link = (
            self.page.get_by_role("link", name="story.zip")
            .or_(self.page.locator("a[download='story.zip']"))
            .first
        )
        path.write_bytes(self.context.request.get(link.get_attribute("href")).body())
        return rc.Story.load(path)

    def no_serious_fault(self) -> None:
        """Axe finds none, and nothing sticks out of the page."""
        axe = pytest.importorskip(
            "axe_playwright_python.sync_playwright", reason="needs axe-playwright-python"
        )
        page = self.page
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
        faults = axe.Axe().run(page).response["violations"]
        serious = [fault for fault in faults if fault["impact"] in ("serious", "critical")]
        assert [(fault["id"], [node["html"][:200] for node in fault["nodes"]]) for fault in serious] == []

    def reach(self, name: str, kind: str) -> None:
        """Press Tab until an element of that kind (a role or an HTML tag) and of that name has the focus."""
        here = """() => {
            const at = document.activeElement;
            const name = at.ariaLabel || at.labels?.[0]?.innerText || at.innerText || "";
            return [(at.role || at.tagName).toLowerCase(), name.trim()];
        }"""
        for _ in range(120):
            self.page.keyboard.press("Tab")
            found, text = self.page.evaluate(here)
            if found == kind and (text == name if kind == "button" else name in text):
                return
        raise AssertionError(f"the key Tab does not reach {kind} {name!r}")

    def press(self, name: str, kind: str = "button") -> None:
        """Reach an element with the key Tab, and press Enter."""
        self.reach(name, kind)
        self.page.keyboard.press("Enter")

    def upload_by_keys(self, path: str) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.press(UPLOAD)
        chooser.value.set_files(path)
        self.button(UPLOAD).first.wait_for(state="hidden")
