"""A studio that serves the toybox, for the tests over HTTP and in a browser."""

import contextlib
import os
import runpy
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import realcustom_jax as rc

Tab = runpy.run_path(str(Path(__file__).with_name("browser_tab.py")))["Tab"]


@pytest.fixture(scope="session")
def studio_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("studio")


@pytest.fixture(scope="session")
def studio_url(studio_folder):
    """The address of a running studio, which is ready; its log is shown if it ends early."""
    pytest.importorskip("gradio", reason="the page needs Gradio: the extra studio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = studio_folder / "log.txt"
    command = [sys.executable, "-m", "realcustom_jax.studio", "--port", str(port), "--max-upload", "8"]
    with log.open("wb") as file:
        server = subprocess.Popen(
            [*command, "--out", str(studio_folder / "out")], stdout=file, stderr=file, env=os.environ
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert server.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="session")
def bird_file(tmp_path_factory) -> str:
    """The toybox's example of a bird."""
    path = tmp_path_factory.mktemp("photos") / "bird.png"
    rc.example("bird").save(path)
    return str(path)


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium of the system."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need Playwright")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    flags = (
        "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
        "--disable-sync --no-first-run"
    )
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=flags.split())
        yield browser
        browser.close()


@pytest.fixture
def tabs(chromium, studio_url) -> Iterator:
    """Opens tabs, and checks at the end that none had a fault."""
    opened = []

    def new(**options):
        opened.append(Tab(chromium, studio_url, **options))
        return opened[-1]

    yield new
    for tab in opened:
        with contextlib.suppress(Exception):
            tab.context.close()
    assert [fault for tab in opened for fault in tab.faults] == []
