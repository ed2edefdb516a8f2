"""Aspect-ratio buckets: their shapes, their members, and the stream of batches."""

import json
from collections import Counter

import numpy as np
import pytest

from realcustom_jax.common.errors import UserError
from realcustom_jax.data.buckets import Buckets, bucket_shapes, label_buckets, make_buckets
from realcustom_jax.data.loader import make_loader

COUNTS = (17, 3, 9)  # of three buckets; with batches of 4 one is smaller than a batch
SHAPES = ((48, 80), (64, 64), (80, 48))


def test_bucket_shapes_match_sdxl():
    """Shapes of its published list with aspect ratios up to 2 that use the pixel budget best."""
    shapes = bucket_shapes(1024**2, 64, 2.0)
    assert shapes[len(shapes) // 2] == (1024, 1024)
    assert {(704, 1472), (768, 1344), (832, 1216), (896, 1152), (960, 1088)} - set(shapes) == {(704, 1472)}
    for height, width in shapes:
        assert height % 64 == width % 64 == 0 and (width, height) in shapes
        assert height * width <= 1024**2 < (height + 64) * (width + 64)
        assert 0.5 <= height / width <= 2.0
    assert [height / width for height, width in shapes] == sorted(height / width for height, width in shapes)
    assert (512, 2048) in bucket_shapes(1024**2, 64, 4.0)


def test_too_small_pixel_budget_raises():
    assert bucket_shapes(70 * 70, 64, 1.0) == [(64, 64)]
    with pytest.raises(UserError, match="steps of 64 pixels need images of at least 64×64"):
        bucket_shapes(60 * 60, 64, 2.0)


def test_images_go_to_nearest_aspect_ratio():
    sizes = np.random.default_rng(0).integers(1, 3000, (500, 2))
    shapes = bucket_shapes(512**2, 64, 3.0)
    buckets = make_buckets(sizes, shapes)
    assert sorted(np.concatenate(buckets.members)) == list(range(500))
    for shape, members in zip(buckets.shapes, buckets.members, strict=True):
        for width, height in sizes[members]:

            def distance(other, ratio=height / width):
                return abs(np.log(ratio * other[1] / other[0]))

            assert distance(shape) <= min(map(distance, shapes)) + 1e-12  # float64; ties


def test_each_label_gets_one_bucket():
    buckets = label_buckets(["dog", "cat", "dog", "fish", "cat"], (64, 64))
    assert buckets.shapes == ((64, 64),) * 3
    assert [members.tolist() for members in buckets.members] == [[1, 4], [0, 2], [3]]


def buckets() -> Buckets:
    numbers = np.random.default_rng(1).permutation(sum(COUNTS)).astype(np.int32)
    return Buckets(SHAPES, tuple(np.split(numbers, np.cumsum(COUNTS)[:-1])))


class Numbers:
    def __len__(self) -> int:
        return sum(COUNTS)

    def __getitem__(self, index: int) -> dict:
        return {"number": index}


def transform(example: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
    number, index = np.int64(example["number"]), np.int64(example["index"])
    return {"number": number, "index": index, "shape": np.asarray(example["shape"]), "noise": rng.random()}


def loader(**options):
    return make_loader(Numbers(), transform, **{"batch_size": 4, "seed": 1, "buckets": buckets(), **options})


def take(stream, count: int) -> list[dict]:
    return [next(stream) for _ in range(count)]


def assert_equal(a: list[dict], b: list[dict]) -> None:
    for x, y in zip(a, b, strict=True):
        for name in x:
            np.testing.assert_array_equal(x[name], y[name])


def test_each_batch_has_one_bucket_and_its_shape():
    members = dict(zip(SHAPES, buckets().members, strict=True))
    for batch in take(loader(), 40):
        (shape,) = {tuple(shape) for shape in batch["shape"].tolist()}
        assert set(batch["number"]) <= set(members[shape])


def test_each_example_comes_once_per_epoch():
    """4 epochs of 29 are 29 batches of 4: 17·4, 3·4 and 9·4 are whole batches, without a remainder."""
    batches = list(loader(num_epochs=4))
    assert len(batches) == len(loader(num_epochs=4)) == sum(COUNTS)
    assert set(Counter(np.concatenate([batch["number"] for batch in batches])).values()) == {4}


def test_epochs_omit_only_bucket_remainders():
    """After e epochs no example came more than e times, and a bucket of n lacks e·n mod 4 examples."""
    for epochs in (1, 2, 3):
        counts = Counter(np.concatenate([b["number"] for b in loader(num_epochs=epochs)]).tolist())
        assert max(counts.values()) <= epochs
        for members in buckets().members:
            assert (
                epochs * len(members) - sum(counts[i] for i in members.tolist()) == epochs * len(members) % 4
            )


def test_each_epoch_has_its_own_bucket_order():
    """Up to epoch e, ⌊17e/4⌋, ⌊3e/4⌋ and ⌊9e/4⌋ batches are complete: 6, then 13, 20 and 29."""
    epochs = np.split(order(seed=1), [6, 13, 20])
    assert [np.bincount(epoch, minlength=3).tolist() for epoch in epochs] == [
        [4, 0, 2], [4, 1, 2], [4, 1, 2], [5, 1, 3],
    ]  # fmt: skip
    assert not np.array_equal(epochs[1], epochs[2])
    assert len({tuple(order(seed)) for seed in range(6)}) == 6


def order(seed: int) -> np.ndarray:
    """The bucket of each of the batches of four epochs."""
    return np.asarray([SHAPES.index(tuple(batch["shape"][0])) for batch in loader(seed=seed, num_epochs=4)])


@pytest.mark.parametrize("done", [0, 1, 5, 6, 13, 31])
def test_resume_continues_the_same_stream(done):
    original = loader()
    take(original, done)
    state = json.loads(json.dumps(original.get_state()))
    expected = take(original, 8)
    fresh = loader()
    fresh.set_state(state)
    assert_equal(take(fresh, 8), expected)


def test_resume_with_other_host_count_visits_each_example_once():
    """4 epochs: 10 batches on one host, 8 on two, 11 on four; each example comes 4 times in all."""
    whole = list(loader(num_epochs=4))
    seen, done, state = [], 0, None
    for hosts, count in ((1, 10), (2, 8), (4, 11)):
        parts = [loader(num_epochs=4, process_index=i, process_count=hosts) for i in range(hosts)]
        if state:
            for part in parts:
                part.set_state(state)
        taken = [take(part, count) for part in parts]
        together = [{k: np.concatenate([t[i][k] for t in taken]) for k in whole[0]} for i in range(count)]
        assert_equal(together, whole[done : done + count])
        seen += [batch["number"] for batch in together]
        state, done = parts[-1].get_state(), done + count
    assert set(Counter(np.concatenate(seen).tolist()).values()) == {4}
    assert done == len(whole)


def test_workers_do_not_change_the_stream():
    workers = loader(num_workers=2)
    assert_equal(take(workers, 5), take(loader(), 5))
    workers.close()


def test_without_shuffle_buckets_come_in_order():
    numbers = np.concatenate([batch["number"] for batch in take(loader(shuffle=False), 6)])
    first, _, third = buckets().members
    assert numbers.tolist() == [*first[:16], *third[:8]]


def test_resume_with_other_buckets_raises():
    numbers = np.arange(sum(COUNTS), dtype=np.int32)
    other = Buckets(SHAPES, tuple(np.split(numbers, np.cumsum(COUNTS)[:-1])))
    with pytest.raises(UserError, match="cannot resume: it was saved with buckets="):
        loader(buckets=other).set_state(loader().get_state())
    with pytest.raises(UserError, match="the buckets divide 2 examples, but the data set has 29"):
        loader(buckets=Buckets(((64, 64),), (np.arange(2),)))
