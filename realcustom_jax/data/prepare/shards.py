"""Writing shards: each part of the sources becomes one record file per split.

Parts share nothing, so processes of one machine and workers of a cluster can write them. The order on disk
does not matter, because the loader shuffles. A part's report is written last: a part with a report is done,
and interrupted work resumes after the parts that are done.
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
from realcustom_jax.data.image_text import make_serializer, shard_name, write_metadata
from realcustom_jax.data.prepare.recipe import Made, Recipe, make
from realcustom_jax.data.prepare.report import SPLITS, Report
from realcustom_jax.data.prepare.sources import Part, read_part

_JOB = "job.json"  # the recipe of the unfinished work in a folder


def write_part(number: int, part: Part, recipe: Recipe, folder: str, limit: int | None = None) -> Report:
    """Read, filter and write a part, unless it is already done.

    Args:
      number: number of the part, for the file names.
      part: the part to read.
      recipe: the filters, and the format of the images.
      folder: folder to write into.
      limit: largest number of examples to keep; None for all.

    Returns:
      counts of the kept and dropped examples.
    """
    work = Path(folder)
    # A part is done only if its source file has not changed since.
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
    except BaseException:  # also for KeyboardInterrupt: no temporary files should remain
        for writer in writers.values():
            writer.discard()
        raise
    for writer in writers.values():
        writer.finish()
    # Last, because the report marks the part as done.
    with replacing(work / _report(number)) as temporary:
        temporary.write_text(json.dumps({"part": made_from, "report": report.dumps()}))
    return report


class _Writer:
    """Writes the records and image sizes of one split of a part, with a temporary name until it is done."""

    def __init__(self, folder: Path, name: str):
        self._path = folder / name
        # Unique, because a cluster may run the same part twice at the same time.
        self._temporary = folder / f"{name}.{uuid.uuid4().hex}.tmp"
        self._records = ArrayRecordWriter(str(self._temporary), "group_size:1")  # 1 makes random access fast
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
    """The report of a part, if it was completely written before from the same source; otherwise None."""
    try:
        content = json.loads((work / _report(number)).read_text())
        report = Report.loads(content["report"])
        part = content["part"]
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ):  # missing or damaged: the part is written again
        return None
    files = [work / _records(number, split) for split in report.kept]
    whole = all(file.is_file() and file.with_suffix(".npy").is_file() for file in files)
    return report if whole and part == made_from else None


def open_job_folder(folder: Path, recipe: Recipe) -> int:
    """Create the folder for parts, or resume in it if it was made with the same recipe.

    Returns:
      the number of parts that are done.
    """
    # Parts that were made with another recipe are useless, so they are deleted.
    job = json.dumps(dataclasses.asdict(recipe))
    if folder.exists() and (not (folder / _JOB).is_file() or (folder / _JOB).read_bytes() != job.encode()):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / _JOB) as temporary:
        temporary.write_text(job)
    for path in folder.iterdir():
        if not (path.name == _JOB or (path.name.startswith("part-") and path.suffix != ".tmp")):
            path.unlink()  # temporary files, and shards that `finish` had renamed when it was interrupted
    return len(list(folder.glob("part-??????.json")))


def finish(folder: Path, reports: list[Report], final: Path) -> None:
    """Join the parts 0 … len(reports) - 1 into a data set, in this order, and move it to its place.

    Args:
      folder: folder from `begin`. Further parts in it are dropped.
      reports: reports of the parts.
      final: folder of the data set.
    """
    lengths: dict[str, list[int]] = {}
    numbers: dict[str, list[int]] = {}
    for split in SPLITS:
        with_some = [i for i, report in enumerate(reports) if report.kept.get(split)]
        if with_some:
            numbers[split] = with_some
            lengths[split] = [reports[i].kept[split] for i in with_some]
    # TFDS numbers the shards of a split without gaps, but a part may have no example of a split.
    for split, parts in numbers.items():
        for place, i in enumerate(parts):
            (folder / _records(i, split)).replace(folder / shard_name(split, place, len(parts)))
    write_metadata(folder, lengths, {split: _sizes(folder, split, parts) for split, parts in numbers.items()})
    for path in [*folder.glob("part-*"), folder / _JOB]:
        path.unlink()
    folder.rename(final)  # atomic: the data set appears complete or not at all


def _sizes(folder: Path, split: str, numbers: list[int]) -> Iterator[np.ndarray]:
    """Image sizes of the parts, one array per part."""
    for number in numbers:
        yield np.load((folder / _records(number, split)).with_suffix(".npy"))
