"""The toybox world: deterministic scenes, exact masks, correct captions, and a split of identities."""

import re
import subprocess
import sys

import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax.toybox import (
    BACKGROUNDS,
    WORDS,
    Identity,
    describe,
    is_held_out,
    paint_background,
    prompt,
    random_identity,
    render_reference,
    render_scene,
    sample_scene,
)
from realcustom_jax.toybox.backgrounds import PHRASES
from realcustom_jax.toybox.palette import COLOUR_PAIRS, COLOURS, PATTERNS, Look
from realcustom_jax.toybox.scenes import FLOATING, SUPERSAMPLING, draw_figure, example_identity


@pytest.fixture(scope="module")
def scenes():
    return [sample_scene(seed) for seed in range(400)]


def background_only(scene, seed):
    """The scene's background without its subjects, uint8 (S, S, 3)."""
    size = scene.image.shape[0]
    place = paint_background(scene.background, seed, SUPERSAMPLING * size).reduce(SUPERSAMPLING)
    return np.array(place)


def silhouette(identity, side=64):
    """The figure's own shape without pose, bool (side, side)."""
    alpha = draw_figure(identity, SUPERSAMPLING * side)[0].getchannel("A").resize((side, side))
    return np.asarray(alpha) >= 128


def test_scene_sampling_is_deterministic():
    first, again, other = sample_scene(5), sample_scene(5), sample_scene(6)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.masks, again.masks)
    assert (first.caption, first.identities) == (again.caption, again.identities)
    assert (first.image != other.image).any()


def test_scene_shapes_and_dtypes(scenes):
    for scene in scenes[:40]:
        assert scene.image.shape == (64, 64, 3) and scene.image.dtype == np.uint8
        assert scene.masks.shape == (len(scene.identities), 64, 64) and scene.masks.dtype == bool
    assert sample_scene(0, size=32).image.shape == (32, 32, 3)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_masks_cover_changed_pixels(background):
    """Inside a mask the image shows the subject; away from the masks, the plain background."""
    for seed, words in enumerate([("cat",), ("rocket",), ("fish", "house"), ("car", "butterfly")]):
        identities = [Identity(word, 11 * seed + k) for k, word in enumerate(words)]
        scene = render_scene(background, identities, seed)
        changed = (scene.image != background_only(scene, seed)).any(-1)
        covered = scene.masks.any(0)
        # A few of a subject's pixels may have the background's colour.
        assert changed[covered].mean() > 0.97
        # Half-covered edges and whiskers are outside the mask, at most two pixels away.
        reach = covered.copy()
        for axis in (0, 1, 0, 1):
            reach |= np.roll(reach, 1, axis) | np.roll(reach, -1, axis)
        outside = changed & ~reach
        if all(word in FLOATING for word in words):
            assert not outside.any()
        else:
            # Only the shadow on the ground is left: small, and near the feet.
            assert 0 < outside.mean() < 0.05
            assert np.nonzero(outside)[0].min() > 64 * 0.6


def test_masks_are_disjoint_and_inside_image(scenes):
    for scene in scenes:
        assert scene.masks.sum(0).max() == 1
        assert not scene.masks[:, 0].any(), "no subject is cut by the upper edge"
        assert scene.masks.any((1, 2)).all()


def test_subjects_cover_expected_area(scenes):
    one = [s.masks[0].mean() for s in scenes if len(s.identities) == 1]
    two = [m.mean() for s in scenes if len(s.identities) == 2 for m in s.masks]
    assert 0.23 < np.mean(one) < 0.27 and min(one) > 0.15 and max(one) < 0.31
    assert 0.11 < np.mean(two) < 0.15 and min(two) > 0.05 and max(two) < 0.18
    reference = [render_reference(Identity(word, 4)).masks[0].mean() for word in WORDS]
    assert np.mean(reference) > np.mean(one), "a reference shows its subject larger than a scene does"


def test_scene_kinds_have_expected_shares(scenes):
    """Shares within four standard errors of what is expected, for 400 scenes."""
    two = np.mean([len(s.identities) == 2 for s in scenes])
    plain = np.mean([s.background == "plain" for s in scenes])
    simple = np.mean([s.caption == prompt([i.word for i in s.identities], s.background) for s in scenes])
    for share, expected in ((two, 0.30), (plain, 0.08), (simple, 0.55)):
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / len(scenes))
    assert {s.background for s in scenes} == set(BACKGROUNDS)
    assert {i.word for s in scenes for i in s.identities} == set(WORDS)
    assert all(len({i.word for i in s.identities}) == len(s.identities) for s in scenes)


def test_held_out_identities_never_appear_in_training(scenes):
    assert not any(is_held_out(i.seed) for s in scenes for i in s.identities)
    assert all(
        is_held_out(i.seed) for seed in range(40) for i in sample_scene(seed, held_out=True).identities
    )
    assert [seed for seed in range(30) if is_held_out(seed)] == [9, 19, 29]
    rng = np.random.default_rng(0)
    assert not is_held_out(random_identity(rng, "cat", held_out=False).seed)
    assert is_held_out(random_identity(rng, "cat", held_out=True).seed)


@pytest.mark.parametrize("word", WORDS)
def test_identities_of_a_word_differ(word):
    """In pixels and in silhouette, while one identity always has the same shape."""
    figures = [Identity(word, seed) for seed in range(8)]
    images = [render_reference(f).image.astype(int) for f in figures]
    shapes = [silhouette(f) for f in figures]
    pairs = [(a, b) for a in range(8) for b in range(a)]
    assert min(np.abs(images[a] - images[b]).mean() for a, b in pairs) > 4
    assert np.median([(shapes[a] != shapes[b]).mean() for a, b in pairs]) > 0.03
    np.testing.assert_array_equal(silhouette(figures[0]), shapes[0])


@pytest.mark.parametrize("word", WORDS)
def test_both_colours_of_an_identity_are_visible(word):
    """Of the subject's pixels, some are near each of its two named colours (shading darkens others)."""
    for seed in range(40):
        identity = Identity(word, seed)
        scene = render_reference(identity)
        pixels = scene.image[scene.masks[0]].astype(int)
        for name, rgb in zip(identity.colours, Look(identity).rgb, strict=True):
            near = np.abs(pixels - rgb).sum(-1) < 90
            assert near.mean() > 0.02, f"{describe(identity)} (seed {seed}) shows no {name}"


def test_identities_use_all_patterns_and_colours():
    identities = [Identity("cat", seed) for seed in range(300)]
    assert {i.pattern for i in identities} == set(PATTERNS)
    assert {c for i in identities for c in i.colours} == set(COLOURS)
    assert {i.colours for i in identities} <= set(COLOUR_PAIRS)
    striped = next(i for i in identities if i.pattern == "striped")
    assert describe(striped) == f"{striped.colours[0]} and {striped.colours[1]} striped cat"
    plain = next(i for i in identities if i.pattern == "plain")
    assert describe(plain) == f"{plain.colours[0]} and {plain.colours[1]} cat"


def test_captions_match_their_scenes(scenes):
    """Each word once, the background's phrase, and only colours and patterns that the subjects have."""
    for scene in scenes:
        caption_words = re.findall(r"[a-z-]+", scene.caption)
        assert scene.caption == scene.caption.lower()
        for identity in scene.identities:
            assert caption_words.count(identity.word) == 1
        assert PHRASES[scene.background] in scene.caption
        assert not set(WORDS) & (set(caption_words) - {i.word for i in scene.identities})
        text = set(re.findall(r"[a-z-]+", scene.caption.replace(PHRASES[scene.background], "")))
        true_colours = {c for i in scene.identities for c in i.colours}
        assert text & set(COLOURS) <= true_colours
        assert text & set(PATTERNS) <= {i.pattern for i in scene.identities}


def test_prompts_use_background_phrase_and_article():
    assert prompt(["cat"], "beach") == "a cat on the beach"
    assert prompt(["cat", "robot"], "night") == "a cat and a robot under the night sky"
    orange = [s.caption for s in map(sample_scene, range(120)) if "orange" in s.caption.split()]
    assert any("an orange" in caption for caption in orange)
    assert not any("a orange" in caption for caption in orange)


def test_backgrounds_differ_by_name_and_seed():
    places = [np.array(paint_background(b, 3, 128), int) for b in BACKGROUNDS]
    for a in range(len(places)):
        for b in range(a):
            assert np.abs(places[a] - places[b]).mean() > 8, (BACKGROUNDS[a], BACKGROUNDS[b])
        assert (places[a] != np.array(paint_background(BACKGROUNDS[a], 4, 128))).any()
        assert places[a].max() > 90, "the background is unpainted, black"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Identity("unicorn", 1), "unknown toybox word 'unicorn'.*cat, dog"),
        (lambda: Identity("cat", -1), "must be 0 or more"),
        (lambda: prompt(["unicorn"], "beach"), "unknown toybox word 'unicorn'.*cat, dog"),
        (lambda: prompt(["cat"], "moon"), "unknown toybox background 'moon'.*beach.*plain"),
        (lambda: render_scene("moon", [Identity("cat", 1)], 0), "unknown toybox background 'moon'.*beach"),
        (lambda: paint_background("moon", 0, 64), "unknown toybox background 'moon'"),
        (lambda: render_scene("beach", [], 0), "1 to 3 subjects, got 0"),
    ],
)
def test_invalid_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("word", WORDS)
def test_example_is_fixed_held_out_subject(word):
    """The same at every call, and a reference that `rc.Subject` takes."""
    image = rc.example(word)
    identity = example_identity(word)
    assert (image.mode, image.size, identity.word) == ("RGB", (64, 64), word) and is_held_out(identity.seed)
    np.testing.assert_array_equal(image, rc.example(word))
    np.testing.assert_array_equal(image, render_reference(identity).image)
    assert rc.Subject(image=image, words=word).photos == (image,)


@pytest.mark.parametrize("word", ["zebra", "", "Bird", None])
def test_example_of_unknown_word_lists_known_words(word):
    with pytest.raises(rc.UserError, match=f"no example of {word!r}; .*cat, dog, bird"):
        rc.example(word)
    with pytest.raises(rc.UserError, match=f"no example of {word!r}; .*cat, dog, bird"):
        rc.example_face(word)


def test_example_does_not_import_jax():
    code = "import sys, realcustom_jax as rc; rc.example('bird'); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("word", WORDS)
def test_face_box_lies_on_its_subject_and_follows_the_flip(word):
    identity = Identity(word, 9)
    scene = render_reference(identity, size=96)
    _, head = draw_figure(identity, 200)
    _, flipped = draw_figure(identity, 200, flip=True)
    np.testing.assert_array_equal(np.asarray(head)[:, ::-1], flipped)
    if not np.asarray(head).any():
        assert scene.faces == (None,)
        return
    left, top, right, bottom = scene.faces[0]
    inside = scene.masks[0, top:bottom, left:right]
    assert inside.mean() > 0.6  # an ellipse covers π/4 of its box
    assert inside.sum() < 0.6 * scene.masks[0].sum()


def test_creatures_have_faces():
    for word in ("cat", "dog", "bird", "fish", "robot", "butterfly", "turtle"):
        assert render_reference(Identity(word, 9)).faces[0], word


@pytest.mark.parametrize("word", WORDS)
def test_face_of_an_example_is_where_its_head_is_drawn(word):
    """The same shares of the subject's box, flipped or not. 1.5 of 64 pixels: the boxes are rounded."""
    identity, face = example_identity(word), rc.example_face(word)
    sheet, head = draw_figure(identity, 400)
    if head.getbbox() is None:
        assert face is None
        return
    rows, columns = np.nonzero(render_reference(identity).masks[0])
    low, high = np.array((columns.min(), rows.min())), np.array((columns.max(), rows.max())) + 1
    left, top, right, bottom = np.asarray(head.getbbox()) / np.tile(sheet.size, 2)
    drawn = [(np.array(corners) * (high - low) + low).ravel() for corners in (
        ((left, top), (right, bottom)), ((1 - right, top), (1 - left, bottom)),
    )]  # fmt: skip
    assert min(np.abs(np.asarray(face) - box).max() for box in drawn) <= 1.5
    assert rc.Subject(rc.example(word), word, face=face, face_strength=0.5).faces == (face,)
