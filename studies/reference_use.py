"""How much of a subject does the network take from its reference? `python studies/reference_use.py`

A noised real scene of each request is denoised in one pass. The study measures the mean squared error of the
predicted z_0 inside the subject: with text only, with the reference of another subject of the word, and with
the subject's own reference (reference_use.png). There is no mask, and all visual tokens are used.

At pure noise the best possible error is known: the best prediction is the mean of all possible scenes, so its
error is their variance. The study prints this variance for scenes of the request's word and place, once with
any subject (the best that text only can reach) and once with the request's subject.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from noised_scenes import encode, noise_like, solver_rows
from toybox_flags import parse

from realcustom_jax.common.cli import run_command
from realcustom_jax.data.cut_outs import shrink_mask
from realcustom_jax.diffusion.conditioning import Conditioning
from realcustom_jax.diffusion.denoiser import Denoiser
from realcustom_jax.diffusion.schedule import ScheduleConfig, add_noise, predicted_z0_and_noise
from realcustom_jax.diffusion.solvers import SolverTable, make_table
from realcustom_jax.evaluation import plots
from realcustom_jax.evaluation.tables import cell
from realcustom_jax.evaluation.toybox import (
    IDENTITIES,
    Case,
    identity,
    make_cases,
    real_scene,
    reference,
    references,
)
from realcustom_jax.generate import request_keys
from realcustom_jax.inputs.encode import make_conditioning
from realcustom_jax.inputs.sizes import latent_size
from realcustom_jax.inputs.subjects import Subject
from realcustom_jax.models.family import Models
from realcustom_jax.options import SamplerConfig
from realcustom_jax.pipeline import Pipeline, load
from realcustom_jax.toybox import Scene, random_identity, render_scene

STEPS = (0, 4, 8, 12, 16, 20)
NOISES = 4  # noise samples per scene and step
SCENES = 96  # scenes per request, for the variance
KINDS = ("text only", "another's reference", "own reference")


def main() -> None:
    args = parse(__doc__, 104)
    pipe = load(args.model)
    requests = make_cases(args.requests)
    options = pipe.defaults
    steps = [step for step in STEPS if step < options.steps]
    table = make_table(options.solver, options.steps, pipe.schedule, options.spacing, options.eta)
    rows = {kind: [] for kind in KINDS}
    for start in range(0, len(requests), args.batch):
        for kind in KINDS:
            rows[kind].append(errors(pipe, kind, requests[start : start + args.batch], steps))
    curves = {kind: list(np.concatenate(parts, axis=1)) for kind, parts in rows.items()}
    x = f"step of {options.steps} whose noise is added to the scene"
    plots.curves(args.out / "reference_use.png", steps, curves, x, "mean squared error of z_0 in the subject")

    print(f"{'step':>6}{'signal √ᾱ':>12}" + "".join(f"{kind:>24}" for kind in KINDS))
    for i, step in enumerate(steps):
        cells = "".join(f"{cell(curves[kind][i]):>24}" for kind in KINDS)
        print(f"{step:6}{table.alpha[step]:12.2f}{cells}")
    print(f"best possible error at pure noise (variance of {SCENES} scenes per request):")
    for name, own in (("any subject of the word", False), ("its own", True)):
        print(f"  {name}: {cell([variance(pipe, request, own) for request in requests])}", flush=True)


def errors(pipe: Pipeline, kind: str, requests: Sequence[Case], steps: Sequence[int]) -> np.ndarray:
    """Mean squared errors of z_0 inside the subjects: (steps, n)."""
    config = pipe.defaults.sampler_config(*latent_size(pipe.models, None, None))
    subjects = [[] if kind == "text only" else [photo(kind, request)] for request in requests]
    conditioning = make_conditioning(
        pipe, [request.prompt for request in requests], subjects, [""] * len(requests), pipe.defaults
    )
    scenes = [real_scene(request) for request in requests]
    return np.asarray(
        _errors(
            pipe.params, conditioning, request_keys([request.seed for request in requests]),
            np.stack([scene.image for scene in scenes]), in_latents(pipe, scenes), jnp.asarray(steps),
            models=pipe.models, schedule=pipe.schedule, config=config,
        )
    )  # fmt: skip


def photo(kind: str, request: Case) -> Subject:
    other = references(request.word)[(request.number + 1) % IDENTITIES]
    scene = reference(request) if kind == "own reference" else other
    return Subject(scene.image, request.word)


def in_latents(pipe: Pipeline, scenes: Sequence[Scene]) -> np.ndarray:
    """Share of each latent that the subjects cover, 0…1: (n, h, w)."""
    return np.stack([shrink_mask(s.masks[0], pipe.models.vae_config.downscale) for s in scenes]) / 255.0


@functools.partial(jax.jit, static_argnames=("models", "schedule", "config"))
def _errors(
    params: Any,
    conditioning: Conditioning,
    keys: Array,
    scenes: Array,
    inside: Array,
    steps: Array,
    *,
    models: Models,
    schedule: ScheduleConfig,
    config: SamplerConfig,
) -> Array:
    clean = encode(models, params, scenes)
    gamma_num = jnp.ones_like(conditioning.settings.gamma_num)
    conditioning = conditioning.replace(settings=conditioning.settings.replace(gamma_num=gamma_num))
    static = {"unet": models.unet, "schedule": schedule, "config": config}
    denoiser = Denoiser.encode(params["unet"], conditioning, keys, **static)
    table = solver_rows(config, schedule)

    def at(step: Array) -> Array:
        row = jax.tree.map(lambda column: column[step], table)

        def once(number: Array) -> Array:
            x = add_noise(clean, noise_like(clean, keys, number), row.alpha, row.sigma)
            prediction = _everywhere(denoiser, x, row)
            z0, _ = predicted_z0_and_noise(schedule.prediction_type, prediction, x, row.alpha, row.sigma)
            return _within(jnp.square(z0 - clean).mean(axis=-1), inside)

        return jax.lax.map(once, jnp.arange(NOISES)).mean(axis=0)

    return jax.lax.map(at, steps)


def _everywhere(denoiser: Denoiser, x: Array, row: SolverTable) -> Array:
    """ε_TI without a mask, or ε_T for requests without a subject."""
    if not denoiser.has_subjects:
        return denoiser.text_only(x, row.t, empty=False, maps=False)[1]
    masks = jnp.ones((*denoiser.conditioning.flags.shape, 1, 1))
    return denoiser.generate(x, row.t, row.alpha, masks, negative=False)[1]


def variance(pipe: Pipeline, request: Case, own: bool) -> float:
    """Variance inside the subject of scenes like the request's, with its own subject or any of the word."""
    rng = np.random.default_rng([request.seed, int(own)])
    subject = identity(request)
    scenes = []
    for _ in range(SCENES):
        scene_subject = subject if own else random_identity(rng, request.word, held_out=True)
        scenes.append(render_scene(request.background, [scene_subject], int(rng.integers(2**31))))
    images = np.stack([scene.image for scene in scenes])
    squares = np.asarray(_deviations(pipe.params, images, models=pipe.models))
    inside = in_latents(pipe, scenes)
    return float(np.mean(_within(squares, inside)))


@functools.partial(jax.jit, static_argnames="models")
def _deviations(params: Any, scenes: Array, *, models: Models) -> Array:
    """Squared deviations of latents from the mean over scenes, unbiased: (n, h, w)."""
    latents = encode(models, params, scenes)
    deviations = jnp.square(latents - latents.mean(axis=0)).mean(axis=-1)
    return deviations * len(latents) / (len(latents) - 1)


def _within(values: Array, inside: Array) -> Array:
    """Means of values (n, h, w) weighted by `inside`: (n,)."""
    return (values * inside).sum(axis=(1, 2)) / inside.sum(axis=(1, 2))


if __name__ == "__main__":
    run_command(main)
