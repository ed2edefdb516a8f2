"""Subjects: their photos, their words, and what a prompt loses."""

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
def test_photos_act_side_by_side(flat_pipe, guidance):
    """One softmax over the tokens of all photos: copies change nothing, order neither, another photo does."""

    def ask(*photos):
        # Without scoring every token counts as much as its copy.
        subject = rc.Subject(images=photos, words="cat")
        return latents(flat_pipe, *conditioning(flat_pipe, [subject], guidance=guidance, scoring="none"))

    one, two = ask(CAT), ask(CAT, OTHER)
    np.testing.assert_allclose(ask(CAT, CAT), one, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ask(OTHER, CAT), two, rtol=1e-4, atol=1e-5)
    assert min(np.abs(two - one).max(), np.abs(two - ask(OTHER)).max()) > 1e-3


@pytest.mark.parametrize("guidance", ["paper", "direct"])
def test_padding_never_acts(flat_pipe, guidance):
    """A slot of two photos is the same where a neighbour has three, whatever stands in the padding."""
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


def test_the_negative_pass_sees_one_black_photo(flat_pipe):
    """However many the subject has, and whatever its neighbours have."""
    two = rc.Subject(images=[CAT, OTHER], words="cat")
    made, config = conditioning(flat_pipe, [two], guidance="direct")
    contexts = encode_contexts(flat_pipe.models.unet, flat_pipe.params["unet"], made, config.guidance)
    tokens = contexts.subject.present.shape[-1] // 2
    negative, subject = np.asarray(contexts.subject.present)[:, 0]
    assert negative[:tokens].all() and not negative[tokens:].any() and subject.all()


def test_padding_is_not_counted():
    """⌊γ_num N⌋ of the tokens that there are, by a loop in numpy."""
    rng = np.random.default_rng(0)
    scores, gamma = rng.random((4, 10)).astype(np.float32), np.asarray([0.3, 0.5, 0.8, 1.0], np.float32)
    present = np.arange(10) < np.asarray([10, 4, 5, 1])[:, None]
    kept = np.asarray(keep_top_tokens(scores, gamma, jnp.asarray(present))) == 0
    for row, share, there, found in zip(scores, gamma, present, kept, strict=True):
        count = max(int(np.floor(share * there.sum() + 1e-4)), 1)
        expected = sorted(np.flatnonzero(there), key=lambda i, row=row: -row[i])[:count]
        assert set(np.flatnonzero(found)) == set(expected)


def test_one_photo_in_a_list_is_the_image(flat_pipe):
    image, listed = rc.Subject(CAT, "cat"), rc.Subject(images=[CAT], words="cat")
    first, second = (rc.sample(flat_pipe, "a cat", [s], seed=1, **OPTIONS) for s in (image, listed))
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.masks, second.masks)


def test_an_occurrence_can_be_named(flat_pipe):
    """ "dog#2" is the second, a phrase of several words too; together they are all."""
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
def test_two_subjects_of_one_word_are_an_error(flat_pipe, first, second):
    subjects = [rc.Subject(DOG, first), rc.Subject(CAT, second)]
    with pytest.raises(rc.UserError, match=rf"subjects 1 \('{first}'\) and 2 \('{second}'\) narrow the same"):
        rc.sample(flat_pipe, "a dog and a big dog", subjects, **OPTIONS)


def test_one_word_is_enough_where_a_mask_says_who_acts(flat_pipe):
    """Word maps do not decide then; nor does a subject of strength 0."""
    half = np.arange(8) < np.full((8, 1), 4)
    rest = [dataclasses.replace(rc.Subject(CAT, "dog"), **c) for c in ({"mask": half}, {"strength": 0})]
    for other in rest:
        conditioning(flat_pipe, [rc.Subject(DOG, "dog"), other])


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
def test_a_subject_needs_words_and_an_image(arguments, sentence):
    with pytest.raises(rc.UserError, match=sentence):
        rc.Subject(**arguments)


def test_what_the_tokenizer_cuts_off_is_told(flat_pipe):
    """The lost part is what the kept tokens do not spell; a prompt that just fits loses nothing."""
    (tokenizer,) = flat_pipe.tokenizers
    assert lost_part(tokenizer, "cat " * 75) == ""
    assert lost_part(tokenizer, "cat " * 75 + "on the beach") == "on the beach"
    with pytest.warns(UserWarning, match="77 tokens.*is lost: 'on the beach'"):
        rc.sample(flat_pipe, "a " + "cat " * 74 + "on the beach", **OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rc.sample(flat_pipe, "a cat", **OPTIONS)


def test_a_prompt_may_be_in_a_file(tmp_path):
    (tmp_path / "bad").write_text("blurred, dark\n")
    assert text_or_file("--x", f"@{tmp_path / 'bad'}") == "blurred, dark"
    assert text_or_file("--x", "a @ b") == "a @ b"
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, sentence in (("none", "there is no file"), ("binary", "cannot be read as text")):
        with pytest.raises(rc.UserError, match=f"--x .*{sentence}"):
            text_or_file("--x", f"@{tmp_path / name}")
