"""Training examples: the curriculum of references, and dropout of captions and references."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from realcustom_jax.common.errors import UserError
from realcustom_jax.data.cut_outs import mark
from realcustom_jax.inputs.tokenize import tokenize
from realcustom_jax.training.examples import Curriculum, MakeExample, MakeViews
from realcustom_jax.training.scopes import WIDEST, scopes

COUNT = 1500
IMAGE = np.random.default_rng(0).integers(1, 256, size=(16, 16, 3), dtype=np.uint8)
CAPTION = "a cat on the beach"


@pytest.mark.parametrize(("step", "strength"), [(0, 0.2), (100, 0.2), (150, 0.5), (200, 0.8), (10**6, 0.8)])
def test_curriculum_strength_is_linear_between_two_steps(step, strength):
    curriculum = Curriculum(start=0.2, end=0.8, begin=100, finish=200)
    assert curriculum.strength(step) == pytest.approx(strength)


def test_curriculum_of_zero_length_jumps():
    curriculum = Curriculum(start=0.0, end=1.0, begin=5, finish=5)
    assert [curriculum.strength(step) for step in (4, 5, 6)] == [0.0, 0.0, 1.0]


@pytest.fixture(scope="module")
def make_example(micro_tokenizer) -> MakeExample:
    return MakeExample(
        (micro_tokenizer,), image_size=16, reference_size=16, high_res=False, of_subject=False,
        region_downscale=None, batch_size=10,
        curriculum=Curriculum(finish=100), drop_text=0.1, drop_image=0.2, drop_both=0.3, text_only=0.25,
    )  # fmt: skip


def run(make_example: MakeExample, index: int, seed: int = 0) -> dict[str, np.ndarray]:
    example = {"image": IMAGE, "caption": CAPTION, "index": index}
    return make_example(example, np.random.default_rng((seed, index)))


def test_dropout_shares_match_their_options(make_example):
    """Alone 10 % and 20 %, both 30 %; 1500 draws, so 4 standard deviations are 5 %. A quarter of each kind
    trains the text alone."""
    empty, full = (tokenize(*make_example.tokenizers, text) for text in ("", CAPTION))
    counts, flags = np.zeros((2, 2)), np.zeros((2, 2))
    for index in range(COUNT):
        out = run(make_example, index)
        no_text, no_image = np.array_equal(out["ids"], empty), not out["reference"].any()
        assert no_text or np.array_equal(out["ids"], full)
        assert np.array_equal(out["image"], IMAGE)  # the training image is never dropped
        counts[int(no_text), int(no_image)] += 1
        assert out["flag"].shape == (1,) and out["flag"].dtype == np.float32
        assert out["flag"][0] in (0, 1)
        flags[int(no_text), int(no_image)] += out["flag"][0]
    np.testing.assert_allclose(flags / counts, 0.75, atol=0.15)  # of 150 draws and more
    np.testing.assert_allclose(counts / COUNT, [[0.4, 0.2], [0.1, 0.3]], atol=0.05)


def test_zero_dropout_drops_nothing(make_example):
    keep = dataclasses.replace(make_example, drop_text=0.0, drop_image=0.0, drop_both=0.0, text_only=0.0)
    full = tokenize(*keep.tokenizers, CAPTION)
    for index in range(50):
        out = run(keep, index)
        assert np.array_equal(out["ids"], full) and out["reference"].any() and out["flag"] == 1


def test_example_depends_only_on_its_random_numbers(make_example):
    outs = [[run(make_example, index, seed) for index in range(990, 1010)] for seed in (1, 1, 2)]
    same = [
        all(np.array_equal(x[name], y[name]) for name in x) for x, y in zip(outs[0], outs[1], strict=True)
    ]
    other = [
        all(np.array_equal(x[name], y[name]) for name in x) for x, y in zip(outs[0], outs[2], strict=True)
    ]
    assert all(same) and not all(other)


def test_reference_equals_image_first_and_varies_later(make_example):
    """The step is index // batch_size: strength 0 in step 0 and 1 from step 100 on."""
    keep = dataclasses.replace(make_example, drop_text=0.0, drop_image=0.0, drop_both=0.0)

    def change(step: int) -> float:
        references = [run(keep, 10 * step + place)["reference"] for place in range(10)]
        return float(np.mean([np.abs(np.float64(r) - IMAGE).mean() for r in references]))

    assert change(0) == 0.0
    assert 0.0 < change(10) < change(100)


def test_no_reference_size_gives_no_reference(make_example):
    out = run(dataclasses.replace(make_example, reference_size=None), 3)
    assert out.keys() == {"image", "ids"}
    assert out["ids"].dtype == np.int32 and out["image"].dtype == np.uint8


def test_reference_has_its_own_size(make_example):
    keep = dataclasses.replace(make_example, reference_size=24, drop_image=0.0, drop_both=0.0)
    out = run(keep, 0)
    assert out["reference"].shape == (1, 1, 24, 24, 3) and out["reference"].dtype == np.uint8


def two_subjects() -> dict:
    """A dark picture of 24×24, red on its left and green on its right."""
    image = np.full((24, 24, 3), 40, np.uint8)
    masks = np.zeros((2, 24, 24), bool)
    masks[0, 8:16, 2:10], masks[1, 8:16, 14:22] = True, True
    image[masks[0]], image[masks[1]] = (250, 20, 20), (20, 250, 20)
    subjects = [mark(words, mask) for words, mask in zip(("cat", "dog"), masks, strict=True)]
    return {"key": "k", "image": image, "caption": CAPTION, "metadata": {"subjects": subjects}}


def colour(photo: np.ndarray) -> str:
    """The colour in the middle of a photo; its dark original background must not show."""
    assert photo.min(axis=2).max() > 140 and photo.max(axis=2).min() > 100  # a light background
    red, green, _ = photo[6:10, 6:10].reshape(-1, 3).mean(axis=0)
    assert abs(red - green) > 100
    return "red" if red > green else "green"


def test_subject_reference_shows_only_one_marked_subject(make_example):
    of_subject = dataclasses.replace(make_example, of_subject=True, drop_image=0.0, drop_both=0.0)
    seen, example = [], two_subjects()
    whole = make_example({**example, "index": 0}, np.random.default_rng(0))
    for index in range(40):
        out = of_subject({**example, "index": index}, np.random.default_rng(index))
        seen.append(colour(out["reference"][0, 0]))
        assert np.array_equal(out["image"], whole["image"])  # the training image is unchanged
    assert 8 < seen.count("red") < 32


@pytest.mark.parametrize("shape", [(16, 16), (12, 16)])
def test_subject_outside_crop_is_no_reference(make_example, shape):
    """The picture is 24×72 with the red subject at its left end, and training crops its middle."""
    of_subject = dataclasses.replace(make_example, of_subject=True, drop_image=0.0, drop_both=0.0)
    example = two_subjects()
    example["image"] = np.pad(example["image"], ((0, 0), (0, 48), (0, 0)))
    masks = np.zeros((2, 24, 72), bool)
    masks[0, 8:16, 2:10] = True
    masks[1, 8:16, 32:40] = True
    example["image"][masks[1]] = (20, 250, 20)
    entries = [mark(words, mask) for words, mask in zip(("cat", "dog"), masks, strict=True)]
    for index in range(20):
        example["metadata"] = {"subjects": entries}
        out = of_subject({**example, "shape": shape, "index": index}, np.random.default_rng(index))
        assert colour(out["reference"][0, 0]) == "green"
        example["metadata"] = {"subjects": entries[:1]}
        out = of_subject({**example, "shape": shape, "index": index}, np.random.default_rng(index))
        assert not out["reference"].any()  # as if it had been dropped


@pytest.mark.parametrize("shape", [None, (12, 16)])
def test_region_covers_the_reference_subject(make_example, shape):
    """The share of each 4×4 square with the reference's colour; 0 without a reference."""
    of_subject = dataclasses.replace(
        make_example, of_subject=True, region_downscale=4, drop_image=0.3, drop_both=0.0
    )
    seen, example = set(), two_subjects() | ({} if shape is None else {"shape": shape})
    for index in range(40):
        out = of_subject({**example, "index": index}, np.random.default_rng(index))
        height, width = shape or (16, 16)
        assert out["region"].shape == (1, height // 4, width // 4) and out["region"].dtype == np.uint8
        image = np.float64(out["image"])
        sides = {"red": image[..., 0] > 145, "green": image[..., 1] > 145}
        covered = {
            name: [
                [side[y : y + 4, x : x + 4].mean() for x in range(0, width, 4)] for y in range(0, height, 4)
            ]
            for name, side in sides.items()
        }
        if not out["reference"].any() or not out["flag"]:
            assert not out["region"].any()
            seen.add("none")
            continue
        near = [name for name in sides if np.abs(out["region"][0] / 255 - covered[name]).max() < 0.3]
        assert near == [colour(out["reference"][0, 0])]
        seen.add(near[0])
    assert seen == {"red", "green", "none"}


def test_two_subjects_have_their_own_references_regions_and_scopes(make_example):
    """A quarter has one of them, which acts everywhere; two act around themselves."""
    two = dataclasses.replace(
        make_example, of_subject=True, region_downscale=4, drop_image=0.0, drop_both=0.0, text_only=0.2,
        subjects=2, curriculum=Curriculum(),
    )  # fmt: skip
    kinds, example = Counter(), two_subjects()
    for index in range(200):
        out = two({**example, "index": index}, np.random.default_rng(index))
        assert out["reference"].shape == (2, 1, 16, 16, 3) and out["flag"].shape == (2,)
        assert out["region"].shape == out["scope"].shape == (2, 4, 4)
        shown = [bool(views.any()) for views in out["reference"]]
        assert shown[0]
        colours = [colour(views[0]) for views, there in zip(out["reference"], shown, strict=True) if there]
        assert len(set(colours)) == len(colours)
        kinds[len(colours), bool(out["flag"][0])] += 1
        if not out["flag"][0]:
            assert not out["flag"].any() and not out["region"].any()
            continue
        assert list(out["flag"]) == shown
        if len(colours) == 1:
            assert (out["scope"][0] == 255).all() and not out["scope"][1].any() and not out["region"][1].any()
            continue
        for r, name in enumerate(colours):
            own = slice(0, 2) if name == "red" else slice(2, 4)
            other = slice(2, 4) if name == "red" else slice(0, 2)
            assert out["region"][r][:, own].any() and not out["region"][r][:, other].any()
            assert not out["scope"][r][:, other].any() and (out["scope"][r] >= out["region"][r]).all()
    # 200 draws: 40 ± 11 of one with a flag, 120 ± 14 of two
    assert 22 < kinds[1, True] < 58 and 98 < kinds[2, True] < 142 and kinds[1, False] and kinds[2, False]


@pytest.mark.parametrize("seed", range(3))
def test_scopes_grow_around_each_subject(seed):
    """Against loops: a pixel acts if its subject is the nearest, and it is among the nearest of its share."""
    masks = [np.zeros((16, 16), bool) for _ in range(2)]
    masks[0][2:7, 1:5], masks[1][8:13, 9:14] = True, True
    found = scopes(masks, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    points = [np.argwhere(mask) for mask in masks]
    distance = np.array(
        [[[np.hypot(*(own - (y, x)).T).min() for x in range(16)] for y in range(16)] for own in points]
    )
    for r, mask in enumerate(masks):
        limit = np.quantile(distance[r], rng.uniform(mask.mean(), WIDEST))
        nearer = distance[r] <= distance[1] if r == 0 else distance[1] < distance[0]
        np.testing.assert_array_equal(found[r], nearer & (distance[r] <= limit))
        assert mask.sum() < found[r].sum() <= np.ceil(WIDEST * 256) + 8


def test_lone_subject_acts_everywhere():
    assert scopes([np.eye(4) > 0], np.random.default_rng(0))[0].all()


def test_example_without_subject_raises(make_example):
    of_subject = dataclasses.replace(make_example, of_subject=True)
    example = {"key": "k17", "image": IMAGE, "caption": CAPTION, "metadata": {}, "index": 0}
    with pytest.raises(UserError, match="the example 'k17' marks no subjects"):
        of_subject(example, np.random.default_rng(0))


@pytest.mark.parametrize("first", [True, False])
def test_views_are_two_photos_of_one_subject(first):
    seen = []
    for seed in range(40):
        out = MakeViews(16, first)(two_subjects(), np.random.default_rng(seed))
        views = out["views"]
        assert views.shape == (2, 16, 16, 3) and views.dtype == np.uint8
        assert not np.array_equal(*views)
        assert len({colour(view) for view in views}) == 1
        seen.append((colour(views[0]), int(out["subject"])))
    reds = sum(name == "red" for name, _ in seen)
    assert reds == 40 if first else 8 < reds < 32
    assert len(set(seen)) == (1 if first else 2)  # a subject has one number


def test_views_of_tiny_subject_raise():
    mask = np.zeros((24, 24), bool)
    mask[3, 3] = True
    example = {**two_subjects(), "metadata": {"subjects": [mark("cat", mask)]}}
    with pytest.raises(UserError, match="'k' marks subjects that are too small"):
        MakeViews(16, first=True)(example, np.random.default_rng(0))
