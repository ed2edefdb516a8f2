"""Damaged and unexpected files of data sets and sources: a one-line error, or counted as broken."""

import json
import os
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from realcustom_jax.common.errors import UserError
from realcustom_jax.data.encoded import read_info
from realcustom_jax.data.image_text import open_split
from realcustom_jax.data.prepare import __main__ as command
from realcustom_jax.data.prepare.__main__ import prepare
from realcustom_jax.data.prepare.recipe import Recipe

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("sources.py"))))
PICTURE = common.encode(common.picture(0, 20, 16))

# Damaged or unexpected contents of a JSON file.
DAMAGED = {
    "nothing": b"", "binary": bytes(range(256)), "half": b'{"a": [1, 2', "null": b"null", "number": b"3",
    "list": b"[]", "text": b'"x"', "empty": b"{}", "deep": b"[" * 100_000 + b"]" * 100_000, "nan": b"NaN",
    "long number": b"9" * 5000,
    "wrong types": b'{"vae": 1, "shapes": 2, "examples": "x", "part": [], "report": {}}',
    "absurd": b'{"vae": "", "shapes": [["a", null]], "examples": 1e99, "text": []}',
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    samples = [{"jpg": PICTURE, "txt": b"a cat"} for _ in range(3)]
    common.write_tar(folder / "0.tar", samples)
    return folder


@pytest.fixture(scope="module")
def written(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    prepare([str(source)], folder / "data", Recipe())
    return folder / "data"


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_damaged_data_set_description_raises(written, tmp_path, name, damage):
    copy = Path(shutil.copytree(written, tmp_path / "data"))
    (copy / "image_text" / "1.0.0" / name).write_bytes(DAMAGED[damage])
    # A description that is valid JSON of another content may hold no split at all.
    message = "is damaged or of another kind" + (
        "|has no split 'train'" if name == "dataset_info.json" else ""
    )
    with pytest.raises(UserError, match=message) as error:
        open_split(copy, "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"x" * 100, bytes(70_000)])
def test_damaged_records_or_sizes_raise(written, tmp_path, content):
    copy = Path(shutil.copytree(written, tmp_path / "data")) / "image_text" / "1.0.0"
    sizes = copy / "sizes-train.npy"
    sizes.write_bytes(content)
    split = open_split(copy.parents[1], "train")
    with pytest.raises(UserError, match=r"sizes-train\.npy' is damaged"):
        split.sizes()
    next(copy.glob("*.array_record*")).write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        open_split(copy.parents[1], "train")


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_latents_info_raises(tmp_path, damage):
    (tmp_path / "encoded.json").write_bytes(DAMAGED[damage])
    with pytest.raises(UserError, match=r"encoded\.json' is damaged"):
        read_info(tmp_path)


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", ["job.json", "part-000000.json"])
def test_damaged_intermediate_files_are_rebuilt(source, written, tmp_path, name, damage):
    work = tmp_path / "data" / "image_text" / "1.0.0.incomplete"
    work.mkdir(parents=True)
    (work / name).write_bytes(DAMAGED[damage])
    report = prepare([str(source)], tmp_path / "data", Recipe())
    assert report.count == 3 and len(open_split(tmp_path / "data", "train")) == 3


def lines_of(folder: Path) -> list[bytes]:
    """Invalid lines of a .jsonl file; none of them may give an example."""
    outside = ("../secret.jpg", str(folder / "secret.jpg"), "a/../../secret.jpg", "/etc/passwd")
    names = (
        *outside,
        "pipe.jpg",
        "",
        ".",
        "x" * 5000,
        "a\0b",
        3,
        None,
        [],
        {"path": "a.jpg"},
        True,
        "/dev/zero",
    )
    with_bad_names = [json.dumps({"file_name": name, "text": "a cat"}).encode() for name in names]
    captions = (None, 3, "", "  ", [], "\ud800")
    with_bad_captions = [json.dumps({"file_name": "good.jpg", "text": text}).encode() for text in captions]
    return (
        with_bad_names
        + with_bad_captions
        + [content.replace(b"\n", b" ") or b"{" for content in DAMAGED.values()]
    )


def test_invalid_jsonl_lines_are_counted_as_broken(tmp_path):
    """Files outside the folder are not read, a pipe does not block, and every line is counted."""
    folder = tmp_path / "inside"
    folder.mkdir()
    (tmp_path / "secret.jpg").write_bytes(PICTURE)
    (folder / "good.jpg").write_bytes(PICTURE)
    os.mkfifo(folder / "pipe.jpg")
    lines = lines_of(folder)
    good = json.dumps({"file_name": "./good.jpg", "text": "a cat"}).encode()
    (folder / "captions.jsonl").write_bytes(b"\n".join([*lines, good]))
    report = prepare([str(folder)], tmp_path / "data", Recipe(), max_bad_share=1.0)
    assert report.count == 1 and report.bad == len(lines) >= 30
    assert report.dropped["outside"] == 5  # with /dev/zero
    assert open_split(tmp_path / "data", "train")[0]["key"].endswith(f"/{len(lines) + 1}")


def test_parquet_paths_outside_folder_are_dropped(tmp_path):
    folder = tmp_path / "inside"
    folder.mkdir()
    for place in (tmp_path / "secret.jpg", folder / "good.jpg"):
        place.write_bytes(PICTURE)
    cells = [
        {"bytes": None, "path": path} for path in ("../secret.jpg", "/etc/passwd", "good.jpg", "a\0b", "")
    ]
    table = pa.table({"image": cells, "caption": ["a cat"] * len(cells)})
    pq.write_table(table, folder / "0.parquet")
    report = prepare([str(folder)], tmp_path / "data", Recipe(), max_bad_share=1.0)
    assert report.count == 1 and report.dropped == {"outside": 2, "no_image": 2}


@pytest.mark.parametrize("damage", DAMAGED)
def test_invalid_metadata_makes_example_broken(tmp_path, damage):
    """Metadata is kept if it is a JSON object, else the example is broken."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(PICTURE)
    (folder / "a.txt").write_text("a cat")
    (folder / "a.json").write_bytes(DAMAGED[damage])
    (folder / "b.jpg").write_bytes(PICTURE)
    (folder / "b.txt").write_text("a dog")
    report = prepare([str(folder)], tmp_path / "data", Recipe(), max_bad_share=1.0)
    whole = damage in ("empty", "wrong types", "absurd")
    assert report.count == 1 + whole and report.bad == 1 - whole
    assert all(
        isinstance(open_split(tmp_path / "data", "train")[i]["metadata"], dict) for i in range(1 + whole)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", ""], "a source is empty"),
        (["--source", " "], "a source is empty"),
        (["--source", "{source}", "--source", ""], "a source is empty"),
        (["--source", "{source}", "--source", "nowhere"], "'nowhere' does not exist"),
        (["--source", "{source}", "--image-key", "x"], "--image-key is for .jsonl and parquet, but "),
        (
            ["--source", "{source}", "--aesthetic-key", "x"],
            "--aesthetic-key names the score",
        ),
        (["--source", "{source}", "--format", "png", "--quality", "5"], "--quality is for jpeg and webp"),
        (["--source", "{source}", "--workers", "1000000"], "at most 4096"),
        (["--source", "{source}", "--min-aesthetic", "nan"], "must be a number"),
        (["--source", "{source}", "--validation", "nan"], "between 0 and 1"),
        (["--source", "{source}", "--max-aspect", "0.5"], "must be a number of at least 1"),
        (["--source", "{source}", "--min-side", "-1"], "at least 1"),
        (["--source", "{source}", "--data-dir", ""], "--data-dir is empty"),
    ],
)
def test_invalid_options_give_one_line_error(source, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    given = [argument.format(source=source) for argument in arguments]
    with pytest.raises(SystemExit) as stop:
        command.main(["--data-dir", str(tmp_path / "data"), *given])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
