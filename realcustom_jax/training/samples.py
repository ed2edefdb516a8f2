"""Sample images of fixed requests, made while a run trains."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.rules import LAST_STEP, option
from realcustom_jax.diffusion.conditioning import Conditioning
from realcustom_jax.diffusion.sampler import sample_latents
from realcustom_jax.generate import generate_latents
from realcustom_jax.inputs.requests import Request
from realcustom_jax.inputs.sizes import image_size, latent_size
from realcustom_jax.inputs.subjects import AUTO, Subject
from realcustom_jax.inputs.target_words import words_mask
from realcustom_jax.inputs.transforms import center_crop_resize, load_image
from realcustom_jax.outputs.decode import decode
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.toybox import WORDS, Identity, render_reference
from realcustom_jax.training.partition import BATCH, merge

if TYPE_CHECKING:
    from realcustom_jax.training.config import TrainConfig

_TOYBOX = "toybox:"  # prefix of a reference that is drawn instead of read: toybox:WORD:SEED


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """The config's `samples` section: images in TensorBoard from the averaged weights (base, customize)."""

    every: int = option(0, "steps between sample images; 0 for none", int, low=0, high=LAST_STEP)
    requests: tuple[tuple[str, str, str], ...] = option(
        (), "(prompt, the subject's words, its reference image: a path or toybox:WORD:SEED)", tuple
    )


class SampleGrid:
    """Makes a grid of samples, one row per request: reference, text only, customized.

    The base stage has no references, so its grid is one column. The images are spread over all devices, and
    the weights stay where they are.

    Raises:
      UserError: the reference of a request cannot be read, or its words are not in its prompt.
    """

    def __init__(self, config: "TrainConfig", pipe: Pipeline, mesh: Mesh):
        """Prepare the grid for the run's config and model. The parameters are passed to each call."""
        customize = config.stage == "customize"
        rows = [_request(*request) for request in config.samples.requests]
        for prompt, words, _ in rows:  # fail now, not hours later at the first samples
            words_mask(pipe.tokenizers, prompt, words)
        # Every row has the same seed in every grid, so that only training changes the images.
        requests = [Request(prompt, (), config.seed) for prompt, _, _ in rows]
        if customize:
            requests += [
                Request(prompt, (Subject(image, words),), config.seed) for prompt, words, image in rows
            ]
        self._size = image_size(pipe.models, pipe.defaults)
        self._references = [reference for _, _, reference in rows] if customize else []
        self._count = len(requests)
        # The devices need equal parts. An image depends on its own request alone, so any request pads.
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        requests += requests[-1:] * (-len(requests) % shards)
        self._draw = _drawing(pipe, requests, mesh)

    def __call__(self, trained: Any, frozen: Any) -> np.ndarray:
        """The grid, uint8 (rows · H, columns · W, 3). All processes must call it."""
        images = list(np.asarray(self._draw(trained, frozen))[: self._count])
        if self._references:
            photos = [center_crop_resize(image, self._size) for image in self._references]
            half = self._count // 2
            rows = zip(photos, images[:half], images[half:], strict=True)
        else:
            rows = ([image] for image in images)
        return np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)


def _request(prompt: str, words: str, reference: str) -> tuple[str, str, np.ndarray]:
    """Read a request's reference image, or draw it."""
    if words == AUTO:
        raise UserError(f"config.samples.requests: {prompt!r} must name its subject's words, not {words!r}")
    if not reference.startswith(_TOYBOX):
        return prompt, words, load_image(reference)
    word, _, seed = reference.removeprefix(_TOYBOX).partition(":")
    if word not in WORDS or not seed.isdecimal():
        raise UserError(
            f"config.samples.requests: {reference!r} is not a toybox subject; write one like "
            f"toybox:{WORDS[0]}:9"
        )
    return prompt, words, render_reference(Identity(word, int(seed))).image


def _drawing(pipe: Pipeline, requests: Sequence[Request], mesh: Mesh) -> Callable[[Any, Any], Array]:
    """Make a jitted function (trained, frozen parameters) → uint8 images (n, H, W, 3), replicated."""
    options = pipe.defaults
    config = options.sampler_config(*latent_size(pipe.models, options.height, options.width))
    static = {"unet": pipe.models.unet, "schedule": pipe.schedule, "config": config}
    rows = NamedSharding(mesh, BATCH)

    def loop(pipe: Pipeline, conditioning: Conditioning, keys: Array, config: Any) -> tuple[Array, Array]:
        # Split by requests from here on: each device then denoises and decodes its own images.
        conditioning = jax.lax.with_sharding_constraint(conditioning, rows)
        return sample_latents(pipe.params["unet"], conditioning, keys, **static)

    def draw(trained: Any, frozen: Any) -> Array:
        params = merge(trained, frozen)
        latents, _ = generate_latents(pipe.replace(params=params), requests, options, config, loop)
        return decode(pipe.models, params["vae"], latents)

    return jax.jit(draw, out_shardings=NamedSharding(mesh, PartitionSpec()))
