"""Writing the parts of a data set: in this process, in processes of this machine, or on a cluster.

All three call `shards.write_part` and write the same files.
"""

import collections
import contextlib
import itertools
import multiprocessing
from collections.abc import Generator, Iterable, Iterator, Sequence
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
) -> Generator[tuple[Part, Report], None, None]:
    """Write the parts and yield their reports in order. Closing the iterator cancels the remaining parts.

    Args:
      parts: the parts; only a few are taken ahead.
      recipe, folder: see `write_part`.
      workers: processes; 0 uses this one.
    """
    numbered = enumerate(parts)
    if not workers:
        for number, part in numbered:
            yield part, write_part(number, part, recipe, str(folder))
        return
    # "spawn", because a fork of a process with threads can hang.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), end_with_parent)
    waiting: collections.deque[tuple[Part, Future]] = collections.deque()
    try:
        while True:
            # Two parts per worker keep all of them busy. More would be wasted when the caller stops early.
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
    """Context manager that explains the death of a worker process."""
    try:
        yield
    except BrokenProcessPool:
        raise UserError(
            f"a worker process was killed at '{part.path}', most likely because it was out of memory; use "
            "fewer --workers"
        ) from None


def run_beam(
    parts: Iterable[Part], recipe: Recipe, folder: Path, options: Sequence[str]
) -> Generator[tuple[Part, Report], None, None]:
    """`run_here` as an Apache Beam pipeline. All parts are written before the first report is yielded.

    Args:
      parts: the parts; each is small, so all of them are sent at once.
      recipe: see `write_part`.
      folder: a folder that all workers can access.
      options: options of the pipeline, such as --runner=FlinkRunner.

    Raises:
      UserError: Beam is not installed or does not know an option; or what `write_part` raises.
    """
    try:
        # An extra, which is not installed where the types are checked.
        import apache_beam as beam  # pyright: ignore[reportMissingImports]
        from apache_beam.options.pipeline_options import (  # pyright: ignore[reportMissingImports]
            PipelineOptions,
        )
    except ModuleNotFoundError as error:
        raise UserError(f"--beam needs Apache Beam (no {error.name}): pip install apache-beam") from None
    numbered = list(enumerate(parts))

    def write(place: tuple[int, Part]) -> None:
        # The error is raised again below. Here, the runner would wrap it in its own traceback.
        with contextlib.suppress(UserError):
            write_part(*place, recipe, str(folder))

    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        # Without the reshuffle, a runner may fuse the steps, and one worker would write everything.
        _ = pipeline | beam.Create(numbered) | beam.Reshuffle() | "write parts" >> beam.Map(write)
    for number, part in numbered:  # every part is done, so this only reads the reports
        yield part, write_part(number, part, recipe, str(folder))
