"""Real scenes, in latents and under noise, for the scripts here that look behind the report's numbers."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from realcustom_jax.common.pixels import to_signed
from realcustom_jax.diffusion.conditioning import Conditioning
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.diffusion.solvers import SolverTable, make_table
from realcustom_jax.evaluation.toybox import Case, Setting
from realcustom_jax.generate import request_keys
from realcustom_jax.inputs.encode import encode_requests
from realcustom_jax.inputs.sizes import latent_size
from realcustom_jax.models.family import Models
from realcustom_jax.models.vae import VAE
from realcustom_jax.options import SamplerConfig, SamplingOptions
from realcustom_jax.pipeline import Pipeline


def conditioned(
    pipe: Pipeline, setting: Setting, cases: Sequence[Case], options: SamplingOptions
) -> tuple[Conditioning, Array]:
    """What the sampler takes of cases in a setting: their conditioning and keys."""
    requests = [setting.request(case) for case in cases]
    config = options.sampler_config(*latent_size(pipe.models, options.height, options.width))
    return encode_requests(pipe, requests, options, config), request_keys([r.seed for r in requests])


def encode(models: Models, params: Any, images: np.ndarray | Array) -> Array:
    """Latents (n, h, w, C) of uint8 images (n, H, W, 3)."""
    return models.vae.apply({"params": params["vae"]}, to_signed(images), method=VAE.encode)


def noise_like(latents: Array, keys: Array, number: int | Array = 0) -> Array:
    """Noise of latents (n, h, w, C) by the keys (n,) of their requests; samples begin with number 0."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), latents.shape[1:]))(keys)


def solver_rows(config: SamplerConfig, schedule: ScheduleConfig) -> SolverTable:
    """The solver's table as arrays of the device, so that a traced step can take its row."""
    table = make_table(config.solver, config.steps, schedule, config.spacing, config.eta)
    return jax.tree.map(jnp.asarray, table)
