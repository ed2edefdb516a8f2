"""Encodes requests: text and image features, target words and masks become the sampler's inputs."""

import collections
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from realcustom_jax.common.devices import Program, is_tracing, run_rows
from realcustom_jax.common.errors import UserError
from realcustom_jax.diffusion.conditioning import Conditioning, Settings
from realcustom_jax.inputs.auto_words import find_words
from realcustom_jax.inputs.encoder_pair import own_pair
from realcustom_jax.inputs.face_boxes import token_weights
from realcustom_jax.inputs.prompts import warn_of_lost_parts
from realcustom_jax.inputs.requests import Request, prompt_lists, requests_of
from realcustom_jax.inputs.sizes import latent_size
from realcustom_jax.inputs.subject_arrays import different_references, photo_flags, slot_arrays, target_tokens
from realcustom_jax.inputs.subjects import AUTO, Subject
from realcustom_jax.inputs.tokenize import tokenize
from realcustom_jax.inputs.views import reference_views
from realcustom_jax.models.conditioning import encode_reference, encode_text, size_ids
from realcustom_jax.models.family import IMAGE, TEXT, Models
from realcustom_jax.options import SamplerConfig, SamplingOptions

if TYPE_CHECKING:
    from realcustom_jax.pipeline import Pipeline


# References whose features a pipeline keeps; one of RealCustom++ takes 35 MB.
_CACHED_REFERENCES = 8


def make_conditioning(
    pipe: "Pipeline",
    prompts: Sequence[str],
    subjects: Sequence[Sequence[Subject]],
    negative_prompts: Sequence[str],
    options: SamplingOptions,
) -> Conditioning:
    """Encode a batch of requests for `sample_latents`.

    Requests may have different numbers of subjects. Slots are padded to the largest number, and flagged.

    Args:
      pipe, prompts, subjects, negative_prompts: as in `sample` with a list of prompts.
      options: sampling options.

    Raises:
      UserError: as in `sample`.
    """
    prompts, negative_prompts = prompt_lists(prompts, negative_prompts)
    requests = requests_of(prompts, subjects, negative_prompts, None)
    config = options.sampler_config(*latent_size(pipe.models, options.height, options.width))
    return encode_requests(pipe, resolve_auto_words(pipe, requests), options, config)


def encode_requests(
    pipe: "Pipeline", requests: Sequence[Request], options: SamplingOptions, config: SamplerConfig
) -> Conditioning:
    """Encode a batch of requests; like `make_conditioning`, for requests without the words "auto".

    Args:
      pipe: the model.
      requests: B requests, the result of `resolve_auto_words`.
      options: sampling options; numbers are for all requests, sequences have one number per request.
      config: the static part of `options`.

    Raises:
      UserError: for subjects without RealCustom's weights, or target words that are not in their prompt.
    """
    prompts, negatives = ([getattr(r, name) for r in requests] for name in ("prompt", "negative_prompt"))
    subjects = [request.subjects for request in requests]
    batch, slots = len(requests), max(map(len, subjects))
    if slots and pipe.models.realcustom is None:
        raise UserError("this model has no realcustom/ weights, so it can take no subjects")
    # Prompts and negative prompts in one batch (2B, n_t): one program and one pass for both.
    ids = [tokenize(tokenizer, [*prompts, *negatives]) for tokenizer in pipe.tokenizers]
    text, pooled = text_features(pipe, ids)
    text, negative_text = jnp.split(text, 2)
    pooled, negative_pooled = (None, None) if pooled is None else jnp.split(pooled, 2)
    down = pipe.models.vae_config.downscale
    sizes = None if pooled is None else size_ids(batch, config.height * down, config.width * down)

    words = target_tokens(pipe.tokenizers, prompts, subjects, slots)
    warn_of_lost_parts(pipe.tokenizers, [*prompts, *negatives])
    slot_values = slot_arrays(subjects, slots, config.mask_height, config.mask_width)
    photos, weights = photo_flags(subjects, slots), token_weights(subjects, slots, pipe.models)
    features, negative_features = _slot_features(pipe, subjects, slots) if slots else ((), ())
    names = [field.name for field in dataclasses.fields(Settings)]
    settings = Settings(**{name: jnp.asarray(options.scalar(name, batch)) for name in names})
    words, flags, strengths, user_masks, replace_guided = map(jnp.asarray, (words, *slot_values))
    return Conditioning(
        text, negative_text, features, negative_features, words, flags, strengths, user_masks, replace_guided,
        settings, pooled, negative_pooled, sizes,
        *(None if x is None else jnp.asarray(x) for x in (photos, weights)),
    )  # fmt: skip


def _slot_features(
    pipe: "Pipeline", subjects: Sequence[Sequence[Subject]], slots: int
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Features of the references and of a black image, each (B, R, N, C), or (B, R, P, N, C)."""
    # Each different image is encoded once. Index 0 is the black image, for empty slots and padding.
    views, places = different_references(subjects, slots, pipe.models)
    black = black_features(pipe)
    encoded = map(jnp.concatenate, zip(black, cached_features(pipe, views), strict=True))
    features = tuple(x[places] for x in encoded)  # (1 + U, N, C) → (B, R, N, C) or (B, R, P, N, C)
    return features, tuple(jnp.broadcast_to(x[0], y.shape) for x, y in zip(black, features, strict=True))


def resolve_auto_words(pipe: "Pipeline", requests: Sequence[Request]) -> list[Request]:
    """Replace the words "auto" of subjects by the words that their images show; see `auto_words.find_words`.

    Raises:
      UserError: if the model has no matcher, or if no word fits an image well.
    """
    if not any(subject.words == AUTO for request in requests for subject in request.subjects):
        return list(requests)
    matcher = pipe.matcher or own_pair(pipe.models, pipe.params, pipe.tokenizers)
    if matcher is None:
        raise UserError(
            "this model's image encoder cannot find the words for a reference image: give the words of "
            'each subject instead of "auto", or load the model with a CLIP model that finds them (matcher)'
        )
    found = [find_words(request.prompt, request.subjects, matcher) for request in requests]
    return [
        dataclasses.replace(request, prompt=prompt, subjects=subjects)
        for request, (prompt, subjects) in zip(requests, found, strict=True)
    ]


# ---------------------------------------------------------------- programs


def text_features(pipe: "Pipeline", ids: Sequence[np.ndarray]) -> tuple[Array, Array | None]:
    """Text tokens (B, n_t, C_t) and, for SDXL, pooled text (B, C); see `encode_text`."""
    return _run(pipe, TEXT, encode_text_rows, pipe.models, [tuple(ids)])[0]


def reference_features(pipe: "Pipeline", views: np.ndarray) -> tuple[Array, ...]:
    """Features of U reference images, each (U, N, C); see `encode_reference`.

    Args:
      pipe: the model.
      views: uint8 (U, V, S, S, 3).
    """
    # One image on each device at a time: the features of an image then do not depend on how many others there
    # are, to the bit, and one program serves any number of images.
    step = 1 if pipe.mesh is None else pipe.mesh.size
    if is_tracing():  # in one batch: a loop would repeat the towers in the caller's program
        step = len(views)
    rows = [views[start : start + step] for start in range(0, len(views), step)]
    parts = _run(pipe, IMAGE, encode_reference_rows, pipe.models, rows)
    return tuple(map(jnp.concatenate, zip(*parts, strict=True)))


def cached_features(pipe: "Pipeline", views: np.ndarray) -> tuple[Array, ...]:
    """`reference_features`; the pipeline keeps those of the images that were used last."""
    if is_tracing():  # a tracer must not outlive the caller's jit
        return reference_features(pipe, views)
    cache = pipe.cache.setdefault("references", collections.OrderedDict())
    keys = [hashlib.sha256(view.tobytes()).digest() for view in views]
    missing = [i for i, key in enumerate(keys) if key not in cache]
    if missing:
        new = reference_features(pipe, views[np.asarray(missing)])
        cache.update((keys[i], tuple(x[k : k + 1] for x in new)) for k, i in enumerate(missing))
    features = tuple(map(jnp.concatenate, zip(*(cache[key] for key in keys), strict=True)))
    for key in keys:
        cache.move_to_end(key)
    while len(cache) > _CACHED_REFERENCES:
        cache.popitem(last=False)
    return features


def black_features(pipe: "Pipeline") -> tuple[Array, ...]:
    """Features (1, N, C) of a black image, for empty slots and the negative pass; cached in the pipeline."""
    # RealCustom++'s negative pass sees an image of zeros.
    if "black" not in pipe.cache:
        models = pipe.models
        size = models.image_configs[0].image_size
        views = reference_views(np.zeros((size, size, 3), np.uint8), size, models.high_res)
        features = reference_features(pipe, views[None])
        if is_tracing():  # a tracer must not outlive the caller's jit
            return features
        pipe.cache["black"] = features
    return pipe.cache["black"]


def _run(
    pipe: "Pipeline", components: Sequence[str], program: Program, static: Any, batches: Sequence[Any]
) -> list[Any]:
    """Run a program on batches of rows, and release the components' parameters if they are offloaded."""
    params = {name: pipe.params[name] for name in components if name in pipe.params}
    out = [run_rows(pipe.mesh, program, static, params, rows) for rows in batches]
    # Wait, so that these parameters are freed before those of the next component are loaded.
    return jax.block_until_ready(out) if pipe.offloaded else out


def encode_text_rows(models: Models, params: Any, ids: Sequence[Array]) -> tuple[Array, Array | None]:
    """`encode_text` as a `Program`: a function of a static object, parameters and rows."""
    return encode_text(models, params, ids)


def encode_reference_rows(models: Models, params: Any, views: Array) -> tuple[Array, ...]:
    """`encode_reference` as a `Program`."""
    return encode_reference(models, params, views)
