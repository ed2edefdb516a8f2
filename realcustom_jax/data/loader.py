"""The data loader: shuffled, augmented batches, split over processes, with exact resume.

Batch number `step` is a function of (seed, step): its examples, their order and their random numbers. So the
state of the loader is one number, and the batches do not depend on the number of processes, workers or
threads.
"""

import dataclasses
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.workers import end_with_parent
from realcustom_jax.data.buckets import Buckets
from realcustom_jax.data.order import BucketOrder, Order, PlainOrder

Batch = dict[str, np.ndarray]
Transform = Callable[[dict[str, Any], np.random.Generator], dict[str, np.ndarray]]


class Source(Protocol):
    """Random access to examples. It must be picklable if the loader has worker processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Function from a row of this process to its transformed example."""

    # A class instead of a closure, because worker processes must unpickle it.
    source: Source
    transform: Transform
    order: Order
    seed: int
    batch_size: int
    process_index: int
    process_count: int

    def __call__(self, row: int) -> dict[str, np.ndarray]:
        # `row` counts the examples of this process. Each process makes a contiguous part of every global
        # batch; the parts, in process order, are the batch that a single process would make.
        local_size = self.batch_size // self.process_count
        step, place = divmod(int(row), local_size)
        index = step * self.batch_size + self.process_index * local_size + place
        number, shape = self.order(index)
        example = dict(self.source[number])
        example["index"] = index
        if shape is not None:
            example["shape"] = shape
        # A generator per example, not per worker: the numbers do not depend on who makes the example.
        return self.transform(example, np.random.default_rng((self.seed, index)))


class Loader(Iterator[Batch]):
    """Iterator over batches whose position can be saved and restored. `make_loader` makes it."""

    def __init__(
        self, batches: grain.MapDataset, options: grain.ReadOptions, num_workers: int, identity: dict
    ):
        self._batches = batches
        self._options = options
        self._num_workers = num_workers
        self._identity = identity
        self._running: list[grain.DatasetIterator] = []
        # Also closes at exit: Grain's own clean-up runs after modules are unloaded, and leaks shared memory.
        weakref.finalize(self, _close, self._running)
        self._start(0)

    def __next__(self) -> Batch:
        if not self._running:
            raise ValueError("the data loader is closed")
        batch = next(self._running[0])
        self._step += 1
        return batch

    def __len__(self) -> int:
        """Number of batches in the whole stream; a huge number if there is no limit of epochs."""
        return len(self._batches)

    def get_state(self) -> dict[str, Any]:
        """The position as a dict for JSON: the number of batches taken, and what identifies the stream."""
        return {"step": self._step, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Move to a saved position: the next batch is the one that followed when the state was saved.

        The number of processes and workers and the prefetching may differ from then.

        Raises:
          UserError: the state belongs to another stream: data set size, batch size, seed, shuffling or
            buckets differ.
        """
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise UserError(
                    f"the data loader cannot resume: it was saved with {name}={state.get(name)} "
                    f"and is now {name}={value}"
                )
        self._start(int(state["step"]))

    def close(self) -> None:
        """Stop threads and worker processes. This also happens when the loader is deleted, and at exit."""
        _close(self._running)

    def _start(self, step: int) -> None:
        """Start reading at a step; what was prefetched for another step is dropped."""
        self.close()
        self._step = step
        rest = self._batches.slice(slice(step, len(self._batches)))
        batches = rest.to_iter_dataset(self._options)
        if self._num_workers:
            if not flags.FLAGS.is_parsed():  # outside of absl.app, Grain's workers would refuse to start
                flags.FLAGS.mark_as_parsed()
            workers = grain.MultiprocessingOptions(num_workers=self._num_workers)
            batches = batches.mp_prefetch(workers, end_with_parent)
        self._running.append(iter(batches))


def _close(running: list[grain.DatasetIterator]) -> None:
    # A function of the list: a finalizer that held the loader itself would keep it alive.
    while running:
        running.pop().close()


def make_loader(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    num_epochs: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    prefetch: int = 2,
    buckets: Buckets | None = None,
) -> Loader:
    """Make a loader of batches of transformed examples.

    Every example comes once per epoch, and each epoch has its own order. Epochs follow each other without a
    gap, so a batch may contain examples of two epochs. Only an incomplete last batch is dropped (with
    buckets, one of each bucket). `BucketOrder` defines epochs for buckets.

    Args:
      source: the examples.
      transform: (example, rng) → arrays with one shape per name. `example["index"]` is the position in the
        stream of all processes, so `index // batch_size` is the step. With buckets, `example["shape"]` is the
        (height, width) of the batch. `rng` depends only on (seed, index).
      batch_size: examples per step over all processes.
      seed: seed of the order and of the transform's random numbers, at least 0.
      shuffle: False keeps the source's order.
      num_epochs: None for an endless stream.
      process_index: index of the part of every batch that this process gets.
      process_count: number of parts; each has batch_size / process_count examples.
      num_workers: worker processes; 0 uses threads of this process.
      prefetch: batches made ahead, each in its own thread (per worker, if there are workers).
      buckets: every batch is made of one bucket; None for batches of any examples.

    Returns:
      an iterator of dicts of arrays (batch_size / process_count, …).

    Raises:
      UserError: there are fewer examples than a batch, or the batch cannot be divided among the processes.
    """
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"the batch size {batch_size} cannot be divided among {process_count} processes")
    if not 0 <= process_index < process_count:
        raise UserError(f"the process index {process_index} is not below the process count {process_count}")
    _check_source(source, buckets, batch_size, seed)
    if buckets is None:
        order = PlainOrder(len(source), batch_size, seed, shuffle, num_epochs)
    else:
        order = BucketOrder(buckets, batch_size, seed, shuffle, num_epochs)
    # Grain only maps row numbers to examples. The shuffling is ours, so that Grain's state is one number.
    rows = _Rows(source, transform, order, seed, batch_size, process_index, process_count)
    local_size = batch_size // process_count
    row_count = order.batches() * local_size
    batches = grain.MapDataset.range(row_count).map(rows).batch(local_size)
    options = grain.ReadOptions(num_threads=max(1, prefetch), prefetch_buffer_size=max(1, prefetch))
    # A state with other values would silently continue with other examples.
    identity = {
        "examples": len(source), "batch_size": batch_size, "seed": seed, "shuffle": shuffle,
        "buckets": buckets.digest() if buckets else None,
    }  # fmt: skip
    return Loader(batches, options, num_workers, identity)


def _check_source(source: Source, buckets: Buckets | None, batch_size: int, seed: int) -> None:
    """Raise `UserError` if the source does not fit the buckets or the batch size, or the seed is negative."""
    if buckets is not None and len(buckets) != len(source):
        raise UserError(f"the buckets divide {len(buckets)} examples, but the data set has {len(source)}")
    if len(source) < batch_size:
        raise UserError(f"the data set has {len(source)} examples, fewer than one batch of {batch_size}")
    if seed < 0:
        raise UserError(f"the data seed must not be negative, but it is {seed}")
