"""What a data set is made from: shards, folders and tables, cut into parts that are read one by one.

A part is a few numbers and a path, so that the parts of 100 million images fit in memory, and can be sent to
other processes and machines.
"""

import dataclasses
import glob
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from realcustom_jax.common.errors import UserError
from realcustom_jax.data.prepare.raw import Raw
from realcustom_jax.data.prepare.read_folder import image_names, read_images, read_jsonl
from realcustom_jax.data.prepare.read_tar import read_tar

# Images of a folder, or lines of a .jsonl, that one process reads after another. Shards and tables are parts
# as they are.
PART_SIZE = 4096
# What a folder may hold, by suffix. Of several the first counts: img2dataset puts a .parquet of metadata
# beside every shard.
_KINDS = {".tar": "tar", ".jsonl": "jsonl", ".parquet": "parquet"}


@dataclasses.dataclass(frozen=True)
class Part:
    """Examples that are read together.

    Attributes:
      kind: tar, jsonl, parquet or images.
      path: of the file; of the folder for images.
      prefix: of the examples' keys; other parts have others.
      start: of images, the place of the first in the folder's order; of lines, where it begins in bytes.
      number: of the first line.
      count: of images or lines.
    """

    kind: str
    path: str
    prefix: str
    start: int = 0
    number: int = 0
    count: int = 0


@dataclasses.dataclass(frozen=True)
class Names:
    """What columns and JSON fields are called; None for the usual names."""

    image: str | None = None
    caption: str | None = None


def find_parts(sources: list[str]) -> Iterator[Part]:
    """The parts of all sources, in an order that depends on their names alone.

    Args:
      sources: each a folder, a file, or a pattern of files with *, ?, [] or {00000..00099}. A folder is taken
        for the shards in it, else for its .jsonl files, else its .parquet files, else for its images and
        those of all folders below.

    Raises:
      UserError: a source is not there, or holds nothing that can be read.
    """
    for i, source in enumerate(sources):
        prefix = f"{i}-" if len(sources) > 1 else ""  # two sources may have files of the same name
        found = iter(_parts_of(source))
        first = next(found, None)
        if first is None:
            raise UserError(
                f"the source '{source}' holds nothing to read: no .tar, .jsonl, .parquet and no image"
            )
        for part in itertools.chain([first], found):
            yield dataclasses.replace(part, prefix=prefix + part.prefix)


def check_sources(sources: list[str], names: Names) -> None:
    """Look at the beginning of every source, before hours are spent on the first.

    Raises:
      UserError: as `find_parts`; or the name of an image's column is given and a source has no columns.
    """
    for source in sources:
        if not source.strip():
            raise UserError("a source is empty: --source needs a folder, a file or a pattern")
        kind = next(find_parts([source])).kind
        if names.image and kind in ("tar", "images"):
            what = "shards" if kind == "tar" else "a folder of images"
            raise UserError(f"--image-key is for .jsonl and parquet: {what} as '{source}' have no such name")


def read_part(part: Part, names: Names) -> Iterator[Raw]:
    """The examples of a part, in order, read as they are asked for."""
    path = Path(part.path)
    if part.kind == "tar":
        return read_tar(path, part.prefix, names.caption)
    if part.kind == "images":
        return read_images(path, part.prefix, part.start, part.count, names.caption)
    if part.kind == "jsonl":
        return read_jsonl(path, part.prefix, part.start, part.number, part.count, names.image, names.caption)
    from realcustom_jax.data.prepare.read_parquet import read_parquet  # pyarrow takes a while to import

    return read_parquet(path, part.prefix, names.image, names.caption)


def _parts_of(source: str) -> Iterator[Part]:
    path = Path(source)
    if path.is_dir():
        for suffix in _KINDS:
            files = sorted(file for file in path.glob(f"*{suffix}") if file.is_file())
            if files:
                yield from _parts_of_files(files, path)
                return
        yield from _parts_of_images(path)
    elif path.is_file():
        yield from _parts_of_files([path], path.parent)
    else:
        files = _matching(source)
        yield from _parts_of_files(files, Path(os.path.commonpath([file.parent for file in files])))


def _matching(source: str) -> list[Path]:
    """The files of a pattern, in the order of its braces and then of their names."""
    found: dict[Path, None] = {}
    for pattern in expand_braces(source):
        # A name that no * stands in was asked for itself.
        matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            what = f"no file fits '{pattern}'" if glob.has_magic(pattern) else f"there is no '{pattern}'"
            raise UserError(f"the source '{source}' cannot be read: {what}")
        found |= {Path(match): None for match in matches if Path(match).is_file()}
    if not found:
        raise UserError(f"the source '{source}' fits folders alone; name one of them, or files")
    return list(found)


def expand_braces(pattern: str) -> Iterator[str]:
    """a{1..3}b → a1b a2b a3b, a{x,y} → ax ay, as shells do; {007..012} keeps its zeros."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        yield pattern
        return
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        step = 1 if first <= last else -1
        choices = (f"{n:0{len(numbers[1])}d}" for n in range(first, last + step, step))
    else:
        choices = match[1].split(",")
    for choice in choices:
        yield from expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])


def _parts_of_files(files: list[Path], root: Path) -> Iterator[Part]:
    for file in files:
        kind = _KINDS.get(file.suffix.lower())
        if ".tar." in file.name.lower():  # .tar.gz
            kind = "tar"
        if kind is None:
            raise UserError(f"the source file '{file}' is none of {', '.join(_KINDS)}")
        prefix = file.relative_to(root).as_posix().removesuffix(file.suffix)
        if kind == "jsonl":
            yield from _parts_of_lines(file, prefix)
        else:
            yield Part(kind, str(file), prefix)


def _parts_of_lines(file: Path, prefix: str) -> Iterator[Part]:
    with file.open("rb") as lines:
        start, number = 0, 1
        while chunk := [len(line) for line in itertools.islice(lines, PART_SIZE)]:
            yield Part("jsonl", str(file), prefix, start, number, len(chunk))
            start, number = start + sum(chunk), number + len(chunk)


def _parts_of_images(root: Path) -> Iterator[Part]:
    """Folder by folder, so that the names of one are in memory at a time."""
    for folder, folders, _ in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = Path(folder).relative_to(root).as_posix()
        for start in range(0, count := len(image_names(Path(folder))), PART_SIZE):
            size = min(PART_SIZE, count - start)
            yield Part("images", folder, "" if prefix == "." else prefix, start, count=size)
