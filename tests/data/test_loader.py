"""The stream of batches: complete, reproducible, resumable, and the same for any number of processes."""

import json

import grain
import numpy as np
import pytest

from realcustom_jax.common.errors import UserError
from realcustom_jax.data.loader import make_loader


class Numbers:
    """Example i is the number i."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        return {"number": index}


def transform(example: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "number": np.int64(example["number"]),
        "index": np.int64(example["index"]),
        "noise": rng.standard_normal(2, np.float32),
    }


def refuse(example: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
    raise UserError(f"example {example['number']} is broken")


def loader(count: int = 10, **options):
    return make_loader(Numbers(count), transform, **{"batch_size": 4, "seed": 1, **options})


def take(stream, count: int) -> list[dict[str, np.ndarray]]:
    return [next(stream) for _ in range(count)]


def assert_equal(a: list[dict], b: list[dict]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name])


def numbers(batches: list[dict]) -> list[int]:
    return np.concatenate([batch["number"] for batch in batches]).tolist()


def test_each_epoch_visits_examples_once_in_new_order():
    stream = numbers(take(loader(12), 9))
    epochs = [stream[:12], stream[12:24], stream[24:]]
    for epoch in epochs:
        assert sorted(epoch) == list(range(12))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert tuple(range(12)) not in map(tuple, epochs)


def test_batches_span_epochs_and_last_remainder_is_dropped():
    batches = list(loader(10, num_epochs=3, shuffle=False))
    assert numbers(batches) == (list(range(10)) * 3)[:28]
    assert len(loader(10, num_epochs=3)) == 7


def test_order_depends_only_on_seed():
    assert_equal(take(loader(seed=5), 5), take(loader(seed=5), 5))
    assert numbers(take(loader(100, seed=5), 5)) != numbers(take(loader(100, seed=6), 5))


def test_order_equals_grain_shuffle():
    """Runs of earlier versions, which indexed Grain's data set, must resume with the same stream."""
    expected = grain.MapDataset.range(10).shuffle(7).repeat()
    assert numbers(take(loader(10, seed=7), 9)) == [expected[i] for i in range(36)]


def test_index_counts_up_and_random_numbers_are_unique():
    batches = take(loader(10), 10)
    assert np.concatenate([batch["index"] for batch in batches]).tolist() == list(range(40))
    assert len(np.unique(np.concatenate([batch["noise"] for batch in batches]))) == 80


@pytest.mark.parametrize("done", [0, 1, 4, 13])
def test_resume_continues_the_same_stream(done):
    # 10 examples in batches of 4: these places are at the start of, inside, and between epochs.
    original = loader()
    take(original, done)
    state = json.loads(json.dumps(original.get_state()))
    expected = take(original, 8)
    fresh = loader()
    take(fresh, 2)
    fresh.set_state(state)
    assert fresh.get_state() == state
    assert_equal(take(fresh, 8), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_batch_size_one_keeps_the_order(workers):
    """The order is that of larger batches, also with a worker, after a resume and on two processes."""
    expected = numbers(take(loader(), 3))
    stream = loader(batch_size=1, num_workers=workers)
    assert numbers(take(stream, 6)) == expected[:6]
    fresh = loader(batch_size=1)
    fresh.set_state(stream.get_state())
    stream.close()
    assert numbers(take(fresh, 6)) == expected[6:]
    halves = [loader(batch_size=2, process_index=i, process_count=2) for i in range(2)]
    pairs = [take(half, 6) for half in halves]
    assert [n for pair in zip(*map(numbers, pairs), strict=True) for n in pair] == expected


def test_resume_at_the_end_gives_nothing():
    original = loader(num_epochs=1)
    assert len(list(original)) == 2
    fresh = loader(num_epochs=1)
    fresh.set_state(original.get_state())
    assert list(fresh) == []


def test_two_processes_together_equal_one():
    whole = take(loader(), 8)
    parts = [take(loader(process_index=i, process_count=2), 8) for i in range(2)]
    assert all(batch["number"].shape == (2,) for batch in parts[0])
    together = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*parts, strict=True)]
    assert_equal(together, whole)


def test_state_moves_between_process_counts():
    one = loader()
    take(one, 3)
    two = loader(process_index=1, process_count=2)
    two.set_state(one.get_state())
    np.testing.assert_array_equal(next(two)["number"], next(one)["number"][2:])


def test_workers_and_prefetch_do_not_change_the_stream():
    expected = take(loader(), 6)
    assert_equal(take(loader(prefetch=5), 6), expected)
    workers = loader(num_workers=2)
    assert_equal(take(workers, 3), expected[:3])
    fresh = loader()
    fresh.set_state(workers.get_state())
    workers.close()
    assert_equal(take(fresh, 3), expected[3:])


def test_closed_loader_raises():
    stream = loader()
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        next(stream)


def test_user_error_in_transform_reaches_caller():
    with pytest.raises(UserError, match="is broken"):
        next(make_loader(Numbers(4), refuse, batch_size=2, seed=0))


def test_invalid_loader_arguments_raise():
    with pytest.raises(UserError, match="10 examples, fewer than one batch of 11"):
        loader(batch_size=11)
    with pytest.raises(UserError, match="batch size 4 cannot be divided among 3 processes"):
        loader(process_count=3)
    with pytest.raises(UserError, match="process index 2"):
        loader(process_index=2, process_count=2)
    with pytest.raises(UserError, match="seed must not be negative"):
        loader(seed=-1)
    with pytest.raises(UserError, match="saved with examples=12 and is now examples=10"):
        loader(10).set_state(loader(12).get_state())
