"""`rc.sample`: shapes, seeds, references, subjects, words "auto" and results that are not finite."""

import dataclasses
import io
import runpy
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import realcustom_jax as rc
from realcustom_jax.common.pixels import to_signed
from realcustom_jax.generate import request_keys
from realcustom_jax.inputs import encode
from realcustom_jax.inputs.prompts import warn_of_unknown_words
from realcustom_jax.inputs.tokenize import tokenize
from realcustom_jax.inputs.transforms import center_crop_resize, load_image
from realcustom_jax.toybox import Identity, render_reference

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("sample_helpers.py"))))
CAT, SUBJECT, FEW, assert_same_picture = common.CAT, common.SUBJECT, common.FEW, common.assert_same_picture


def test_single_request_equals_list_of_one(micro_pipe):
    """Shapes and types of the contract; a list of one request is that request."""
    subject = rc.Subject(CAT, "cat")
    single = rc.sample(micro_pipe, "a cat on the beach", subjects=[subject], seed=7, **FEW)
    assert single.images.shape == (1, 16, 16, 3) and single.images.dtype == np.uint8
    assert single.masks.shape == (1, 2, 1, 8, 8) and single.masks.dtype == np.float32
    listed = rc.sample(micro_pipe, ["a cat on the beach"], subjects=[[subject]], seed=[7], **FEW)
    np.testing.assert_array_equal(single.images, listed.images)
    np.testing.assert_array_equal(single.masks, listed.masks)


def test_text_only_has_no_masks(micro_pipe):
    out = rc.sample(micro_pipe, ["a cat", "a dog"], seed=[1, 2], **FEW)
    assert out.images.shape == (2, 16, 16, 3) and out.masks.shape == (2, 2, 0, 8, 8)
    assert not np.array_equal(out.images[0], out.images[1])


def test_all_image_types_give_the_same_result(micro_pipe, tmp_path):
    """A path, bytes, a PIL image and an array of the same picture are the same pixels, and give one image."""
    path, buffer = tmp_path / "cat.png", io.BytesIO()
    Image.fromarray(CAT).save(path)
    Image.fromarray(CAT).save(buffer, "PNG")
    kinds = [str(path), path, buffer.getvalue(), Image.open(path), CAT, jnp.asarray(CAT)]
    for kind in kinds:
        np.testing.assert_array_equal(load_image(kind), CAT)
    kinds += [io.BytesIO(buffer.getvalue()), path.open("rb")]  # which can be read only once
    subjects = [[rc.Subject(kind, "cat")] for kind in kinds]
    out = rc.sample(micro_pipe, ["a cat"] * 8, subjects=subjects, seed=3, **FEW)
    for image in out.images[1:]:
        assert_same_picture(image, out.images[0])


def test_each_distinct_image_is_encoded_once(micro_pipe, monkeypatch):
    """Each distinct reference once, and the black image once per pipeline; each slot gets its own."""
    dog = Image.fromarray(render_reference(Identity("dog", 19)).image)
    cat_and_dog = [rc.Subject(CAT, "cat"), rc.Subject(dog, "dog")]
    subjects = [cat_and_dog, [], [rc.Subject(dog, "dog")], cat_and_dog[::-1], cat_and_dog]
    batches, encode_references = [], encode.reference_features

    def spy(pipe, views):
        batches.append(len(views))
        return encode_references(pipe, views)

    monkeypatch.setattr(encode, "reference_features", spy)
    pipe = micro_pipe.replace()  # with a cache of its own

    def make(subjects):
        count = len(subjects)
        return rc.make_conditioning(pipe, ["a cat and a dog"] * count, subjects, [""] * count, pipe.defaults)

    together = make(subjects)
    assert batches == [1, 2]
    np.testing.assert_array_equal(together.flags, [[1, 1], [0, 0], [1, 0], [1, 1], [1, 1]])
    (cat, dog), black = make([[s] for s in cat_and_dog]).features[0][:, 0], together.negative_features[0]
    assert batches == [1, 2], "the pipeline keeps the features of the two references"
    assert black.shape == together.features[0].shape == (5, 2, 16, 16)
    nothing = black[0, 0]
    expected = [[cat, dog], [nothing, nothing], [dog, nothing], [dog, cat], [cat, dog]]
    np.testing.assert_allclose(together.features[0], np.asarray(expected), rtol=1e-5, atol=1e-5)
    assert np.abs(cat - dog).max() > 1e-2 < np.abs(cat - nothing).max()
    np.testing.assert_array_equal(black, np.broadcast_to(nothing, black.shape))


def test_different_seeds_give_different_noise(micro_pipe):
    """Also seeds with equal lower 32 bits, which `jax.random.key` alone treats as equal."""
    seeds = [5, 2**32 + 5, 2**63 + 5, 2**64 - 1, 6]
    data = jax.random.key_data(request_keys(seeds))
    assert len({tuple(row) for row in np.asarray(data).tolist()}) == len(seeds)
    np.testing.assert_array_equal(data[0], jax.random.key_data(jax.random.key(5)))
    for kind in (np.int64, np.uint8, jnp.asarray):
        np.testing.assert_array_equal(jax.random.key_data(request_keys([kind(5)]))[0], data[0])
    out = rc.sample(micro_pipe, ["a cat", "a cat"], seed=np.asarray([5, 2**32 + 5]), **FEW)
    assert not np.array_equal(out.images[0], out.images[1])


def test_other_image_size_is_sampled(micro_pipe):
    out = rc.sample(micro_pipe, "a cat", subjects=[SUBJECT], height=24, width=16, **FEW)
    assert out.images.shape == (1, 24, 16, 3) and out.masks.shape == (1, 2, 1, 12, 8)


def test_subject_options_reach_the_conditioning(micro_pipe):
    """Words, masks (averaged down to the mask grid), modes and strengths, slot by slot."""
    mask = np.zeros((32, 16), np.uint8)
    mask[:16, :8] = 255
    mask[4:8, 2] = 0  # half of one pixel of the 8×8 grid
    subjects = [
        [rc.Subject(CAT, ["cats", "cat"], mask, plurals=True), rc.Subject(CAT, "dog", strength=2)],
        [],
        [rc.Subject(CAT, "dog", mask > 0, "intersect", 0.5)],
    ]
    made = rc.make_conditioning(micro_pipe, ["a dog and a cat"] * 3, subjects, [""] * 3, micro_pipe.defaults)
    expected = np.zeros((8, 8), np.float32)
    expected[:4, :4], expected[1, 1] = 1.0, 0.5
    assert made.user_masks.shape == (3, 2, 8, 8)
    np.testing.assert_allclose(made.user_masks[0, 0], expected, atol=1e-7)
    np.testing.assert_allclose(made.user_masks[2, 0], expected, atol=1e-7)
    assert (np.asarray(made.user_masks)[[0, 1, 1, 2], [1, 0, 1, 1]] == 1).all()
    np.testing.assert_array_equal(made.replace_guided, [[1, 0], [0, 0], [0, 0]])
    np.testing.assert_array_equal(made.strengths, [[1, 2], [1, 1], [0.5, 1]])
    np.testing.assert_array_equal(made.flags, [[1, 1], [0, 0], [1, 0]])
    assert [np.flatnonzero(w).tolist() for w in made.words[0]] == [[5], [2]]


def test_subjects_without_realcustom_weights_raise(micro_pipe):
    base = micro_pipe.replace(models=dataclasses.replace(micro_pipe.models, realcustom=None))
    with pytest.raises(rc.UserError, match="no realcustom/ weights"):
        rc.sample(base, "a cat", subjects=[SUBJECT], **FEW)


def paired(pipe):
    """The pipeline with encoders that count as trained together."""
    (tower,) = pipe.models.image_configs
    tower = dataclasses.replace(tower, text_paired=True, logit_scale=0.5)
    return pipe.replace(models=dataclasses.replace(pipe.models, image_configs=(tower,)))


def test_auto_words_are_the_most_similar_word(micro_pipe):
    """The highest cosine similarity decides, and the result names the word.

    With random weights no word really matches, so a small logit scale makes every word acceptable.
    """
    pipe, prompt = paired(micro_pipe), "a dog and a cat on the beach"
    # The phrases' similarities, straight from the encoders.
    ids = tokenize(*pipe.tokenizers, [f"a {w} on a plain background" for w in ("dog", "cat", "beach")])
    text = (
        pipe.models.text_encoders["text_encoder"].apply({"params": pipe.params["text_encoder"]}, ids).pooled
    )
    image = to_signed(center_crop_resize(CAT, 16))[None]
    image = (
        pipe.models.image_encoders["image_encoder"]
        .apply({"params": pipe.params["image_encoder"]}, image)
        .pooled
    )
    cosine = (text @ image[0]) / jnp.linalg.norm(text, axis=-1)
    best = ("dog", "cat", "beach")[int(jnp.argmax(cosine))]
    auto = rc.sample(pipe, [prompt, prompt], [[rc.Subject(CAT, "auto")], []], seed=3, **FEW)
    assert auto.words == [[(best,)], []]
    given = rc.sample(pipe, [prompt, prompt], [[rc.Subject(CAT, best)], []], seed=3, **FEW)
    np.testing.assert_array_equal(auto.images, given.images)
    np.testing.assert_array_equal(auto.masks, given.masks)
    three = [rc.Subject(CAT, "auto"), rc.Subject(CAT, ("dog",)), rc.Subject(CAT, "auto")]
    both = rc.sample(pipe, prompt, three, **FEW)
    assert both.words[0][1] == ("dog",) and {both.words[0][0], both.words[0][2]} == {("cat",), ("beach",)}


def test_auto_words_without_paired_encoders_raise(micro_pipe):
    with pytest.raises(rc.UserError, match='give the words of each subject instead of "auto"'):
        rc.sample(micro_pipe, "a cat", [rc.Subject(CAT, "auto")], **FEW)


def test_unknown_words_give_a_warning():
    """The toybox's tokenizer stores its known words; known words give no warning."""
    pipe = rc.load("toybox")
    with pytest.warns(UserWarning, match=r"know 'dragon', 'moon'.*things: cat, dog.*places: on the beach"):
        warn_of_unknown_words(pipe.tokenizers, ["a red dragon on the moon"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_unknown_words(pipe.tokenizers, ["a photo of a two-tone cat in a room, under the night sky"])


def test_non_finite_result_raises(micro_pipe):
    """NaN in the UNet's weights, or in the VAE's, gives no black image."""
    for part in ("unet", "vae"):
        params = dict(micro_pipe.params)
        params[part] = jax.tree.map(lambda x: x * jnp.nan, params[part])
        with pytest.raises(rc.UserError, match="the result of request 0, 1 is not finite"):
            rc.sample(micro_pipe.replace(params=params), ["a cat", "a dog"], **FEW)
