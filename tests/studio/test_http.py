"""The endpoints over HTTP: the same bytes as from Python, and that only this page's files are served."""

import json
import os
import runpy
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import realcustom_jax as rc

gradio_client = pytest.importorskip("gradio_client", reason="the page needs Gradio: the extra studio")
uploads = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("hostile_uploads.py"))))

# It takes a minute to serve and compile.
pytestmark = pytest.mark.slow

FEW = {"steps": 2, "mask_steps": 2}


@pytest.fixture(scope="module")
def client(studio_url, tmp_path_factory):
    folder = tmp_path_factory.mktemp("client")
    return gradio_client.Client(studio_url, verbose=False, download_files=str(folder))


@pytest.fixture(scope="module")
def toybox() -> rc.Pipeline:
    return rc.load("toybox")


def test_create_gives_the_bytes_of_python(client, toybox, bird_file):
    word = {"word": "bird", "face": [10, 10, 40, 40], "face_strength": 0.5}
    files, words = client.predict(
        "a bird on the beach", [gradio_client.handle_file(bird_file)], [word], "7", 2, "rain", FEW,
        api_name="/create",
    )  # fmt: skip
    subject = rc.Subject(Path(bird_file).read_bytes(), "bird", face=(10, 10, 40, 40), face_strength=0.5)
    out = rc.sample(
        toybox, "a bird on the beach", [subject], [7, 8], negative_prompt="rain", progress=False, **FEW
    )
    assert [Path(file).read_bytes() for file in files] == out.png_files()
    assert words == [[["bird"]], [["bird"]]]


def test_story_gives_the_bytes_of_python_and_rerolls_one(client, toybox, bird_file, tmp_path):
    mika = rc.Character("Mika", bird_file, "bird")
    story = rc.Story([mika], ["Mika on the beach", "Mika in the snow"], seed=3, options=FEW)
    sent = story.save(tmp_path / "story.zip")
    made = client.predict(gradio_client.handle_file(str(sent)), api_name="/story")
    own = rc.Story.load(sent)
    own.generate(toybox, progress=False)
    again = rc.Story.load(made)
    pairs = zip(again.pages, own.pages, strict=True)
    assert all(a.samples.png_files() == b.samples.png_files() for a, b in pairs)
    rolled = rc.Story.load(client.predict(gradio_client.handle_file(made), 2, api_name="/story"))
    assert [scene.seed for scene in rolled.scenes] == [3, 1004]
    np.testing.assert_array_equal(rolled.pages[0].samples.images, own.pages[0].samples.images)


def test_inspect_gives_every_step(client, toybox, bird_file):
    picture = gradio_client.handle_file(bird_file)
    customized, _, steps = client.predict(
        "a bird on the beach", [picture], ["bird"], "7", FEW, api_name="/inspect"
    )
    subject = rc.Subject(Path(bird_file).read_bytes(), "bird")
    found = rc.inspect(toybox, "a bird on the beach", [subject], 7, progress=False, **FEW)
    assert Path(customized).read_bytes() == found.customized.png_files()[0]
    np.testing.assert_allclose(steps["word_maps"], found.word_maps, atol=1e-4)  # rounded to 4 digits
    np.testing.assert_array_equal(steps["kept"], found.kept)


def test_only_these_endpoints_have_names(client):
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/create", "/story", "/inspect"}


def answer(url: str, body: bytes | None = None) -> tuple[int, str]:
    """Status and text of an answer."""
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("utf-8", "replace")


def test_files_of_the_machine_are_not_served(studio_url):
    here = Path(__file__).resolve()
    for path in (
        "/etc/passwd",
        here,
        here.parents[2] / "README.md",
        "../../etc/passwd",
        os.path.expanduser("~"),
    ):
        status, text = answer(f"{studio_url}/gradio_api/file={path}")
        assert status in (403, 404) and "root:" not in text


@pytest.mark.parametrize("path", ["http://example.org/cat.png", "https://example.org/cat.png", "ftp://x/y"])
def test_files_of_other_hosts_are_not_loaded(studio_url, path):
    """In any field, because Gradio would load it there too."""
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    for data in ([file], [[file]], [{"words": [file]}]):
        status, text = answer(f"{studio_url}/gradio_api/call/create", json.dumps({"data": data}).encode())
        assert status == 400 and json.loads(text)["detail"].startswith("a picture must be uploaded")


def test_all_files_are_below_the_folder(studio_url, studio_folder, client, bird_file):
    client.predict("a bird", [gradio_client.handle_file(bird_file)], [], "1", 1, "", FEW, api_name="/create")
    assert list((studio_folder / "out" / "results").glob("*/image_1.png"))
    assert list((studio_folder / "out").rglob("bird.png"))


def test_hostile_requests_are_one_sentence_each_and_then_work_goes_on(client, bird_file, tmp_path):
    good = gradio_client.handle_file(bird_file)
    requests: list[tuple[str, list]] = [
        ("/create", [text, [good], ["bird"]]) for text in ("", "x" * 10_000, 5)
    ]
    for path in uploads.broken_pictures(tmp_path).values():
        requests.append(("/create", ["a bird", [gradio_client.handle_file(path)], ["bird"]]))
    requests += [("/create", ["a bird", [good], words]) for words in (["dragon"], 5, [5], ["bird", "boat"])]
    requests += [("/create", ["a bird", [good], ["bird"], seed]) for seed in ("-1", "x", str(2**64))]
    requests += [("/create", ["a bird", [good], ["bird"], "0", count]) for count in (0, 99, 1.5)]
    requests += [
        ("/create", ["a bird", [{"path": path, "meta": {"_type": "gradio.FileData"}}]])
        for path in ("/etc/passwd", "../../etc/passwd")
    ]
    requests += [("/inspect", ["a bird", [], []]), ("/story", [None]), ("/story", [good])]
    requests += [("/inspect", [text, [good], ["bird"]]) for text in ("", "x" * 10_000, 5)]
    requests += [("/inspect", ["a bird", [good], words]) for words in (["dragon"], 5, [5], ["bird", "boat"])]
    for _, path in uploads.stories(tmp_path):
        requests.append(("/story", [gradio_client.handle_file(path)]))
    assert len(requests) >= 200
    for endpoint, values in requests:
        with pytest.raises(Exception) as error:
            client.predict(*values, api_name=endpoint)
        text = str(error.value).strip()
        assert text and "\n" not in text and "Traceback" not in text and "unexpected error" not in text, (
            values
        )
    files, _ = client.predict("a bird", [good], ["bird"], "0", 1, "", FEW, api_name="/create")
    assert Path(files[0]).read_bytes().startswith(b"\x89PNG")


def test_large_uploads_are_refused(client, tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(bytes(9 * 2**20))  # the server of the tests takes 8 MB
    with pytest.raises(Exception, match=r"413|size|large|exceed"):
        client.predict("a bird", [gradio_client.handle_file(str(path))], ["bird"], api_name="/create")
