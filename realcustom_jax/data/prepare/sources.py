"""Sources of a data set: shards, image folders and tables, divided into parts.

A part is a path and a few numbers. So the parts of 100 million images fit into memory and can be sent to
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

# Images of a folder, or lines of a .jsonl, in one part. A shard or a table is always one part.
PART_SIZE = 4096
# {suffix: kind}. In a folder with several kinds the first one counts: img2dataset puts a .parquet with
# metadata beside every shard.
_KINDS = {".tar": "tar", ".jsonl": "jsonl", ".parquet": "parquet"}


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a source, which one process reads.

    Attributes:
      kind: tar, jsonl, parquet or images.
      path: the file, or the folder for images.
      prefix: prefix of the examples' keys; it makes them unique in the data set.
      start: for images, index of the first one in the sorted folder; for lines, position in bytes.
      number: number of the first line.
      count: number of images or lines.
    """

    kind: str
    path: str
    prefix: str
    start: int = 0
    number: int = 0
    count: int = 0


@dataclasses.dataclass(frozen=True)
class Names:
    """Names of columns and JSON fields; None for the usual names."""

    image: str | None = None
    caption: str | None = None


def list_parts(sources: list[str]) -> Iterator[Part]:
    """Find the parts of all sources. Their order depends only on file names.

    Args:
      sources: each is a folder, a file, or a pattern of files with *, ?, [] or {00000..00099}. Of a folder,
        the first of these counts: its shards, its .jsonl files, its .parquet files, its images with those of
        all subfolders.

    Raises:
      UserError: a source does not exist, or has nothing that can be read.
    """
    for i, source in enumerate(sources):
        prefix = f"{i}-" if len(sources) > 1 else ""  # two sources may have files of the same name
        parts = iter(_parts_of(source))
        first = next(parts, None)
        if first is None:
            raise UserError(
                f"the source '{source}' holds nothing to read: no .tar, .jsonl, .parquet and no image"
            )
        for part in itertools.chain([first], parts):
            yield dataclasses.replace(part, prefix=prefix + part.prefix)


def check_sources(sources: list[str], names: Names) -> None:
    """Check the start of every source, before hours are spent on the first one.

    Raises:
      UserError: see `list_parts`; or an image column is given and a source has no columns.
    """
    for source in sources:
        if not source.strip():
            raise UserError("a source is empty: --source needs a folder, a file or a pattern")
        kind = next(list_parts([source])).kind
        if names.image and kind in ("tar", "images"):
            what = "a source of shards" if kind == "tar" else "a folder of images"
            raise UserError(f"--image-key is for .jsonl and parquet, but '{source}' is {what}")


def read_part(part: Part, names: Names) -> Iterator[Raw]:
    """Read the examples of a part lazily, in order."""
    path = Path(part.path)
    if part.kind == "tar":
        return read_tar(path, part.prefix, names.caption)
    if part.kind == "images":
        return read_images(path, part.prefix, part.start, part.count, names.caption)
    if part.kind == "jsonl":
        return read_jsonl(path, part.prefix, part.start, part.number, part.count, names.image, names.caption)
    from realcustom_jax.data.prepare.read_parquet import read_parquet  # importing pyarrow is slow

    return read_parquet(path, part.prefix, names.image, names.caption)


def _parts_of(source: str) -> Iterator[Part]:
    """The parts of one source."""
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
    """The files that match a pattern, in the order of its braces and then of their names."""
    files: dict[Path, None] = {}  # used as an ordered set
    for pattern in expand_braces(source):
        # Every shard of {00000..00099} must exist: a missing one is a mistake.
        matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            missing = f"'{pattern}' does not exist"
            what = f"no file matches '{pattern}'" if glob.has_magic(pattern) else missing
            raise UserError(f"the source '{source}' cannot be read: {what}")
        files |= {Path(match): None for match in matches if Path(match).is_file()}
    if not files:
        raise UserError(f"the source '{source}' matches only folders; give one folder, or files")
    return list(files)


def expand_braces(pattern: str) -> Iterator[str]:
    """Expand braces like a shell: a{1..3}b → a1b a2b a3b, a{x,y} → ax ay; {007..012} keeps its zeros."""
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
    """The parts of files; keys begin with the file's path below `root`."""
    for file in files:
        kind = _KINDS.get(file.suffix.lower())
        if ".tar." in file.name.lower():  # .tar.gz
            kind = "tar"
        if kind is None:
            raise UserError(f"the source file '{file}' is not one of {', '.join(_KINDS)}")
        prefix = file.relative_to(root).as_posix().removesuffix(file.suffix)
        if kind == "jsonl":
            yield from _parts_of_lines(file, prefix)
        else:
            yield Part(kind, str(file), prefix)


def _parts_of_lines(file: Path, prefix: str) -> Iterator[Part]:
    """The parts of a .jsonl file."""
    # Positions in bytes let a process start in the middle of the file.
    with file.open("rb") as lines:
        start, number = 0, 1
        while chunk := [len(line) for line in itertools.islice(lines, PART_SIZE)]:
            yield Part("jsonl", str(file), prefix, start, number, len(chunk))
            start, number = start + sum(chunk), number + len(chunk)


def _parts_of_images(root: Path) -> Iterator[Part]:
    """The parts of an image folder and its subfolders."""
    # Folder by folder, so that only the names of one folder are in memory.
    for folder, folders, _ in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = Path(folder).relative_to(root).as_posix()
        for start in range(0, count := len(image_names(Path(folder))), PART_SIZE):
            size = min(PART_SIZE, count - start)
            yield Part("images", folder, "" if prefix == "." else prefix, start, count=size)
