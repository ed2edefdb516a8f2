"""When is the subject lost? `python studies/identity_noise.py [--requests 52] [--out runs/studies]`

Sampling starts at a later step from the true scene with the noise of that step, instead of pure noise. The
judge then measures identity top-1, with the reference and with text only (identity_noise.png). The text-only
score shows how much of the subject survives in the noise. The difference of the two scores is the effect of
the reference. At the last point nothing is sampled: the scene only passes through the VAE.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from noised_scenes import conditioned, encode, noise_like, solver_rows
from toybox_flags import parse

from realcustom_jax.common.cli import run_command
from realcustom_jax.diffusion.conditioning import Conditioning
from realcustom_jax.diffusion.denoiser import Denoiser
from realcustom_jax.diffusion.phases import Phase, phases
from realcustom_jax.diffusion.sampler import SamplerState, sample_step
from realcustom_jax.diffusion.schedule import ScheduleConfig, add_noise
from realcustom_jax.diffusion.solvers import make_table
from realcustom_jax.evaluation import plots
from realcustom_jax.evaluation.judge import Judge
from realcustom_jax.evaluation.tables import cell
from realcustom_jax.evaluation.toybox import SETTINGS, Benchmark, Case, Setting, make_cases, real_scene
from realcustom_jax.inputs.sizes import latent_size
from realcustom_jax.models.family import Models
from realcustom_jax.options import SamplerConfig
from realcustom_jax.outputs.decode import decode
from realcustom_jax.pipeline import Pipeline, load

FIRST_STEPS = (0, 4, 8, 12, 16, 20)  # of 25
COMPARED = {"text only": SETTINGS["text_only"], "full": SETTINGS["full"]}


def main() -> None:
    args = parse(__doc__, 52)
    pipe = load(args.model)
    benchmark = Benchmark(make_cases(args.requests), Judge.load(), None)
    curves = {name: [] for name in COMPARED}
    print(f"{'first step':>16}{'signal √ᾱ':>12}" + "".join(f"{name:>24}" for name in COMPARED))
    options = pipe.defaults
    table = make_table(options.solver, options.steps, pipe.schedule, options.spacing, options.eta)
    first_steps = (*(step for step in FIRST_STEPS if step < options.steps), options.steps)
    for first_step in first_steps:
        for name, setting in COMPARED.items():
            images = sample_from_scenes(pipe, setting, benchmark.cases, first_step, args.batch)
            curves[name].append(benchmark.ranks(images) == 0)
        signal = table.alpha[first_step] if first_step < options.steps else 1.0
        cells = "".join(f"{cell(rows[-1]):>24}" for rows in curves.values())
        print(f"{first_step:16}{signal:12.2f}{cells}", flush=True)
    x = f"first step of {options.steps}, from the noised real scene (last point: VAE alone)"
    plots.curves(args.out / "identity_noise.png", first_steps, curves, x, "identity top-1")


def sample_from_scenes(
    pipe: Pipeline, setting: Setting, requests: Sequence[Case], first_step: int, batch: int
) -> np.ndarray:
    """Images, uint8 (n, H, W, 3), sampled from the requests' real scenes with the noise of `first_step`."""
    options, images = pipe.defaults, []
    config = options.sampler_config(*latent_size(pipe.models, options.height, options.width))
    for start in range(0, len(requests), batch):
        chunk = requests[start : start + batch]
        conditioning, keys = conditioned(pipe, setting, chunk, options)
        scenes = np.stack([real_scene(request).image for request in chunk])
        sampled = _sample_from(
            pipe.params, conditioning, keys, scenes, first_step,
            models=pipe.models, schedule=pipe.schedule, config=config,
        )  # fmt: skip
        images.append(np.asarray(sampled))
    return np.concatenate(images)


@functools.partial(jax.jit, static_argnames=("models", "schedule", "config"))
def _sample_from(
    params: Any,
    conditioning: Conditioning,
    keys: Array,
    scenes: Array,
    first_step: Array,
    *,
    models: Models,
    schedule: ScheduleConfig,
    config: SamplerConfig,
) -> Array:
    """Like `sample_latents`, then the VAE; up to `first_step` the noised scenes replace the latents."""
    clean = encode(models, params, scenes)
    noise = noise_like(clean, keys)
    static = {"unet": models.unet, "schedule": schedule, "config": config}
    denoiser = Denoiser.encode(params["unet"], conditioning, keys, **static)
    rows = (jnp.arange(config.steps), solver_rows(config, schedule))

    def step(phase: Phase, state: SamplerState, row: tuple) -> tuple[SamplerState, None]:
        index, solver = row
        noised = add_noise(clean, noise, solver.alpha, solver.sigma)
        state = state.replace(x=jnp.where(index <= first_step, noised, state.x))
        return sample_step(denoiser, phase, state, index, solver), None

    masks = jnp.zeros((*conditioning.flags.shape, config.mask_height, config.mask_width))
    state = SamplerState(noise, jnp.zeros_like(noise), jnp.zeros_like(noise), masks)
    for phase in phases(config):
        part = jax.tree.map(lambda x, p=phase: x[p.start : p.stop], rows)
        state, _ = jax.lax.scan(functools.partial(step, phase), state, part)
    latents = jnp.where(first_step < config.steps, state.z0, clean)
    return decode(models, params["vae"], latents)


if __name__ == "__main__":
    run_command(main)
