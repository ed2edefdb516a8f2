"""From a data set to batches: shuffled, augmented, split over processes, and resumable to the exact batch.

Everything about batch number `step` is a function of (seed, step): which examples are in it, in which order,
and the random numbers of each. Hence the loader's state is that number, and the stream is the same with any
number of processes, workers and threads.
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
    """Random access to examples; picklable when the loader has workers."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Makes the example at one place of the global stream; a class, so that workers can unpickle it."""

    source: Source
    transform: Transform
    order: Order
    seed: int
    batch_size: int
    process_index: int
    process_count: int

    def __call__(self, row: int) -> dict[str, np.ndarray]:
        # `row` counts this process's examples. A process owns a contiguous part of every global batch, so
        # that the parts, in the order of the processes, are the batch that one process would have made.
        local_size = self.batch_size // self.process_count
        step, place = divmod(int(row), local_size)
        index = step * self.batch_size + self.process_index * local_size + place
        number, shape = self.order(index)
        example = dict(self.source[number])
        example["index"] = index
        if shape is not None:
            example["shape"] = shape
        return self.transform(example, np.random.default_rng((self.seed, index)))


class Loader(Iterator[Batch]):
    """An iterator of batches whose place can be saved and restored. Made by `make_loader`."""

    def __init__(
        self, batches: grain.MapDataset, options: grain.ReadOptions, num_workers: int, identity: dict
    ):
        self._batches = batches
        self._options = options
        self._num_workers = num_workers
        self._identity = identity
        self._running: list[grain.DatasetIterator] = []
        # Also at exit: Grain's own clean-up comes when modules are gone already, and leaks shared memory.
        weakref.finalize(self, _close, self._running)
        self._start(0)

    def __next__(self) -> Batch:
        if not self._running:
            raise ValueError("the data loader is closed")
        batch = next(self._running[0])
        self._step += 1
        return batch

    def __len__(self) -> int:
        """Batches from the beginning to the end; astronomical when the epochs have no limit."""
        return len(self._batches)

    def get_state(self) -> dict[str, Any]:
        """The place in the stream as a JSON-able dict: "step" batches were taken, and of which stream."""
        return {"step": self._step, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to the place `state` was taken at: the next batch is the one that would have come then.

        Processes, workers and prefetching may differ from those the state was taken with.

        Raises:
          UserError: the state is of another stream (data set size, batch size, seed, shuffling or buckets
            differ).
        """
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise UserError(
                    f"the data loader cannot resume: it was saved with {name}={state.get(name)} "
                    f"and is now {name}={value}"
                )
        self._start(int(state["step"]))

    def close(self) -> None:
        """Ends the threads and worker processes; also done when the loader is deleted, and at exit."""
        _close(self._running)

    def _start(self, step: int) -> None:
        self.close()
        self._step = step
        rest = self._batches.slice(slice(step, len(self._batches)))
        batches = rest.to_iter_dataset(self._options)
        if self._num_workers:
            if not flags.FLAGS.is_parsed():  # as outside of absl.app; Grain's workers refuse to start then
                flags.FLAGS.mark_as_parsed()
            workers = grain.MultiprocessingOptions(num_workers=self._num_workers)
            batches = batches.mp_prefetch(workers, end_with_parent)
        self._running.append(iter(batches))


def _close(running: list[grain.DatasetIterator]) -> None:
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
    """An iterator over batches of transformed examples.

    Epochs follow each other without a gap, so a batch may straddle two; only what is left at the very end,
    of each bucket if there are buckets, is dropped. Each epoch has its own order. Every example comes once an
    epoch; what an epoch is where there are buckets, `BucketOrder` says.

    Args:
      source: the examples.
      transform: (example, rng) → arrays of one shape per name. `example["index"]` is the example's place in
        the stream of all processes, so `index // batch_size` is the step. With buckets `example["shape"]` is
        the (height, width) of its batch. `rng` depends on (seed, index) alone.
      batch_size: examples of a step over all processes.
      seed: of the order and of the transform's random numbers, at least 0.
      shuffle: False keeps the source's order.
      num_epochs: None for a stream without end.
      process_index: which part of every batch to yield.
      process_count: how many parts; each has batch_size / process_count examples.
      num_workers: worker processes; 0 works in threads of this process.
      prefetch: batches made ahead, each in its own thread (per worker, if there are any).
      buckets: every batch is of one of them; None for batches of all examples alike.

    Returns:
      Yields dicts of arrays (batch_size / process_count, …); has `get_state()` and `set_state(state)`.

    Raises:
      UserError: there are fewer examples than a batch, or the batch cannot be divided among the processes.
    """
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"the batch size {batch_size} cannot be divided among {process_count} processes")
    if not 0 <= process_index < process_count:
        raise UserError(f"the process index {process_index} is not below the process count {process_count}")
    if buckets is not None and len(buckets) != len(source):
        raise UserError(f"the buckets divide {len(buckets)} examples, but the data set has {len(source)}")
    if len(source) < batch_size:
        raise UserError(f"the data set has {len(source)} examples, fewer than one batch of {batch_size}")
    if seed < 0:
        raise UserError(f"the data seed must not be negative, but it is {seed}")
    if buckets is None:
        order = PlainOrder(len(source), batch_size, seed, shuffle, num_epochs)
    else:
        order = BucketOrder(buckets, batch_size, seed, shuffle, num_epochs)
    rows = _Rows(source, transform, order, seed, batch_size, process_index, process_count)
    local_size = batch_size // process_count
    row_count = order.batches() * local_size
    batches = grain.MapDataset.range(row_count).map(rows).batch(local_size)
    options = grain.ReadOptions(num_threads=max(1, prefetch), prefetch_buffer_size=max(1, prefetch))
    identity = {
        "examples": len(source), "batch_size": batch_size, "seed": seed, "shuffle": shuffle,
        "buckets": buckets.digest() if buckets else None,
    }  # fmt: skip
    return Loader(batches, options, num_workers, identity)
