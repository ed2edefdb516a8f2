"""Writes the parts of a data set: one after another here, in processes of this machine, or on a cluster.

All three call `shards.write_part`, and what they write is the same.
"""

import collections
import contextlib
import itertools
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.workers import end_with_parent
from realcustom_jax.data.prepare.recipe import Recipe
from realcustom_jax.data.prepare.report import Report
from realcustom_jax.data.prepare.shards import write_part
from realcustom_jax.data.prepare.sources import Part


def run_here(
    parts: Iterable[Part], recipe: Recipe, folder: Path, workers: int
) -> Iterator[tuple[Part, Report]]:
    """Reports of the parts, in their order; what comes after the last one that is asked for is cancelled.

    Args:
      parts: taken only a little ahead of the reports.
      recipe, folder: see `write_part`.
      workers: processes; 0 works in this one.
    """
    numbered = enumerate(parts)
    if not workers:
        for number, part in numbered:
            yield part, write_part(number, part, recipe, str(folder))
        return
    # "spawn": a fork of a process that runs threads can hang.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), end_with_parent)
    waiting: collections.deque[tuple[Part, Future]] = collections.deque()
    try:
        while True:
            for number, part in itertools.islice(numbered, 2 * workers - len(waiting)):
                waiting.append((part, pool.submit(write_part, number, part, recipe, str(folder))))
            if not waiting:
                return
            part, result = waiting.popleft()
            with _explained(part):
                report = result.result()
            yield part, report
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _explained(part: Part) -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise UserError(
            f"a worker process ended without a word at '{part.path}', most likely for want of memory; "
            "use fewer with --workers"
        ) from None


def run_beam(
    parts: Iterable[Part], recipe: Recipe, folder: Path, options: Sequence[str]
) -> Iterator[tuple[Part, Report]]:
    """As `run_here`, in an Apache Beam pipeline; all parts are written before the first report comes.

    Args:
      parts: a few numbers each, so all of them are sent at once.
      recipe: see `write_part`.
      folder: that all workers see.
      options: of the pipeline, such as --runner=FlinkRunner.

    Raises:
      UserError: Beam is not installed, or has no such option; or what `write_part` raises.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ModuleNotFoundError as error:
        raise UserError(f"--beam needs Apache Beam (no {error.name}): pip install apache-beam") from None
    numbered = list(enumerate(parts))

    def write(place: tuple[int, Part]) -> None:
        # A mistake comes again below, where it is one sentence; runners wrap it in their own tracebacks.
        with contextlib.suppress(UserError):
            write_part(*place, recipe, str(folder))

    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        # Without the reshuffle a runner may fuse the steps, and one worker would write all.
        _ = pipeline | beam.Create(numbered) | beam.Reshuffle() | "write parts" >> beam.Map(write)
    for number, part in numbered:  # all are done, so this only reads the reports
        yield part, write_part(number, part, recipe, str(folder))
