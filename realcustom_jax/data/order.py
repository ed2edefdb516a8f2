"""Which example stands at which place of the endless stream that the loader cuts into batches.

Places are numbers, and what stands at one is computed from the number alone: no place depends on having
visited another, so any process can begin anywhere.
"""

import hashlib
from typing import Protocol

import numpy as np
from grain.experimental import index_shuffle

from realcustom_jax.data.buckets import Buckets

Shape = tuple[int, int]

# Places of a stream without end. Far below the largest length that Python has, which Grain counts beyond.
_ENDLESS = 2**60


class Order(Protocol):
    """Places → examples; picklable."""

    def batches(self) -> int:
        """How many whole batches there are; astronomical when the epochs have no limit."""

    def __call__(self, index: int) -> tuple[int, Shape | None]:
        """The example at place `index`, and the (height, width) of its batch, if batches differ in that."""


class PlainOrder:
    """All epochs one after another, each in an order of its own; a batch may straddle two."""

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
        # As Grain's `MapDataset.shuffle` does it, without what its indexing costs.
        seed = (self._seed + epoch) % 2**32
        return int(index_shuffle(index, max_index=self._count - 1, seed=seed, rounds=4)), None


class BucketOrder:
    """Batches of one bucket each, the buckets' batches shuffled among each other anew in every epoch.

    Each bucket is a stream of its own, as `PlainOrder` is: its examples, epoch after epoch, each time in
    another order, cut into batches. What is left of a bucket at an epoch's end, less than a batch, is carried
    over: the batch that it begins is filled from the next epoch and belongs to that one. So no example is
    ever left out, and every bucket's stream has each example once an epoch.

    Up to epoch e a bucket of n examples has completed ⌊e·n / B⌋ batches of B. That is all there is to know to
    say where epoch e begins and how many batches of which bucket it has.
    """

    def __init__(self, buckets: Buckets, batch_size: int, seed: int, shuffle: bool, num_epochs: int | None):
        self._buckets = buckets
        self._sizes = np.asarray([len(members) for members in buckets.members], np.int64)
        self._batch_size = batch_size
        self._num_epochs = num_epochs
        # One for each bucket's examples, and the last for the order of the batches.
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
        """Batches that each bucket has completed before an epoch."""
        return epoch * self._sizes // self._batch_size

    def _batch(self, step: int) -> tuple[int, int]:
        """The bucket of a batch, and which one of that bucket's stream it is."""
        # No earlier, for ⌊e·n / B⌋ summed over the buckets is at most e·N / B, and hardly later.
        epoch = step * self._batch_size // len(self._buckets)
        while (until := self._done(epoch + 1)).sum() <= step:
            epoch += 1
        done = self._done(epoch)
        batches = until - done  # of each bucket in this epoch
        place = _shuffled(step - int(done.sum()), int(batches.sum()), self._seeds[-1], epoch)
        ends = np.cumsum(batches)
        bucket = int(np.searchsorted(ends, place, side="right"))
        return bucket, int(done[bucket] + place - (ends[bucket] - batches[bucket]))


def _places(count: int, num_epochs: int | None) -> int:
    return _ENDLESS if num_epochs is None else count * num_epochs


def _shuffled(index: int, count: int, seed: int | None, epoch: int) -> int:
    """What stands at a place of 0 … count - 1 in an order of the seed and the epoch; as it is without a seed.

    A permutation computed place by place, so that 100 million places take no memory: a Feistel network
    over the next power of 4, walked until it is back below `count`. Grain's own takes milliseconds a place
    where there are few, as in small buckets, because it walks among 2^16 or more.
    """
    if seed is None:
        return index
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    while True:
        left, right = divmod(index, 1 << half)
        for turn in range(6):
            digest = hashlib.blake2b(b"%d %d %d %d" % (seed, epoch, turn, right), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest) % (1 << half))
        index = (left << half) + right
        if index < count:
            return index
