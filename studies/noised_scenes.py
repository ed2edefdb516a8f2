"""Helpers of the studies: latents of real scenes, noise, conditioning, and the solver's table."""

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
    """Conditioning and random keys of cases in a setting, as the sampler takes them."""
    requests = [setting.request(case) for case in cases]
    config = options.sampler_config(*latent_size(pipe.models, options.height, options.width))
    return encode_requests(pipe, requests, options, config), request_keys([r.seed for r in requests])


def encode(models: Models, params: Any, images: np.ndarray | Array) -> Array:
    """Encode uint8 images (n, H, W, 3) to latents (n, h, w, C)."""
    return models.vae.apply({"params": params["vae"]}, to_signed(images), method=VAE.encode)


def noise_like(latents: Array, keys: Array, number: int | Array = 0) -> Array:
    """Noise in the shape of latents (n, h, w, C) from request keys (n,); sampling starts from number 0."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), latents.shape[1:]))(keys)


def solver_rows(config: SamplerConfig, schedule: ScheduleConfig) -> SolverTable:
    """Solver table as device arrays, so that a traced step can index it."""
    table = make_table(config.solver, config.steps, schedule, config.spacing, config.eta)
    return jax.tree.map(jnp.asarray, table)
