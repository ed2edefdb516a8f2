"""The judge: its training data, its training, and the accuracy of the shipped one."""

import json

import jax
import numpy as np
import pytest

from realcustom_jax.common.errors import UserError
from realcustom_jax.evaluation.judge import SHIPPED, Judge, cut_out
from realcustom_jax.evaluation.judge_data import draw_pairs, load_or_draw
from realcustom_jax.evaluation.toybox import Benchmark, make_cases, means
from realcustom_jax.evaluation.train_judge import IDENTITIES, draw_batch, train
from realcustom_jax.toybox.augment import blur, soften


@pytest.fixture(scope="module")
def pairs():
    return draw_pairs(IDENTITIES, seed=0, processes=0)


def test_crop_is_centred_at_constant_scale():
    """A crop is twice as wide as the square: its 48 pixels show 32 of the image, so the square covers 24."""
    images = np.full((2, 64, 64, 3), -1.0, np.float32)
    masks = np.zeros((2, 64, 64), np.float32)
    masks[0, 10:26, 30:46] = masks[1, 8:40, 16:48] = 1.0  # the second twice as large
    images[masks > 0] = 0.5
    crops = np.asarray(cut_out(images, masks))
    for crop in crops:
        assert abs((crop[..., 3] > 0.5).sum() - 24 * 24) <= 24
        inside = np.argwhere(crop[..., 3] > 0.5)
        np.testing.assert_allclose(inside.mean(axis=0), 23.5, atol=0.6)
    assert np.abs(crops[0, :8]).max() == 0  # outside is grey, whatever the image shows there
    assert np.isfinite(np.asarray(cut_out(images, 0 * masks))).all()


def test_soften_blurs_and_keeps_range():
    rng = np.random.default_rng(0)
    images = rng.choice([-1.0, 1.0], (4, 64, 64, 3)).astype(np.float32)
    soft = np.asarray(soften(images, jax.random.key(1)))
    assert soft.min() >= -1 and soft.max() <= 1
    assert np.abs(np.diff(soft, axis=1)).mean() < 0.9 * np.abs(np.diff(images, axis=1)).mean()
    np.testing.assert_allclose(soften(images, jax.random.key(1), strength=0.0), images, atol=1e-5)
    spot = np.zeros((1, 9, 9, 1), np.float32)
    spot[0, 4, 4] = 1.0
    spread = np.asarray(blur(spot, np.float32([1.0])))
    assert spread.sum() == pytest.approx(1.0, abs=1e-5)
    # Neighbours of a Gaussian of one pixel, e^(-1/2) apart.
    assert spread[0, 4, 5, 0] / spread[0, 4, 4, 0] == pytest.approx(np.exp(-0.5), abs=1e-4)


def test_batches_contain_several_identities_per_word(pairs):
    batch = draw_batch(pairs, np.random.default_rng(0))
    words, counts = np.unique(batch["words"], return_counts=True)
    assert set(counts) == {IDENTITIES} and len(words) > 1
    for i in (0, len(batch["words"]) - 1):
        word = batch["words"][i]
        flips = (slice(None), slice(None, None, -1))
        assert any((batch["scenes"][i][:, f] == s).all() for f in flips for s in pairs.scenes[word])
    again = draw_batch(pairs, np.random.default_rng(0))
    assert (again["scenes"] == batch["scenes"]).all()


def test_interrupted_training_resumes_bit_exactly(pairs, tmp_path, monkeypatch):
    """A whole run and an interrupted, resumed run give the same bits."""
    from realcustom_jax.evaluation import train_judge

    monkeypatch.setattr(train_judge, "SAVE_EVERY", 2)
    monkeypatch.setattr(train_judge, "REPORT_EVERY", 1)
    monkeypatch.setattr(train_judge, "WORDS_AT_ONCE", 2)
    whole = train(pairs, tmp_path / "whole", 4, 1e-3, seed=3)

    real, calls = train_judge.draw_batch, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(train_judge, "draw_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(pairs, tmp_path / "parts", 4, 1e-3, seed=3)
    resumed = train(pairs, tmp_path / "parts", 4, 1e-3, seed=3)
    assert len(calls) == 6  # four, then the third and the fourth again
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(a, b)
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert len({json.loads(line)["words"] for line in lines}) == len(lines) == 4
    assert (tmp_path / "whole" / "model.safetensors").is_file()


def test_cached_drawings_are_reused(pairs, tmp_path, monkeypatch):
    from realcustom_jax.evaluation import judge_data

    monkeypatch.setattr(judge_data, "draw_pairs", lambda *args: pairs)
    first = load_or_draw(tmp_path / "scenes.npz", IDENTITIES, 0)
    monkeypatch.delattr(judge_data, "draw_pairs")
    again = load_or_draw(tmp_path / "scenes.npz", IDENTITIES, 0)
    assert (again.scenes == first.scenes).all() and (again.backgrounds == first.backgrounds).all()


def test_saved_judge_gives_same_results(random_judge, tmp_path):
    """float16 on disk: weights of about 0.1 lose 1e-4 of themselves."""
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    random_judge.save(tmp_path / "judge.safetensors")
    before, after = (
        judge.look(images) for judge in (random_judge, Judge.load(tmp_path / "judge.safetensors"))
    )
    np.testing.assert_allclose(after.directions, before.directions, atol=0.02)
    assert (after.words, after.backgrounds) == (before.words, before.backgrounds)


def test_wrong_image_size_or_missing_file_raises(random_judge, tmp_path):
    with pytest.raises(UserError, match="64×64"):
        random_judge.look(np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(UserError, match=r"nothing\.safetensors"):
        Judge.load(tmp_path / "nothing.safetensors")


def test_shipped_judge_is_accurate_on_toybox():
    """On 64 scenes of held-out identities. `studies/judge.py` measures 208, and the chance level."""
    assert SHIPPED.stat().st_size < 3e6
    scores = means(Benchmark(make_cases(64), Judge.load(), None).ceiling())
    assert scores["identity_top1"] > 0.95 and scores["word_top1"] > 0.95
    assert scores["background_top1"] > 0.95 and scores["mask_iou"] > 0.85
    assert 0 < scores["leakage"] < 0.01 and scores["clip_t"] is None
