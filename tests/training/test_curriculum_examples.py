"""How references get harder, and how captions and references are dropped."""

import dataclasses

import numpy as np
import pytest

from realcustom_jax.data.tokenize import tokenize
from realcustom_jax.training.curriculum import Curriculum
from realcustom_jax.training.examples import MakeExample

COUNT = 1500
IMAGE = np.random.default_rng(0).integers(1, 256, size=(16, 16, 3), dtype=np.uint8)
CAPTION = "a cat on the beach"


@pytest.mark.parametrize(("step", "strength"), [(0, 0.2), (100, 0.2), (150, 0.5), (200, 0.8), (10**6, 0.8)])
def test_strength_is_linear_between_two_steps(step, strength):
    curriculum = Curriculum(start=0.2, end=0.8, begin=100, finish=200)
    assert curriculum.strength(step) == pytest.approx(strength)


def test_a_curriculum_without_length_jumps():
    curriculum = Curriculum(start=0.0, end=1.0, begin=5, finish=5)
    assert [curriculum.strength(step) for step in (4, 5, 6)] == [0.0, 0.0, 1.0]


@pytest.fixture(scope="module")
def make_example(micro_tokenizer) -> MakeExample:
    return MakeExample(
        (micro_tokenizer,), image_size=16, reference_size=16, high_res=False, batch_size=10,
        curriculum=Curriculum(finish=100), drop_text=0.1, drop_image=0.2, drop_both=0.3, text_only=0.25,
    )  # fmt: skip


def run(make_example: MakeExample, index: int, seed: int = 0) -> dict[str, np.ndarray]:
    example = {"image": IMAGE, "caption": CAPTION, "index": index}
    return make_example(example, np.random.default_rng((seed, index)))


def test_captions_and_references_are_dropped_in_the_shares_asked_for(make_example):
    """Alone 10 % and 20 %, both 30 %; 1500 draws, so 4 standard deviations are 5 %. Of either kind a quarter
    trains the text alone."""
    empty, full = (tokenize(*make_example.tokenizers, text) for text in ("", CAPTION))
    counts, flags = np.zeros((2, 2)), np.zeros((2, 2))
    for index in range(COUNT):
        out = run(make_example, index)
        no_text, no_image = np.array_equal(out["ids"], empty), not out["reference"].any()
        assert no_text or np.array_equal(out["ids"], full)
        assert np.array_equal(out["image"], IMAGE)  # what is learned is never dropped
        counts[int(no_text), int(no_image)] += 1
        assert out["flag"] in (0, 1) and out["flag"].dtype == np.float32
        flags[int(no_text), int(no_image)] += out["flag"]
    np.testing.assert_allclose(flags / counts, 0.75, atol=0.15)  # of 150 draws and more
    np.testing.assert_allclose(counts / COUNT, [[0.4, 0.2], [0.1, 0.3]], atol=0.05)


def test_nothing_is_dropped_unless_asked(make_example):
    keep = dataclasses.replace(make_example, drop_text=0.0, drop_image=0.0, drop_both=0.0, text_only=0.0)
    full = tokenize(*keep.tokenizers, CAPTION)
    for index in range(50):
        out = run(keep, index)
        assert np.array_equal(out["ids"], full) and out["reference"].any() and out["flag"] == 1


def test_an_example_is_a_function_of_its_random_numbers(make_example):
    outs = [[run(make_example, index, seed) for index in range(990, 1010)] for seed in (1, 1, 2)]
    same = [
        all(np.array_equal(x[name], y[name]) for name in x) for x, y in zip(outs[0], outs[1], strict=True)
    ]
    other = [
        all(np.array_equal(x[name], y[name]) for name in x) for x, y in zip(outs[0], outs[2], strict=True)
    ]
    assert all(same) and not all(other)


def test_the_reference_is_the_image_first_and_varies_later(make_example):
    """The step is index // batch_size: strength 0 in step 0 and 1 from step 100 on."""
    keep = dataclasses.replace(make_example, drop_text=0.0, drop_image=0.0, drop_both=0.0)

    def change(step: int) -> float:
        references = [run(keep, 10 * step + place)["reference"] for place in range(10)]
        return float(np.mean([np.abs(np.float64(r) - IMAGE).mean() for r in references]))

    assert change(0) == 0.0
    assert 0.0 < change(10) < change(100)


def test_stages_without_a_reference_get_none(make_example):
    out = run(dataclasses.replace(make_example, reference_size=None), 3)
    assert out.keys() == {"image", "ids"}
    assert out["ids"].dtype == np.int32 and out["image"].dtype == np.uint8


def test_the_reference_has_its_own_size(make_example):
    keep = dataclasses.replace(make_example, reference_size=24, drop_image=0.0, drop_both=0.0)
    out = run(keep, 0)
    assert out["reference"].shape == (1, 24, 24, 3) and out["reference"].dtype == np.uint8
