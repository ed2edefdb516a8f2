"""Zip files that may come from anyone: read whole, or refused in one sentence."""

import io
import random
import stat
import zipfile

import pytest

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.zips import read_zip, zipped

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def written(path, entries) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for entry, content in entries:
            file.writestr(entry, content)


def nameless() -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo("a")
    entry.filename = ""
    return entry


def link(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("../a.png", b"")], "lies outside its folder"),
        ([("/etc/passwd", b"")], "lies outside its folder"),
        ([("C:\\a.png", b"")], "lies outside its folder"),
        ([("a/../../b", b"")], "lies outside its folder"),
        ([(".", b"")], "holds a file without a name"),
        ([(nameless(), b"")], "holds a file without a name"),
        ([(link("a"), b"/etc/passwd")], "holds the link"),
        ([(f"{k}.txt", b"") for k in range(1001)], "1001 files"),
        ([("zeros", bytes(3 * 2**20))], "unpacks to more than 1 MiB"),
    ],
)
def test_dangerous_zips_raise(tmp_path, entries, message):
    written(tmp_path / "x.zip", entries)
    with pytest.raises(UserError, match=message):
        read_zip(tmp_path / "x.zip", max_bytes=2**20)


def test_small_zip_of_many_zeros_is_not_unpacked(tmp_path):
    """64 MiB in 64 kB; text of a real size is read."""
    written(tmp_path / "x.zip", [("zeros", bytes(64 * 2**20))])
    with pytest.raises(UserError, match="unpacks to more than 19 MiB"):
        read_zip(tmp_path / "x.zip")
    written(tmp_path / "y.zip", [("text", b"cat " * 2**21)])
    assert len(read_zip(tmp_path / "y.zip")["text"]) == 2**23


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip" * 100])
def test_what_is_no_zip_raises(tmp_path, content):
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as a zip"):
        read_zip(tmp_path / "x.zip")


@pytest.mark.parametrize("method", METHODS)
def test_damaged_zips_are_read_or_refused(tmp_path, method):
    """400 zips with changed bytes, some of them cut off; by each method of compression."""
    buffer, rng, path = io.BytesIO(), random.Random(0), tmp_path / "x.zip"
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name in ("a.txt", "ü.txt", "d/c.txt"):
            file.writestr(name, f"hello {name} " * 300)
    refused = 0
    for _ in range(400):
        content = bytearray(buffer.getvalue())
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.randrange(len(content))] if rng.random() < 0.2 else content)
        try:
            read_zip(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 200  # a changed date or attribute does no harm


def test_written_zip_is_read_back(tmp_path):
    files = {"a.txt": b"a", "d/b.bin": bytes(1000)}
    (tmp_path / "x.zip").write_bytes(zipped(files))
    assert read_zip(tmp_path / "x.zip") == files
