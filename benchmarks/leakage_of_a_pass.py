"""What leaks in one pass of the UNet: `python benchmarks/leakage_of_a_pass.py [--requests 104] [--out docs]`

A real scene of each request, noised for steps of the sampler, is denoised in one pass from the text alone and
in one with the subject: inside the mask that the text-only pass gives, and everywhere. How much does the
subject change the predicted z_0 (mean absolute difference of latents), by the distance from the mask in
latents (leakage_of_a_pass.png)? Guidance, later steps and the VAE have no part in it: what changes outside
the mask here, changes because the network carries it there.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from jax import Array
from toybox_flags import parse

from realcustom_jax.cli import run_command
from realcustom_jax.diffusion.sampler import Conditioning, Denoiser, SamplerState, generate, guide
from realcustom_jax.diffusion.sampler_config import SamplerConfig
from realcustom_jax.diffusion.schedule import ScheduleConfig, add_noise, predicted_z0_and_noise
from realcustom_jax.diffusion.solvers import make_table
from realcustom_jax.evaluation import plots
from realcustom_jax.evaluation.tables import cell
from realcustom_jax.evaluation.toybox import make_requests, real_scene, reference
from realcustom_jax.models.conditioning import to_signed
from realcustom_jax.models.family import Models
from realcustom_jax.models.unet import resize_mask
from realcustom_jax.models.vae import VAE
from realcustom_jax.pipeline import load
from realcustom_jax.sampling import latent_size, make_conditioning
from realcustom_jax.subjects import Subject

STEPS = (0, 4, 8)  # that make masks in the shipped model
RINGS = (0, 1, 2, 4, 6, 8)  # outer ends, in latents; 0 is inside the mask; one more ring has all beyond


def main() -> None:
    args = parse(__doc__, 104)
    pipe = load(args.model)
    config = pipe.defaults.sampler_config(*latent_size(pipe.models, None, None))
    requests = make_requests(args.requests)
    parts = []
    for start in range(0, len(requests), args.batch):
        some = requests[start : start + args.batch]
        conditioning = make_conditioning(
            pipe,
            [request.prompt for request in some],
            [[Subject(reference(request).image, request.word)] for request in some],
            [""] * len(some),
            pipe.defaults,
        )
        scenes = np.stack([real_scene(request).image for request in some])
        found = _changes(
            pipe.params, conditioning, scenes, jnp.asarray(STEPS),
            models=pipe.models, schedule=pipe.schedule, config=config,
        )  # fmt: skip
        parts.append(jax.tree.map(np.asarray, found))
    masks, masked, everywhere = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))

    curves = {}
    names = ["inside", *(f"to {end}" for end in RINGS[1:]), "beyond"]
    print(f"{'change of z_0, latents from the mask':40}" + "".join(f"{name:>24}" for name in names))
    for i, step in enumerate(STEPS):
        for kind, changes in (("no mask", everywhere), ("masked", masked)):
            columns = by_ring(changes[i], masks[i]).T
            curves[f"{kind}, step {step}"] = [column[~np.isnan(column)] for column in columns]
            cells = [cell(values) for values in curves[f"{kind}, step {step}"]]
            print(f"{kind + f', step {step}':40}" + "".join(f"{text:>24}" for text in cells))
    x, y = "latents from the mask (the last: beyond)", "change of z_0 by the subject"
    plots.curves(args.out / "leakage_of_a_pass.png", (*RINGS, RINGS[-1] + 2), curves, x, y)


def by_ring(changes: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Means (n, rings) of changes (n, h, w) by the distance from masks, bool (n, h, w); NaN where none is."""
    found = np.full((len(changes), len(RINGS) + 1), np.nan)
    for n, (change, mask) in enumerate(zip(changes, masks, strict=True)):
        ring = np.searchsorted(RINGS, scipy.ndimage.distance_transform_edt(~mask))
        for r in np.unique(ring):
            found[n, r] = change[ring == r].mean()
    return found


@functools.partial(jax.jit, static_argnames=("models", "schedule", "config"))
def _changes(
    params: Any,
    conditioning: Conditioning,
    scenes: Array,
    steps: Array,
    *,
    models: Models,
    schedule: ScheduleConfig,
    config: SamplerConfig,
) -> tuple[Array, Array, Array]:
    """Of each step (steps, n, h, w): the mask, and the changes of z_0 inside it alone and everywhere."""
    clean = models.vae.apply({"params": params["vae"]}, to_signed(scenes), method=VAE.encode)
    unet, denoiser = params["unet"], Denoiser(models.unet, schedule, config)
    contexts = denoiser.encode(unet, conditioning)
    # `paper` guidance stacks the empty prompt before the text.
    text_only = jax.tree.map(lambda x: x[len(clean) :], contexts.text_only)
    table = jax.tree.map(
        jnp.asarray, make_table(config.solver, config.steps, schedule, config.spacing, config.eta)
    )
    nothing = jnp.zeros((len(clean), 1, config.mask_height, config.mask_width))

    def at(step: Array) -> tuple[Array, Array, Array]:
        row = jax.tree.map(lambda column: column[step], table)
        x = add_noise(clean, jax.random.normal(jax.random.key(0), clean.shape), row.alpha, row.sigma)
        state = SamplerState(x, clean, x, nothing)
        text, masks = guide(denoiser, unet, text_only, row, conditioning, state, guided=True)
        quantity = denoiser.quantity(conditioning, row.alpha)

        def z0(prediction: Array) -> Array:
            kind = schedule.prediction_type
            return predicted_z0_and_noise(kind, prediction, x, row.alpha, row.sigma)[0]

        masked, everywhere = (
            generate(denoiser, unet, contexts.subject, row, quantity, scope, x)
            for scope in (masks, jnp.ones_like(masks))
        )
        acts = resize_mask(masks, config.height, config.width)[:, 0, :, :] > 0
        return acts, *(jnp.abs(z0(passed) - z0(text)).mean(axis=-1) for passed in (masked, everywhere))

    return jax.lax.map(at, steps)


if __name__ == "__main__":
    run_command(main)
