"""The network that names the subject of an image, and the folder that holds it."""

import json

import jax
import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax.inputs.recogniser import WordRecogniser, recogniser_shapes
from realcustom_jax.models.init import init_params
from realcustom_jax.models.recogniser import Recogniser, RecogniserConfig
from realcustom_jax.pipeline import load_matcher

CONFIG = RecogniserConfig(("cat", "dog"), 16, (8, 16))


@pytest.fixture(scope="module")
def small():
    return WordRecogniser(CONFIG, init_params(recogniser_shapes(CONFIG), seed=0))


def pictures(*shapes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


def test_scores_are_log_softmax_of_the_network(small):
    (image,) = images = pictures((16, 16))
    logits = Recogniser(CONFIG).apply(
        {"params": small.params}, image[None] / np.float32(127.5) - np.float32(1)
    )
    expected = np.asarray(jax.nn.log_softmax(logits))
    np.testing.assert_allclose(small.scores(images), expected, atol=1e-5)
    np.testing.assert_allclose(small.none(images), expected[:, 0], atol=1e-5)
    np.testing.assert_allclose(small.logits(images, ["dog", "cat"]), expected[:, [2, 1]], atol=1e-5)


def test_phrase_counts_as_its_last_known_word(small):
    images = pictures((16, 16), (40, 20))
    logits = small.logits(images, ["dog", "red dog", "dogs", "dog cat", "beach"])
    np.testing.assert_allclose(logits[:, 1], logits[:, 0], atol=0.01)
    np.testing.assert_array_equal(logits[:, 2], logits[:, 0])
    np.testing.assert_allclose(logits[:, 3], small.logits(images, ["cat"])[:, 0], atol=0.01)
    assert (logits[:, 1] < logits[:, 0]).all(), "the word alone comes first"
    assert (logits[:, 4] < -50).all()


def test_whole_image_is_seen_also_if_it_is_not_square(small):
    """A change at the far ends of tall and wide images changes the scores."""
    for shape in ((48, 16), (16, 48)):
        (image,) = pictures(shape)
        changed = image.copy()
        changed[:6, :6] = 255 - changed[:6, :6]
        assert np.abs(small.scores([image]) - small.scores([changed])).max() > 1e-4
    with pytest.raises(rc.UserError, match="1x40 pixels is too thin"):
        small.scores(pictures((40, 1)))


def test_folder_gives_the_same_scores(small, tmp_path):
    small.save(tmp_path)
    loaded = load_matcher(tmp_path)
    assert loaded.config == CONFIG and loaded.vocabulary() == ["cat", "dog"]
    images = pictures((16, 16))
    # Parameters are written in float16: 3 digits.
    np.testing.assert_allclose(loaded.scores(images), small.scores(images), atol=0.02)
    loaded.save(tmp_path / "again")
    again = WordRecogniser.load(tmp_path / "again")
    np.testing.assert_array_equal(again.scores(images), loaded.scores(images))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"words": []}, "words must be a list of words"),
        ({"words": ["cat", 3]}, "words must be a list of words"),
        ({"words": ["cat"]}, "words.bias"),
        ({"widths": None}, "widths must be a list"),
        ({"widths": [8, -1]}, "widths must be"),
        ({"widths": [8, 12]}, "widths must be multiples of 8"),
        ({"image_size": 1e9}, "image_size must be"),
        ({"blocks": "two"}, "blocks must be"),
        ({"model_type": "gpt"}, "model_type is 'gpt'"),
    ],
)
def test_damaged_config_is_one_sentence(small, tmp_path, change, expected):
    small.save(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(rc.UserError, match=expected):
        WordRecogniser.load(tmp_path)
