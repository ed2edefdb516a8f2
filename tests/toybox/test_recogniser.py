"""The recogniser of the toybox: its training images, its training, and the shipped one."""

import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax.inputs.recogniser import WordRecogniser
from realcustom_jax.toybox import WORDS, random_identity, render_reference
from realcustom_jax.toybox.recogniser_data import draw_other, draw_part
from realcustom_jax.toybox.train_recogniser import train
from realcustom_jax.weights.parts import MATCHER, TOYBOX


@pytest.fixture(scope="module")
def shipped():
    return WordRecogniser.load(TOYBOX / MATCHER)


def references(count, seed=0):
    rng = np.random.default_rng(seed)
    words = [WORDS[i % len(WORDS)] for i in range(count)]
    identities = [random_identity(rng, word, held_out=True) for word in words]
    return words, [render_reference(identity, int(rng.integers(2**31))).image for identity in identities]


def test_training_images_repeat_and_a_third_show_no_word():
    images, labels = draw_part(3, seed=1)
    again, same = draw_part(3, seed=1)
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(labels, same)
    assert images.shape == (64, 64, 64, 3) and labels.max() <= len(WORDS)
    assert 0.15 < np.mean(labels == 0) < 0.55  # 64 draws of 1/3: 4 standard deviations
    assert (draw_part(4, seed=1)[0] != images).mean() > 0.5


def test_training_lowers_the_loss(capsys):
    images, labels = draw_part(0, seed=0)
    recogniser = train(images, labels, steps=60, batch=16, learning_rate=3e-3, seed=0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    right = (recogniser.scores(list(images)).argmax(1) == labels).mean()
    # By chance: a third is "none". It must learn most of the 64 images that it sees.
    assert right > 0.6


def test_shipped_recogniser_names_held_out_references(shipped):
    """160 references: at least 97 % right, where chance is 6 %."""
    words, images = references(160)
    scores = shipped.logits(images, WORDS)
    assert np.mean([WORDS[i] == word for i, word in zip(scores.argmax(1), words, strict=True)]) >= 0.97


def test_shipped_recogniser_refuses_images_of_other_things(shipped):
    rng = np.random.default_rng(7)
    images = [draw_other(rng, held_out=True) for _ in range(80)]
    assert (shipped.scores(images).argmax(1) == 0).mean() >= 0.95


def test_toybox_finds_and_writes_the_word_of_a_photo():
    pipe = rc.load("toybox")
    photo = rc.Subject(rc.example("bird"), "auto")
    out = rc.sample(pipe, "on the beach at sunset", [photo], steps=2, mask_steps=1, progress=False)
    assert out.prompts == ["a bird on the beach at sunset"] and out.words == [[("bird",)]]
    out = rc.sample(pipe, "a cat and a bird in a room", [photo], steps=2, mask_steps=1, progress=False)
    assert out.prompts == ["a cat and a bird in a room"] and out.words == [[("bird",)]]
