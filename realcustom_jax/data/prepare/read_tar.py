"""Shards of webdataset and img2dataset: tars of key.jpg, key.txt, key.json, those of one key side by side."""

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from realcustom_jax.data.prepare.raw import Raw, from_files


def read_tar(path: Path, prefix: str, caption_key: str | None) -> Iterator[Raw]:
    """Streams a shard from its beginning to its end, one example in memory at a time.

    Args:
      path: of the shard; it may be compressed.
      prefix: of the examples' keys.
      caption_key: name of the caption in the JSON, used where there is no .txt.

    Yields:
      the examples. A shard that ends too soon yields what was whole, then one `torn_file`.
    """
    seen = set()
    for name, files in _samples(path):
        key = f"{prefix}/{name}" if name else prefix
        if name is None:
            yield Raw(key, problem="torn_file")
        elif name in seen:
            yield Raw(key, problem="repeated_key")
        else:
            seen.add(name)
            yield from_files(key, files, caption_key)


def _samples(path: Path) -> Iterator[tuple[str | None, dict[str, bytes]]]:
    """(key, {suffix: content}) of files that follow each other and share a key; (None, {}) for a torn end."""
    key, files = None, {}
    for name, content in _files(path):
        folder, slash, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")  # webdataset's rule: the key ends at the first dot
        if name and folder + slash + stem != key:
            if files:
                yield key, files
            key, files = folder + slash + stem, {}
        if content is None:  # the example that was being read lacks files
            yield None, {}
            return
        files[suffix.lower()] = content
    if files:
        yield key, files


def _files(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """(name, content) of the files of an archive; last (name, None) where it is torn, "" if between files."""
    name = ""
    try:
        with tarfile.open(path, "r|*") as archive:  # a stream: nothing is looked up, nothing is kept
            for member in archive:
                archive.members.clear()  # tarfile would keep a list of all
                if not member.isfile() or member.name.rpartition("/")[2].startswith("."):
                    continue
                name = member.name.removeprefix("./")
                content = archive.extractfile(member).read()
                if len(content) < member.size:
                    raise tarfile.ReadError("unexpected end of data")
                yield name, content
                name = ""
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError):
        yield name, None
