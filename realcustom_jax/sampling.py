"""`sample`: prompts and subjects in, images and masks out. A thin shell over the jitted `sample_latents`."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from realcustom_jax.data.target_words import target_token_mask
from realcustom_jax.data.tokenize import tokenize
from realcustom_jax.data.transforms import ImageLike, center_crop_resize, load_image, to_float
from realcustom_jax.diffusion.sampler import Conditioning, Settings, sample_latents
from realcustom_jax.errors import UserError
from realcustom_jax.models.family import Models
from realcustom_jax.models.vae import VAE
from realcustom_jax.options import SamplingOptions
from realcustom_jax.pipeline import Pipeline


@dataclasses.dataclass(frozen=True)
class Subject:
    """What must appear.

    Attributes:
      image: the reference image: a PIL image, an array (H, W, 3), a path, or encoded bytes.
      words: the target words, a word or phrase of the prompt that the subject narrows.
    """

    image: ImageLike
    words: str


@dataclasses.dataclass(frozen=True)
class Samples:
    """What `sample` gives.

    Attributes:
      images: (B, H, W, 3) uint8.
      masks: (B, steps, R, h, w) float32, the influence scope of each subject at each step; R is the largest
        number of subjects of a request, and may be 0.
    """

    images: np.ndarray
    masks: np.ndarray


def sample(
    pipe: Pipeline,
    prompt: str | Sequence[str],
    subjects: Sequence[Subject] | Sequence[Sequence[Subject]] | None = None,
    seed: int | Sequence[int] = 0,
    *,
    negative_prompt: str | Sequence[str] = "",
    **options: Any,
) -> Samples:
    """Images of the given subjects, as the prompts say.

    Args:
      pipe: from `load`.
      prompt: one, or a list: one request an image.
      subjects: of the prompt, or with a list of prompts a list of lists; None for text only.
      seed: one for each request, or one for all; an image depends on its own request alone.
      negative_prompt: one for all, or one each.
      **options: fields of `SamplingOptions`; the defaults are the model's.

    Raises:
      UserError: when an input is wrong: a target word that is not in its prompt or is cut off by the
        tokenizer's limit, an unreadable image, a size that the UNet can't halve, an unknown option …
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise UserError("there is no prompt")
    batch = len(prompts)
    if isinstance(prompt, str):
        subjects = None if subjects is None else [subjects]
    subjects = (
        [[] for _ in prompts]
        if subjects is None
        else [list(s or []) for s in _each(subjects, batch, "subjects")]
    )
    chosen = pipe.defaults.changed(options)
    height, width = latent_size(pipe.models, chosen.height, chosen.width)
    config = chosen.sampler_config(height, width)
    negatives = [negative_prompt] * batch if isinstance(negative_prompt, str) else negative_prompt
    conditioning = make_conditioning(
        pipe, prompts, subjects, _each(negatives, batch, "negative_prompt"), chosen
    )
    seeds = [seed] * batch if isinstance(seed, (int, np.integer)) else _each(seed, batch, "seed")
    keys = jnp.stack([jax.random.key(int(s)) for s in seeds])
    latents, masks = _sample_latents(
        pipe.params["unet"], conditioning, keys, unet=pipe.models.unet, schedule=pipe.schedule, config=config
    )
    images = _decode(pipe.models, pipe.params["vae"], latents)
    return Samples(np.asarray(images), np.asarray(masks))


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


def make_conditioning(
    pipe: Pipeline,
    prompts: Sequence[str],
    subjects: Sequence[Sequence[Subject]],
    negative_prompts: Sequence[str],
    options: SamplingOptions,
) -> Conditioning:
    """Encode a batch of requests for `sample_latents`.

    Requests may have different numbers of subjects: slots are padded and flagged. Arguments as in `sample`.
    """
    batch, slots = len(prompts), max(len(s) for s in subjects)
    if slots and pipe.models.realcustom is None:
        raise UserError("this model has no realcustom/ weights, so it can take no subjects")
    ids = tokenize(pipe.tokenizer, [*prompts, *negative_prompts])
    text, negative_text = jnp.split(_encode_text(pipe.models, pipe.params["text_encoder"], ids), 2)

    size = pipe.models.image_config.image_size
    words = np.zeros((batch, slots, ids.shape[1]), np.float32)
    flags = np.zeros((batch, slots), np.float32)
    images = np.full((batch, slots + 1, size, size, 3), -1.0, np.float32)  # black, the last slot on purpose
    for i, (prompt, own) in enumerate(zip(prompts, subjects, strict=True)):
        for r, subject in enumerate(own):
            if not isinstance(subject, Subject):
                raise UserError(f"a subject must be rc.Subject(image, words), not {type(subject).__name__}")
            words[i, r] = target_token_mask(pipe.tokenizer, prompt, subject.words)
            images[i, r] = to_float(center_crop_resize(load_image(subject.image), size))
            flags[i, r] = 1.0
    features = negative = ()
    if slots:
        encoded = _encode_images(pipe.models, pipe.params["image_encoder"], images)
        features = (encoded[:, :slots],)
        negative = (jnp.broadcast_to(encoded[:, slots:], features[0].shape),)
    names = [field.name for field in dataclasses.fields(Settings)]
    settings = Settings(**{name: jnp.asarray(options.scalar(name, batch)) for name in names})
    return Conditioning(
        text, negative_text, features, negative, jnp.asarray(words), jnp.asarray(flags), settings
    )


def _each(values: Sequence[Any], count: int, name: str) -> Sequence[Any]:
    if isinstance(values, (str, Subject)) or len(values) != count:
        raise UserError(f"{name} must be a list of {count}, one for each prompt")
    return values


_sample_latents = jax.jit(sample_latents, static_argnames=("unet", "schedule", "config"))


@functools.partial(jax.jit, static_argnums=0)
def _encode_text(models: Models, params: Any, ids: Array) -> Array:
    return models.text_encoder.apply({"params": params}, ids).last


@functools.partial(jax.jit, static_argnums=0)
def _encode_images(models: Models, params: Any, images: Array) -> Array:
    """(B, S, H, W, 3) → (B, S, N, C)."""
    encoder = models.image_encoder
    flat = images.reshape(-1, *images.shape[2:])
    features = encoder.apply({"params": params}, flat, method=encoder.features)
    return features.reshape(*images.shape[:2], *features.shape[1:])


@functools.partial(jax.jit, static_argnums=0)
def _decode(models: Models, params: Any, latents: Array) -> Array:
    """Latents → uint8 images."""
    images = models.vae.apply({"params": params}, latents, method=VAE.decode)
    return jnp.round(jnp.clip(images * 0.5 + 0.5, 0.0, 1.0) * 255.0).astype(jnp.uint8)
