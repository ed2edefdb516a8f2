"""`sample`: prompts and subjects in, images and masks out. A thin shell over the jitted `sample_latents`."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from realcustom_jax.compile_cache import use_compilation_cache
from realcustom_jax.data.target_words import phrases_of
from realcustom_jax.data.tokenize import tokenize
from realcustom_jax.diffusion.sampler import Conditioning, Settings
from realcustom_jax.diffusion.sampler_config import SamplerConfig
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.diffusion.solvers import make_table
from realcustom_jax.encoder_pair import own_pair
from realcustom_jax.errors import UserError, shown
from realcustom_jax.models.conditioning import size_ids
from realcustom_jax.models.family import Models
from realcustom_jax.option_help import documented
from realcustom_jax.options import Rule, SamplingOptions
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.programs import (
    black_features,
    images_of,
    latents_and_masks,
    reference_features,
    text_features,
)
from realcustom_jax.progress import Progress
from realcustom_jax.prompts import warn_of_lost_parts, warn_of_unknown_words
from realcustom_jax.records import Record, with_files_read
from realcustom_jax.requests import nested_subjects, prompt_lists, requests_of
from realcustom_jax.samples import Samples
from realcustom_jax.sanity import (
    check_finite,
    check_fits,
    check_scope,
    check_used,
    finite_rows,
    memory_errors,
)
from realcustom_jax.subject_arrays import different_references, photo_flags, slot_arrays, target_tokens
from realcustom_jax.subjects import AUTO, Subject, with_words
from realcustom_jax.watching import Preview, Watch, check_preview

SEED = Rule("of the noise, one an image", int, 0, 2**64 - 1)


@documented
def sample(
    pipe: Pipeline,
    prompt: str | Sequence[str],
    subjects: Sequence[Subject] | Sequence[Sequence[Subject]] | None = None,
    seed: int | Sequence[int] | None = None,
    *,
    negative_prompt: str | Sequence[str] | None = None,
    progress: bool | None = None,
    preview: Preview | None = None,
    every: int | None = None,
    **options: Any,
) -> Samples:
    """Images of the given subjects, as the prompts say.

    Args:
      pipe: from `load`.
      prompt: one, or a list: one request an image. One prompt with a list of seeds makes an image of each.
      subjects: of the prompt, or with a list of prompts a list of lists; None for text only.
      seed: from 0 to 2**64 − 1, one for each request or one for all (0); an image depends on its own request
        alone.
      negative_prompt: one for all, or one each; default none.
      progress: whether to say on stderr what takes long: compiling, step k of n. Default yes.
      preview: function of the number of steps done and of the images as they look then, uint8
        (B, H, W, 3). It changes nothing of the result.
      every: steps between previews (5).
      **options: fields of `SamplingOptions`. The defaults are the model's (`pipe.defaults`); in brackets
        stand SD1.5's, and SDXL's where it differs.

        {options}

    Raises:
      UserError: when an input is wrong: a target word that is not in its prompt or is cut off by the
        tokenizer's limit, an unreadable image, a size that the UNet can't halve, an unknown option; or when
        the result is not finite.
    """
    use_compilation_cache()
    prompts, nested, negatives, seeds = requests_of(prompt, subjects, negative_prompt, seed)
    if progress is not None and not isinstance(progress, bool):
        raise UserError(f"progress must be True, False or None, not {shown(progress)}")
    every = check_preview(preview, every)
    keys = request_keys(seeds)
    chosen, config = plan(pipe.models, pipe.schedule, pipe.defaults, options, nested)
    warn_of_unknown_words(pipe.tokenizers, prompts)
    with Progress(shown=progress is None or progress) as report, memory_errors():
        report.stage("encoding prompts and reference images")
        nested = choose_words(pipe, prompts, nested)
        conditioning = make_conditioning(pipe, prompts, nested, negatives, chosen)
        nested = [[with_files_read(subject) for subject in own] for own in nested]
        watch = Watch(config.steps, report, preview, every, functools.partial(images_of, pipe))
        latents, masks = latents_and_masks(pipe, conditioning, keys, config, watch)
        check_finite(finite_rows(latents))
        report.stage("decoding")
        images = images_of(pipe, latents)
    words = [
        [phrases_of(prompt, subject.words) for subject in own]
        for prompt, own in zip(prompts, nested, strict=True)
    ]
    records = tuple(
        Record(*texts, int(one_seed), tuple(own), chosen.of_request(i), dict(pipe.source))
        for i, (*texts, one_seed, own) in enumerate(zip(prompts, negatives, seeds, nested, strict=True))
    )
    return Samples(images, np.asarray(masks), words, records)


def plan(
    models: Models,
    schedule: ScheduleConfig,
    defaults: SamplingOptions,
    changes: Mapping[str, Any],
    subjects: Sequence[Sequence[Subject]],
) -> tuple[SamplingOptions, SamplerConfig]:
    """The options of a batch of requests and the sampler's static part, checked without parameters.

    Raises:
      UserError: for options that are wrong alone, beside each other, or for the model.
    """
    options = defaults.changed(changes)
    check_used(changes, options)
    for name in SamplingOptions.scalars():
        options.scalar(name, len(subjects))
    config = options.sampler_config(*latent_size(models, options.height, options.width))
    make_table(config.solver, config.steps, schedule, config.spacing, config.eta)
    check_fits(models, len(subjects), config)
    check_scope(options, config, subjects)
    return options, config


def request_keys(seeds: Sequence[int]) -> Array:
    """Random keys (B,), a different one for every seed from 0 to 2**64 − 1.

    `jax.random.key` keeps 32 bits of a seed where 64-bit types are off, and follows the configured generator;
    these keys are the same everywhere, and below 2**32 those that it makes by default.

    Raises:
      UserError: for a seed that is no such number.
    """
    halves = [divmod(SEED.check("seed", seed), 2**32) for seed in seeds]
    return jax.random.wrap_key_data(jnp.asarray(halves, jnp.uint32), impl="threefry2x32")


def latent_size(models: Models, height: int | None, width: int | None) -> tuple[int, int]:
    """Latent height and width for an image size in pixels; None for the model's own.

    Raises:
      UserError: when VAE and UNet cannot halve it as often as they must.
    """
    down = models.vae_config.downscale
    multiple = down * models.unet_config.divisor
    sizes = []
    for name, size in (("height", height), ("width", width)):
        size = models.unet_config.sample_size * down if size is None else size
        if size < multiple or size % multiple:
            raise UserError(
                f"the {name} of {size} pixels cannot be halved as often as the model needs: "
                f"use a multiple of {multiple}"
            )
        sizes.append(size // down)
    return sizes[0], sizes[1]


def image_size(models: Models, options: SamplingOptions) -> tuple[int, int]:
    """Height and width in pixels of what the options ask for."""
    down = models.vae_config.downscale
    height, width = latent_size(models, options.height, options.width)
    return height * down, width * down


def make_conditioning(
    pipe: Pipeline,
    prompts: Sequence[str],
    subjects: Sequence[Sequence[Subject]],
    negative_prompts: Sequence[str],
    options: SamplingOptions,
) -> Conditioning:
    """Encode a batch of requests for `sample_latents`.

    Requests may have different numbers of subjects: slots are padded and flagged. Arguments as in `sample`
    with a list of prompts, and its errors.
    """
    prompts, negative_prompts = prompt_lists(prompts, negative_prompts)
    subjects = choose_words(pipe, prompts, nested_subjects(subjects, len(prompts), single=False))
    batch, slots = len(prompts), max(len(own) for own in subjects)
    if slots and pipe.models.realcustom is None:
        raise UserError("this model has no realcustom/ weights, so it can take no subjects")
    ids = [tokenize(tokenizer, [*prompts, *negative_prompts]) for tokenizer in pipe.tokenizers]
    text, pooled = text_features(pipe, ids)
    text, negative_text = jnp.split(text, 2)
    pooled, negative_pooled = (None, None) if pooled is None else jnp.split(pooled, 2)
    sizes = None if pooled is None else size_ids(batch, *image_size(pipe.models, options))

    words = target_tokens(pipe.tokenizers, prompts, subjects, slots)
    warn_of_lost_parts(pipe.tokenizers, [*prompts, *negative_prompts])
    flags, strengths, user_masks, instead = slot_arrays(subjects, slots, *mask_grid(pipe.models, options))
    photos = photo_flags(subjects, slots)
    features = negative = ()
    if slots:
        views, of_slots = different_references(subjects, slots, pipe.models)
        black = black_features(pipe)
        encoded = map(jnp.concatenate, zip(black, reference_features(pipe, views), strict=True))
        features = tuple(x[of_slots] for x in encoded)
        negative = tuple(jnp.broadcast_to(x[0], y.shape) for x, y in zip(black, features, strict=True))
    names = [field.name for field in dataclasses.fields(Settings)]
    settings = Settings(**{name: jnp.asarray(options.scalar(name, batch)) for name in names})
    arrays = jax.tree.map(jnp.asarray, (words, flags, strengths, user_masks, instead))
    return Conditioning(
        text, negative_text, features, negative, *arrays, settings, pooled, negative_pooled, sizes,
        None if photos is None else jnp.asarray(photos),
    )  # fmt: skip


def choose_words(
    pipe: Pipeline, prompts: Sequence[str], subjects: Sequence[Sequence[Subject]]
) -> list[list[Subject]]:
    """The subjects of every request, with the words that their images show in place of "auto".

    Raises:
      UserError: for a model that cannot tell, or where no word of a prompt fits an image.
    """
    if not any(subject.words == AUTO for own in subjects for subject in own):
        return [list(own) for own in subjects]
    matcher = pipe.matcher or own_pair(pipe.models, pipe.params, pipe.tokenizers)
    if matcher is None:
        raise UserError(
            "this model's image encoder cannot tell which words a reference image shows: give the words of "
            'each subject instead of "auto", or load the model with a CLIP that tells them (matcher)'
        )
    nouns = matcher.vocabulary()
    return [with_words(prompt, own, matcher, nouns) for prompt, own in zip(prompts, subjects, strict=True)]


def mask_grid(models: Models, options: SamplingOptions) -> tuple[int, int]:
    """Height and width of the masks."""
    config = options.sampler_config(*latent_size(models, options.height, options.width))
    return config.mask_height, config.mask_width
