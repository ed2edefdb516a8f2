"""Reader of webdataset and img2dataset shards: tar files with KEY.jpg, KEY.txt, KEY.json side by side."""

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from realcustom_jax.data.prepare.raw import Raw, from_files


def read_tar(path: Path, prefix: str, caption_key: str | None) -> Iterator[Raw]:
    """Stream a shard from start to end, with one example in memory at a time.

    Args:
      path: the shard; it may be compressed.
      prefix: prefix of the keys.
      caption_key: name of the caption in the JSON, used if there is no .txt.

    Yields:
      the examples. A truncated shard yields its complete examples, then one `truncated_file`.
    """
    seen = set()
    for name, files in _samples(path):
        key = f"{prefix}/{name}" if name else prefix
        if name is None:
            yield Raw(key, problem="truncated_file")
        elif name in seen:
            yield Raw(key, problem="repeated_key")
        else:
            seen.add(name)
            yield from_files(key, files, caption_key)


def _samples(path: Path) -> Iterator[tuple[str | None, dict[str, bytes]]]:
    """Group consecutive files by key: yield (key, {suffix: content}), and (None, {}) for a truncated end."""
    key, files = None, {}
    for name, content in _files(path):
        folder, slash, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")  # webdataset's rule: the key ends at the first dot
        if name and folder + slash + stem != key:
            if files:
                yield key, files
            key, files = folder + slash + stem, {}
        if content is None:  # the example that was being read is incomplete, so it is not yielded
            yield None, {}
            return
        files[suffix.lower()] = content
    if files:
        yield key, files


def _files(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """Yield (name, content) of the files in an archive.

    A truncated archive ends with (name, None); the name is "" if the archive ends between two files.
    """
    name = ""
    try:
        with tarfile.open(path, "r|*") as archive:  # "|": read as a stream, without seeking
            for member in archive:
                # tarfile would keep a list of all members in memory; its types do not know that list.
                archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
                # macOS adds files such as ._name.jpg, which are not images.
                if not member.isfile() or member.name.rpartition("/")[2].startswith("."):
                    continue
                name = member.name.removeprefix("./")
                file = archive.extractfile(member)
                assert file is not None  # None is only for members that are not files
                content = file.read()
                if len(content) < member.size:
                    raise tarfile.ReadError("unexpected end of data")
                yield name, content
                name = ""
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError):
        yield name, None
