"""Pictures of fixed requests that a run shows of itself while it trains."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.rules import LAST_STEP, option
from realcustom_jax.diffusion.sampler import sample_latents
from realcustom_jax.generate import request_keys
from realcustom_jax.inputs.encode import encode_requests
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

_TOYBOX = "toybox:"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """The config's `samples`: pictures in TensorBoard of the averaged weights (base, customize)."""

    every: int = option(0, "steps between pictures; 0 for none", int, low=0, high=LAST_STEP)
    requests: tuple[tuple[str, str, str], ...] = option(
        (), "(prompt, the subject's words, its reference image: a path or toybox:WORD:SEED)", tuple
    )


class SampleGrid:
    """A picture with a row for each of the config's `samples.requests`: reference, text only, customized.

    The base stage has no references: its picture is one column. All devices make as many images, from the
    averaged weights where they are; every seed is `config.seed`'s, so that only training changes a picture.

    Raises:
      UserError: for a request whose reference cannot be read or whose words are not in its prompt.
    """

    def __init__(self, config: "TrainConfig", pipe: Pipeline, mesh: Mesh):
        """With the run's config, and its model; the parameters are given later."""
        customize = config.stage == "customize"
        asked = [_request(*request) for request in config.samples.requests]
        for prompt, words, _ in asked:  # now, and not hours later at the first picture
            words_mask(pipe.tokenizers, prompt, words)
        requests = [Request(prompt, (), config.seed) for prompt, _, _ in asked]
        if customize:
            requests += [
                Request(prompt, (Subject(image, words),), config.seed) for prompt, words, image in asked
            ]
        self._size = image_size(pipe.models, pipe.defaults)
        self._references = [reference for _, _, reference in asked] if customize else []
        self._count = len(requests)
        # Images depend on their own request alone, so the batch may be filled up for the devices with any.
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        requests += requests[-1:] * (-len(requests) % shards)
        self._draw = _drawing(pipe, requests, mesh)

    def __call__(self, trained: Any, frozen: Any) -> np.ndarray:
        """The picture, uint8 (rows · H, columns · W, 3); all processes must call it."""
        images = list(np.asarray(self._draw(trained, frozen))[: self._count])
        if self._references:
            photos = [center_crop_resize(image, self._size) for image in self._references]
            half = self._count // 2
            rows = zip(photos, images[:half], images[half:], strict=True)
        else:
            rows = ([image] for image in images)
        return np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)


def _request(prompt: str, words: str, reference: str) -> tuple[str, str, np.ndarray]:
    if words == AUTO:
        raise UserError(f"config.samples.requests: {prompt!r} must name its subject's words, not {words!r}")
    if not reference.startswith(_TOYBOX):
        return prompt, words, load_image(reference)
    word, _, seed = reference.removeprefix(_TOYBOX).partition(":")
    if word not in WORDS or not seed.isdecimal():
        raise UserError(
            f"config.samples.requests: {reference!r} is no subject of the toybox, which are written like "
            f"toybox:{WORDS[0]}:9"
        )
    return prompt, words, render_reference(Identity(word, int(seed))).image


def _drawing(pipe: Pipeline, requests: Sequence[Request], mesh: Mesh) -> Callable[[Any, Any], Array]:
    """Jitted (trained, frozen parameters) → uint8 images (n, H, W, 3), whole on every device."""
    options = pipe.defaults
    config = options.sampler_config(*latent_size(pipe.models, options.height, options.width))
    static = {"unet": pipe.models.unet, "schedule": pipe.schedule, "config": config}
    rows = NamedSharding(mesh, BATCH)
    keys = request_keys([request.seed for request in requests])

    def draw(trained: Any, frozen: Any) -> Array:
        params = merge(trained, frozen)
        conditioning = encode_requests(pipe.replace(params=params), requests, options, config)
        conditioning = jax.lax.with_sharding_constraint(conditioning, rows)
        latents, _ = sample_latents(params["unet"], conditioning, keys, **static)
        return decode(pipe.models, params["vae"], latents)

    return jax.jit(draw, out_shardings=NamedSharding(mesh, PartitionSpec()))
