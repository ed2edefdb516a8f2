"""The order of examples in the loader's endless stream.

The example at a position is computed from the position alone, without the positions before it. So any process
can start anywhere.
"""

import hashlib
from typing import Protocol

import numpy as np
from grain.experimental import index_shuffle

from realcustom_jax.data.buckets import Buckets

Shape = tuple[int, int]

# Length of an endless stream. Python's `len` allows 2^63 - 1, and Grain's own arithmetic needs some margin.
_ENDLESS = 2**60


class Order(Protocol):
    """Function from a position to an example's number; picklable."""

    def batches(self) -> int:
        """Number of complete batches; a huge number if there is no limit of epochs."""
        ...

    def __call__(self, index: int) -> tuple[int, Shape | None]:
        """Number of the example at position `index`, and the (height, width) of its batch if it is fixed."""
        ...


class PlainOrder:
    """Epochs one after the other, each in its own order. A batch may contain examples of two epochs."""

    def __init__(self, count: int, batch_size: int, seed: int, shuffle: bool, num_epochs: int | None):
        self._count = count
        self._batch_size = batch_size
        self._seed = seed if shuffle else None
        self._num_epochs = num_epochs

    def batches(self) -> int:
        return _places(self._count, self._num_epochs) // self._batch_size

    def __call__(self, index: int) -> tuple[int, None]:
        epoch, index = divmod(index, self._count)
        if self._seed is None:
            return index, None
        # The same permutation as Grain's `MapDataset.shuffle`, without the cost of its indexing.
        seed = (self._seed + epoch) % 2**32
        return int(index_shuffle(index, max_index=self._count - 1, seed=seed, rounds=4)), None


class BucketOrder:
    """Batches of one bucket each; every epoch shuffles the batches of all buckets.

    Each bucket is its own stream, like `PlainOrder`: its examples, epoch after epoch, each time in another
    order, cut into batches. A remainder of less than a batch is carried over: examples of the next epoch
    complete that batch, and it belongs to the next epoch. So no example is left out.
    """

    # A bucket of n examples has completed ⌊e·n / B⌋ batches of size B before epoch e. This alone determines
    # where an epoch begins and how many batches of each bucket it has, so nothing has to be stored.

    def __init__(self, buckets: Buckets, batch_size: int, seed: int, shuffle: bool, num_epochs: int | None):
        self._buckets = buckets
        self._sizes = np.asarray([len(members) for members in buckets.members], np.int64)
        self._batch_size = batch_size
        self._num_epochs = num_epochs
        # One seed for the examples of each bucket, and the last one for the order of the batches.
        seeds = np.random.SeedSequence(seed).generate_state(len(self._sizes) + 1).tolist()
        self._seeds = seeds if shuffle else [None] * len(seeds)

    def batches(self) -> int:
        if self._num_epochs is None:
            return _places(len(self._buckets), None) // self._batch_size
        return int(self._done(self._num_epochs).sum())

    def __call__(self, index: int) -> tuple[int, Shape]:
        step, place = divmod(index, self._batch_size)
        bucket, batch = self._batch(step)
        members = self._buckets.members[bucket]
        epoch, member = divmod(batch * self._batch_size + place, len(members))
        member = _shuffled(member, len(members), self._seeds[bucket], epoch)
        return int(members[member]), self._buckets.shapes[bucket]

    def _done(self, epoch: int) -> np.ndarray:
        """Number of batches that each bucket has completed before an epoch."""
        return epoch * self._sizes // self._batch_size

    def _batch(self, step: int) -> tuple[int, int]:
        """The bucket of a batch, and the batch's number in that bucket's stream."""
        # The sum of ⌊e·n / B⌋ over the buckets is at most e·N / B, so the epoch is not earlier than this. It
        # is rarely later.
        epoch = step * self._batch_size // len(self._buckets)
        while (until := self._done(epoch + 1)).sum() <= step:
            epoch += 1
        done = self._done(epoch)
        batches = until - done  # of each bucket in this epoch
        place = _shuffled(step - int(done.sum()), int(batches.sum()), self._seeds[-1], epoch)
        # Count the epoch's batches bucket by bucket; the shuffled place then shows the bucket.
        ends = np.cumsum(batches)
        bucket = int(np.searchsorted(ends, place, side="right"))
        return bucket, int(done[bucket] + place - (ends[bucket] - batches[bucket]))


def _places(count: int, num_epochs: int | None) -> int:
    return _ENDLESS if num_epochs is None else count * num_epochs


def _shuffled(index: int, count: int, seed: int | None, epoch: int) -> int:
    """Element at position `index` of a permutation of 0 … count - 1 that depends on the seed and the epoch.

    Without a seed the position itself. The permutation is computed for one position at a time, so 100 million
    examples take no memory.
    """
    if seed is None:
        return index
    # A Feistel network permutes 0 … 4^k - 1, the next power of 4. Repeating it until the result is below
    # `count` permutes 0 … count - 1 (cycle walking). Grain's own permutes 2^16 numbers or more, so small
    # buckets take it milliseconds per position.
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    while True:
        left, right = divmod(index, 1 << half)
        for turn in range(6):
            digest = hashlib.blake2b(b"%d %d %d %d" % (seed, epoch, turn, right), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest) % (1 << half))
        index = (left << half) + right
        if index < count:
            return index
