"""Every kind of source gives the same examples; a broken one is reported and does not stop the others."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from realcustom_jax.common.errors import UserError
from realcustom_jax.data.prepare import sources
from realcustom_jax.data.prepare.raw import Raw
from realcustom_jax.data.prepare.sources import Names, expand_braces, list_parts, read_part

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("sources.py"))))
encode, picture, sample, write_tar = common.encode, common.picture, common.sample, common.write_tar


def read(*given: str | Path, **names) -> list[Raw]:
    return [raw for part in list_parts([str(x) for x in given]) for raw in read_part(part, Names(**names))]


def assert_samples(raws: list[Raw], count: int) -> None:
    assert len({raw.key for raw in raws}) == count == len(raws)
    for i, raw in enumerate(raws):
        assert raw.problem is None
        assert (raw.image, raw.caption) == (encode(picture(i)), f"caption of {i}")
        assert raw.metadata["number"] == i


def test_tar_shards_are_read_in_order(tmp_path):
    write_tar(tmp_path / "00000.tar", [sample(i) for i in range(3)])
    write_tar(tmp_path / "00001.tar", [sample(i) for i in range(3, 5)], first=3)
    (tmp_path / "00000.parquet").write_bytes(b"what img2dataset puts beside the shard")
    assert_samples(read(tmp_path), 5)
    assert [raw.key for raw in read(tmp_path)][2:4] == ["00000/0002", "00001/0003"]
    by_pattern = read(tmp_path / "0000{0..1}.tar")
    assert by_pattern == read(tmp_path) == read(tmp_path / "*.tar")


def test_sources_with_equal_file_names_get_distinct_keys(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "0.tar", [sample(0)])
    assert [raw.key for raw in read(tmp_path / "a", tmp_path / "b")] == ["0-0/0000", "1-0/0000"]


def test_caption_comes_from_text_file_then_json(tmp_path):
    image, both = encode(picture(0)), json.dumps({"caption": "from json", "alt": "other"}).encode()
    write_tar(tmp_path / "0.tar", [{"jpg": image, "json": both}, {"jpg": image, "json": both, "txt": b"txt"}])
    assert [raw.caption for raw in read(tmp_path)] == ["from json", "txt"]
    assert [raw.caption for raw in read(tmp_path, caption="alt")] == ["other", "txt"]


def test_truncated_shard_gives_complete_examples(tmp_path):
    path = write_tar(tmp_path / "0.tar", [sample(i) for i in range(4)])
    content = path.read_bytes()
    path.write_bytes(content[: content.index(encode(picture(2))) + 100])
    raws = read(tmp_path)
    assert_samples(raws[:2], 2)
    assert [raw.problem for raw in raws[2:]] == ["truncated_file"]
    path.write_bytes(b"no tar at all")
    assert read(tmp_path) == [Raw("0", problem="truncated_file")]


def test_broken_shard_examples_are_reported(tmp_path):
    whole = sample(0)
    broken = [
        whole | {"json": b"{"}, whole | {"json": b"[1]"}, whole | {"txt": b"\xff"},
        {"txt": b"no image"}, {"jpg": whole["jpg"]}, whole,
    ]  # fmt: skip
    path = write_tar(tmp_path / "0.tar", broken)
    with path.open("r+b") as file:  # append the archive to itself: all its keys come twice
        content = file.read().rstrip(b"\0")
        padding = b"\0" * (-len(content) % 512)
        file.seek(0)
        file.write(content + padding + content + padding + b"\0" * 1024)
    raws = read(tmp_path)
    assert [raw.problem for raw in raws[:6]] == ["unreadable_text"] * 3 + [None] * 3
    assert (raws[3].image, raws[4].caption) == (None, None)
    assert [raw.problem for raw in raws[6:]] == ["repeated_key"] * 6


def test_image_folder_with_text_files_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PART_SIZE", 2)  # the folder is several parts
    for i in range(5):
        folder = tmp_path if i < 3 else tmp_path / "deeper" / "still"
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, content in sample(i).items():
            (folder / f"{i}.{suffix}").write_bytes(content)
    (tmp_path / ".hidden.jpg").write_bytes(b"")
    assert len(list(list_parts([str(tmp_path)]))) == 3
    assert_samples(read(tmp_path), 5)
    assert [raw.key for raw in read(tmp_path)][2:4] == ["2.jpg", "deeper/still/3.jpg"]
    (tmp_path / "1.txt").unlink()
    assert read(tmp_path)[1].caption is None


def test_image_folder_with_jsonl_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PART_SIZE", 2)
    lines = []
    for i in range(5):
        (tmp_path / f"{i}.jpg").write_bytes(encode(picture(i)))
        lines.append(json.dumps({"file_name": f"{i}.jpg", "text": f"caption of {i}", "number": i}))
    path = tmp_path / "metadata.jsonl"
    path.write_text("\n".join(lines))
    assert len(list(list_parts([str(tmp_path)]))) == 3
    assert_samples(read(tmp_path), 5)
    assert read(path) == read(tmp_path)
    assert [raw.key for raw in read(path)][3:] == ["metadata/4", "metadata/5"]
    path.write_text('{"file_name": "gone.jpg", "text": "x"}\n\nno json\n{"text": "x"}\n')
    missing, invalid, nameless = read(path)
    assert (missing.image, missing.problem, nameless.image) == (None, None, None)
    assert (invalid.problem, invalid.key) == ("unreadable_text", "metadata/3")


@pytest.mark.parametrize("struct", [False, True], ids=["bytes", "the hub's struct"])
def test_parquet_is_read(tmp_path, struct):
    images = [encode(picture(i)) for i in range(5)]
    column = [{"bytes": image, "path": None} for image in images] if struct else images
    captions = [f"caption of {i}" for i in range(5)]
    table = {"image": column, "text": captions, "number": list(range(5)), "vector": [[0.0]] * 5}
    pq.write_table(pa.table(table), tmp_path / "0.parquet", row_group_size=2)
    raws = read(tmp_path)
    assert_samples(raws, 5)
    assert raws[4].key == "0/4" and "vector" not in raws[0].metadata
    with pytest.raises(
        UserError, match=r"--caption-key prompt is not a column: .*image, text, number, vector"
    ):
        read(tmp_path, caption="prompt")
    other = pa.table({"photo": images, "prompt": captions, "number": list(range(5))})
    pq.write_table(other, tmp_path / "0.parquet")
    with pytest.raises(UserError, match="say with --image-key which one holds the images"):
        read(tmp_path)
    assert_samples(read(tmp_path, image="photo", caption="prompt"), 5)


def test_truncated_parquet_is_reported(tmp_path):
    pq.write_table(pa.table({"image": [b"x"], "text": ["y"]}), tmp_path / "0.parquet")
    (tmp_path / "0.parquet").write_bytes((tmp_path / "0.parquet").read_bytes()[:-9])
    assert read(tmp_path) == [Raw("0", problem="truncated_file")]


def test_braces_expand_as_in_a_shell():
    assert list(expand_braces("{08..11}-{a,b}"))[:5] == ["08-a", "08-b", "09-a", "09-b", "10-a"]
    assert list(expand_braces("{2..0}")) == ["2", "1", "0"]


def test_missing_or_unsupported_source_raises(tmp_path):
    write_tar(tmp_path / "0.tar", [sample(0)])
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").write_text("")
    for source, message in {
        "nowhere": "'.*nowhere' does not exist",
        "{0..1}.tar": "'.*/1.tar' does not exist",
        "*.zip": r"no file matches '.*\*.zip'",
        "empty": "holds nothing to read",
        "notes.md": "notes.md' is not one of .tar, .jsonl, .parquet",
    }.items():
        with pytest.raises(UserError, match=message):
            read(tmp_path / source)
