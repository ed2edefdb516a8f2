"""Subjects: their photos and words; prompts that are truncated or read from a file."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax.diffusion.denoiser import encode_contexts
from realcustom_jax.diffusion.sampler import sample_latents
from realcustom_jax.inputs.prompts import lost_part, text_or_file
from realcustom_jax.models.scoring import keep_top_tokens
from realcustom_jax.toybox import Identity, render_reference

CAT, OTHER = (render_reference(Identity("cat", seed)).image for seed in (9, 4))
DOG = render_reference(Identity("dog", 19)).image
OPTIONS = {"steps": 2, "gamma_num": 0.6, "gamma_scope": 0.5}
SAMPLE = jax.jit(sample_latents, static_argnames=("unet", "schedule", "config"))


def conditioning(pipe, *subjects, **options):
    chosen = pipe.defaults.changed({**OPTIONS, **options})
    prompts = ["a cat and a dog"] * len(subjects)
    made = rc.make_conditioning(pipe, prompts, subjects, [""] * len(subjects), chosen)
    return made, chosen.sampler_config(8, 8)


def latents(pipe, made, config):
    keys = jnp.stack([jax.random.key(5)] * len(made.flags))
    out, _ = SAMPLE(
        pipe.params["unet"], made, keys, unet=pipe.models.unet, schedule=pipe.schedule, config=config
    )
    return np.asarray(out)


@pytest.mark.parametrize("guidance", ["paper", "direct"])
def test_several_photos_share_one_softmax(flat_pipe, guidance):
    """Copies and the order of photos change nothing; another photo does."""

    def ask(*photos):
        # Without scoring every token counts as much as its copy.
        subject = rc.Subject(images=photos, words="cat")
        return latents(flat_pipe, *conditioning(flat_pipe, [subject], guidance=guidance, scoring="none"))

    one, two = ask(CAT), ask(CAT, OTHER)
    np.testing.assert_allclose(ask(CAT, CAT), one, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ask(OTHER, CAT), two, rtol=1e-4, atol=1e-5)
    assert min(np.abs(two - one).max(), np.abs(two - ask(OTHER)).max()) > 1e-3


@pytest.mark.parametrize("guidance", ["paper", "direct"])
def test_padded_photos_have_no_effect(flat_pipe, guidance):
    """A subject with two photos gives the same result beside one with three, whatever the padding holds."""
    two = rc.Subject(images=[CAT, OTHER], words="cat")
    three = rc.Subject(images=[DOG, CAT, OTHER], words="dog")
    alone = latents(flat_pipe, *conditioning(flat_pipe, [two], guidance=guidance))
    made, config = conditioning(flat_pipe, [two], [two, three], [], guidance=guidance)
    np.testing.assert_array_equal(made.photos[0, 0], [1, 1, 0])
    np.testing.assert_array_equal(made.photos[2], [[1, 0, 0]] * 2)
    garbage = tuple(x.at[0, 0, 2].set(7.0).at[0, 1, 1:].set(-9.0) for x in made.features)
    for features in (made.features, garbage):
        padded = latents(flat_pipe, made.replace(features=features), config)
        assert np.isfinite(padded).all()
        np.testing.assert_allclose(padded[:1], alone, rtol=1e-4, atol=1e-5)


def test_negative_pass_uses_one_black_photo(flat_pipe):
    """Whatever the number of photos of the subject and of its neighbours."""
    two = rc.Subject(images=[CAT, OTHER], words="cat")
    made, config = conditioning(flat_pipe, [two], guidance="direct")
    contexts = encode_contexts(flat_pipe.models.unet, flat_pipe.params["unet"], made, config.guidance)
    tokens = contexts.subject.present.shape[-1] // 2
    negative, subject = np.asarray(contexts.subject.present)[:, 0]
    assert negative[:tokens].all() and not negative[tokens:].any() and subject.all()


def test_padding_tokens_do_not_count_for_gamma_num():
    """⌊γ_num N⌋ of the real tokens are kept, as in a numpy loop."""
    rng = np.random.default_rng(0)
    scores, gamma = rng.random((4, 10)).astype(np.float32), np.asarray([0.3, 0.5, 0.8, 1.0], np.float32)
    present = np.arange(10) < np.asarray([10, 4, 5, 1])[:, None]
    kept = np.asarray(keep_top_tokens(scores, gamma, jnp.asarray(present))) == 0
    for row, share, there, found in zip(scores, gamma, present, kept, strict=True):
        count = max(int(np.floor(share * there.sum() + 1e-4)), 1)
        expected = sorted(np.flatnonzero(there), key=lambda i, row=row: -row[i])[:count]
        assert set(np.flatnonzero(found)) == set(expected)


def test_list_of_one_photo_equals_single_image(flat_pipe):
    image, listed = rc.Subject(CAT, "cat"), rc.Subject(images=[CAT], words="cat")
    first, second = (rc.sample(flat_pipe, "a cat", [s], seed=1, **OPTIONS) for s in (image, listed))
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.masks, second.masks)


def test_word_occurrence_is_selected_by_number(flat_pipe):
    """ "dog#2" is the second occurrence, also of a phrase; without a number all are meant."""
    prompt = "a dog and a big dog and a cat"

    def tokens(words):
        made = rc.make_conditioning(flat_pipe, [prompt], [[rc.Subject(DOG, words)]], [""], flat_pipe.defaults)
        return np.flatnonzero(made.words[0, 0]).tolist()

    assert tokens("dog") == [2, 7]  # "big" is two tokens here
    assert (tokens("dog#1"), tokens("dog#2"), tokens("big dog#1")) == ([2], [7], [5, 6, 7])
    for words, sentence in (("dog#3", "has 'dog' 2 times"), ("dog#0", "from #1"), ("fox#1", "'fox' are not")):
        with pytest.raises(rc.UserError, match=sentence):
            tokens(words)


@pytest.mark.parametrize(("first", "second"), [("dog", "dog"), ("dog", "big dog"), ("dog#2", "dog")])
def test_two_subjects_with_same_word_raise(flat_pipe, first, second):
    subjects = [rc.Subject(DOG, first), rc.Subject(CAT, second)]
    with pytest.raises(rc.UserError, match=rf"subjects 1 \('{first}'\) and 2 \('{second}'\) narrow the same"):
        rc.sample(flat_pipe, "a dog and a big dog", subjects, **OPTIONS)


def test_subjects_may_share_word_with_mask_or_zero_strength(flat_pipe):
    """A user's mask separates the subjects, and strength 0 removes one: no error."""
    half = np.arange(8) < np.full((8, 1), 4)
    rest = [dataclasses.replace(rc.Subject(CAT, "dog"), **c) for c in ({"mask": half}, {"strength": 0})]
    for other in rest:
        made, _ = conditioning(flat_pipe, [rc.Subject(DOG, "dog"), other])
        np.testing.assert_array_equal(made.words[0, 0], made.words[0, 1])
        assert made.present[0].tolist() == [1, other.strength]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"image": CAT}, 'words must be given.*words="auto"'),
        ({"image": CAT, "images": [CAT], "words": "cat"}, "an image, or images, a list"),
        ({"words": "cat"}, "an image, or images, a list"),
        ({"images": [], "words": "cat"}, "an image, or images, a list"),
        ({"images": CAT, "words": "cat"}, "images must be a list of images, not ndarray"),
        ({"images": "cat.png", "words": "cat"}, "images must be a list of images, not str"),
    ],
)
def test_subject_without_words_or_image_raises(arguments, sentence):
    with pytest.raises(rc.UserError, match=sentence):
        rc.Subject(**arguments)


def test_truncated_prompt_warns_with_lost_text(flat_pipe):
    """The warning quotes the lost text; a prompt that just fits loses nothing."""
    (tokenizer,) = flat_pipe.tokenizers
    assert lost_part(tokenizer, "cat " * 75) == ""
    assert lost_part(tokenizer, "cat " * 75 + "on the beach") == "on the beach"
    with pytest.warns(UserWarning, match="77 tokens.*is lost: 'on the beach'"):
        rc.sample(flat_pipe, "a " + "cat " * 74 + "on the beach", **OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rc.sample(flat_pipe, "a cat", **OPTIONS)


def test_prompt_is_read_from_file(tmp_path):
    (tmp_path / "bad").write_text("blurred, dark\n")
    assert text_or_file("--x", f"@{tmp_path / 'bad'}") == "blurred, dark"
    assert text_or_file("--x", "a @ b") == "a @ b"
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, sentence in (("none", "there is no file"), ("binary", "cannot be read as text")):
        with pytest.raises(rc.UserError, match=f"--x .*{sentence}"):
            text_or_file("--x", f"@{tmp_path / name}")
