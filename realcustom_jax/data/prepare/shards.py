"""From parts to shards: each part of the sources becomes one file of records a split, on its own.

Nothing is shared between parts, so processes of one machine and workers of a cluster do the same. Global
order is not needed on disk: the loader shuffles. A part is done when its report is there, which comes last;
work that was cut off goes on from the parts that are done.
"""

import dataclasses
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from realcustom_jax.common.files import replacing
from realcustom_jax.data.image_text import make_serializer, shard_name, write_info
from realcustom_jax.data.prepare.recipe import Made, Recipe, make
from realcustom_jax.data.prepare.report import SPLITS, Report
from realcustom_jax.data.prepare.sources import Part, read_part

_JOB = "job.json"


def write_part(number: int, part: Part, recipe: Recipe, folder: str, limit: int | None = None) -> Report:
    """Reads, judges and writes a part, unless that is done already.

    Args:
      number: of the part, for the files' names.
      part: what to read.
      recipe: how to judge and to write it.
      folder: where to write.
      limit: stop when so many examples are kept; None for all.

    Returns:
      what became of the examples.
    """
    work = Path(folder)
    # A source that has changed since is another part.
    stat = os.stat(part.path)
    made_from = {
        **dataclasses.asdict(part),
        "limit": limit,
        "size": stat.st_size,
        "changed": stat.st_mtime_ns,
    }
    report = _done(work, number, made_from)
    if report is not None:
        return report
    report, writers = Report(), {}
    serialize = make_serializer()
    try:
        for raw in read_part(part, recipe.names):
            made = make(raw, recipe)
            if isinstance(made, str):
                report.drop(made, raw.key)
                continue
            if made.split not in writers:
                writers[made.split] = _Writer(work, _records(number, made.split))
            record = serialize(made.example)
            writers[made.split].write(record, made)
            report.keep(made.split, len(record))
            if report.count == limit:
                break
    except BaseException:
        for writer in writers.values():
            writer.discard()
        raise
    for writer in writers.values():
        writer.finish()
    with replacing(work / _report(number)) as half:
        half.write_text(json.dumps({"part": made_from, "report": report.dumps()}))
    return report


class _Writer:
    """Records and sizes of one split of a part, under a name of their own until they are whole."""

    def __init__(self, folder: Path, name: str):
        self._path = folder / name
        # Unique: a cluster may try the same part twice at once.
        self._temporary = folder / f"{name}.{uuid.uuid4().hex}.tmp"
        self._records = ArrayRecordWriter(str(self._temporary), "group_size:1")  # 1 is for random access
        self._sizes: list[tuple[int, int]] = []

    def write(self, record: bytes, made: Made) -> None:
        self._records.write(record)
        self._sizes.append((made.width, made.height))

    def finish(self) -> None:
        self._records.close()
        self._temporary.replace(self._path)
        with self._temporary.open("wb") as file:
            np.save(file, np.asarray(self._sizes, np.int32))
        self._temporary.replace(self._path.with_suffix(".npy"))

    def discard(self) -> None:
        self._records.close()
        self._temporary.unlink(missing_ok=True)


def _report(number: int) -> str:
    return f"part-{number:06d}.json"


def _records(number: int, split: str) -> str:
    return f"part-{number:06d}-{split}.array_record"


def _done(work: Path, number: int, made_from: dict[str, Any]) -> Report | None:
    """The report of a part that was written before, from the same source, and is all there."""
    try:
        found = json.loads((work / _report(number)).read_text())
        report = Report.loads(found["report"])
        part = found["part"]
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ):  # none, or damaged: it is written again
        return None
    files = [work / _records(number, split) for split in report.kept]
    whole = all(file.is_file() and file.with_suffix(".npy").is_file() for file in files)
    return report if whole and part == made_from else None


def begin(folder: Path, recipe: Recipe) -> int:
    """Makes the folder that parts are written into, or goes on in it where it was made with the same recipe.

    Returns:
      how many parts are done.
    """
    job = json.dumps(dataclasses.asdict(recipe))
    if folder.exists() and (not (folder / _JOB).is_file() or (folder / _JOB).read_bytes() != job.encode()):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / _JOB) as half:
        half.write_text(job)
    for path in folder.iterdir():
        if not (path.name == _JOB or (path.name.startswith("part-") and path.suffix != ".tmp")):
            path.unlink()  # what was being written, or made one data set, when the work was cut off
    return len(list(folder.glob("part-??????.json")))


def finish(folder: Path, reports: list[Report], final: Path) -> None:
    """Joins the parts 0 … len(reports) - 1 to a data set, in this order, and puts it where it belongs.

    Args:
      folder: as `begin` made it.
      reports: of the parts.
      final: the data set's folder; what had a part in `folder` beyond these is dropped.
    """
    lengths: dict[str, list[int]] = {}
    numbers: dict[str, list[int]] = {}
    for split in SPLITS:
        with_some = [i for i, report in enumerate(reports) if report.kept.get(split)]
        if with_some:
            numbers[split] = with_some
            lengths[split] = [reports[i].kept[split] for i in with_some]
    for split, parts in numbers.items():
        for place, i in enumerate(parts):
            (folder / _records(i, split)).replace(folder / shard_name(split, place, len(parts)))
    write_info(folder, lengths, {split: _sizes(folder, split, parts) for split, parts in numbers.items()})
    for path in [*folder.glob("part-*"), folder / _JOB]:
        path.unlink()
    folder.rename(final)


def _sizes(folder: Path, split: str, numbers: list[int]) -> Iterator[np.ndarray]:
    for number in numbers:
        yield np.load((folder / _records(number, split)).with_suffix(".npy"))
