"""Which layers change the image outside the mask in one UNet pass? `python studies/leakage_of_a_pass.py
[--requests 104] [--out runs/studies]`

A noised real scene of each request is denoised twice in one pass: with text only, and with the subject. The
subject acts in the soft mask of the text-only pass, in the same mask made binary, or everywhere. The study
measures how much the subject changes the predicted z_0 (mean absolute difference), by the distance in latents
from the subject's region. leakage_of_a_pass.png shows the mean over the steps. The region is slightly wider
than the mask, because the UNet's coarser levels resize the mask. Guidance, later steps and the VAE are not
involved, so the network alone causes the change outside the region.

To find the layers that cause it, the pass with the soft mask is repeated with the mean and variance of the
text-only pass in every group normalisation, with the keys and values of the text-only pass in every
self-attention, and with both. The convolutions cause the rest.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from by_distance import by_distance
from jax import Array
from noised_scenes import encode, noise_like, solver_rows
from toybox_flags import parse

from realcustom_jax.common.cli import run_command
from realcustom_jax.diffusion.conditioning import Conditioning
from realcustom_jax.diffusion.denoiser import Denoiser
from realcustom_jax.diffusion.schedule import ScheduleConfig, add_noise, predicted_z0_and_noise
from realcustom_jax.evaluation import plots
from realcustom_jax.evaluation.tables import cell
from realcustom_jax.evaluation.toybox import Case, make_cases, real_scene, reference
from realcustom_jax.generate import request_keys
from realcustom_jax.inputs.encode import make_conditioning
from realcustom_jax.inputs.sizes import latent_size
from realcustom_jax.inputs.subjects import Subject
from realcustom_jax.models.family import Models
from realcustom_jax.models.layers import GroupNorm
from realcustom_jax.models.resize import resize_mask
from realcustom_jax.options import SamplerConfig
from realcustom_jax.pipeline import Pipeline, load

STEPS = (0, 4, 8)
RINGS = (0, 1, 2, 4, 6)  # outer radii in latents; 0 is the subject's region; a last ring is everything beyond


@dataclasses.dataclass(frozen=True)
class Kind:
    """A variant of the pass with the subject.

    Attributes:
      name: name of its row.
      scope: computes the mask from the soft mask.
      statistics: whether group normalisation uses the mean and variance of the text-only pass.
      attention: whether self-attention uses the keys and values of the text-only pass.
    """

    name: str
    scope: Callable[[Array], Array] = lambda mask: mask
    statistics: bool = False
    attention: bool = False


KINDS = (
    Kind("soft mask"),
    Kind("binary mask", lambda mask: (mask > 0).astype(mask.dtype)),
    Kind("no mask", jnp.ones_like),
    Kind("statistics of the text", statistics=True),
    Kind("attention to the text", attention=True),
    Kind("both of the text", statistics=True, attention=True),
)


def main() -> None:
    args = parse(__doc__, 104)
    pipe = load(args.model)
    config = pipe.defaults.sampler_config(*latent_size(pipe.models, None, None))
    requests = make_cases(args.requests)
    steps = [step for step in STEPS if step < config.guided_steps]
    parts = [
        changes(pipe, config, requests[start : start + args.batch], steps)
        for start in range(0, len(requests), args.batch)
    ]
    regions, change_by_kind = (np.concatenate(arrays, axis=-3) for arrays in zip(*parts, strict=True))

    rings = {kind.name: [] for kind in KINDS}
    names = ["inside", *(f"to {end}" for end in RINGS[1:]), "beyond"]
    print(f"{'change of z_0, latents from the mask':40}" + "".join(f"{name:>24}" for name in names))
    for i, step in enumerate(steps):
        for kind, change in zip(KINDS, change_by_kind[i], strict=True):
            rings[kind.name].append(by_distance(change, regions[i], RINGS))
            cells = [cell(column[~np.isnan(column)]) for column in rings[kind.name][-1].T]
            print(f"{f'{kind.name}, step {step}':40}" + "".join(f"{text:>24}" for text in cells), flush=True)
    means = {name: np.ma.masked_invalid(rows).mean(axis=0).T for name, rows in rings.items()}
    curves = {name: [column.compressed() for column in columns] for name, columns in means.items()}
    x, y = "latents from the subject's region (last point: beyond)", "change of z_0, mean over the steps"
    plots.curves(args.out / "leakage_of_a_pass.png", (*RINGS, RINGS[-1] + 2), curves, x, y, log=True)


def changes(
    pipe: Pipeline, config: SamplerConfig, requests: Sequence[Case], steps: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Subject regions, bool (steps, n, h, w), and the change of z_0, (steps, kinds, n, h, w)."""
    subjects = [[Subject(reference(request).image, request.word)] for request in requests]
    prompts = [request.prompt for request in requests]
    conditioning = make_conditioning(pipe, prompts, subjects, [""] * len(requests), pipe.defaults)
    keys = request_keys([request.seed for request in requests])
    scenes = np.stack([real_scene(request).image for request in requests])
    arrays = _changes(
        pipe.params, conditioning, keys, scenes, jnp.asarray(steps),
        models=pipe.models, schedule=pipe.schedule, config=config,
    )  # fmt: skip
    return jax.tree.map(np.asarray, arrays)


@functools.partial(jax.jit, static_argnames=("models", "schedule", "config"))
def _changes(
    params: Any,
    conditioning: Conditioning,
    keys: Array,
    scenes: Array,
    steps: Array,
    *,
    models: Models,
    schedule: ScheduleConfig,
    config: SamplerConfig,
) -> tuple[Array, Array]:
    clean = encode(models, params, scenes)
    static = {"unet": models.unet, "schedule": schedule, "config": config}
    denoiser = Denoiser.encode(params["unet"], conditioning, keys, **static)
    contexts, conditioning = jax.tree.map(_repeat_batch, (denoiser.contexts, conditioning))
    pair_denoiser = dataclasses.replace(denoiser, contexts=contexts, conditioning=conditioning)
    table = solver_rows(config, schedule)

    def at(step: Array) -> tuple[Array, Array]:
        row = jax.tree.map(lambda column: column[step], table)
        x = add_noise(clean, noise_like(clean, keys), row.alpha, row.sigma)
        masks = denoiser.new_masks(
            denoiser.word_maps(denoiser.text_only(x, row.t, empty=False, maps=True)[2])
        )
        pair_x = _repeat_batch(x)

        def change(kind: Kind) -> Array:
            # The first half of the batch is text only.
            scopes = jnp.concatenate([jnp.zeros_like(masks), kind.scope(masks)])
            cuts = Cuts(kind)
            # Another name: a pass of the same module is traced once, and would keep the cuts of that time.
            cut_denoiser = dataclasses.replace(pair_denoiser, unet=models.unet.clone(name=kind.name))
            with nn.intercept_methods(cuts):
                _, pair, _ = cut_denoiser.generate(pair_x, row.t, row.alpha, scopes, negative=False)
            cuts.check()
            z0, _ = predicted_z0_and_noise(schedule.prediction_type, pair, pair_x, row.alpha, row.sigma)
            return jnp.abs(jnp.subtract(*jnp.split(z0, 2))).mean(axis=-1)

        levels = len(models.unet.config.block_out_channels)
        regions = subject_regions(masks, config.height, config.width, levels)
        return regions, jnp.stack([change(kind) for kind in KINDS])

    return jax.lax.map(at, steps)


class Cuts:
    """Flax interceptor: the second half of the batch uses statistics or keys and values of the first half."""

    def __init__(self, kind: Kind):
        self.kind = kind
        self.counts = {"statistics": 0, "attention": 0}

    def __call__(
        self, call: Callable[..., Any], args: tuple, kwargs: dict, context: nn.module.InterceptorContext
    ) -> Any:
        module = context.module
        if context.method_name == "__call__":
            if self.kind.statistics and isinstance(module, GroupNorm):
                self.counts["statistics"] += 1
                return normalised_like_first_half(module, *args)
            if self.kind.attention and module.name in ("to_k", "to_v") and "attn1" in module.path:
                self.counts["attention"] += 1
                return _repeat_batch(jnp.split(call(*args, **kwargs), 2)[0])
        return call(*args, **kwargs)

    def check(self) -> None:
        """Assert that the cuts reached a module; otherwise they would seem to have no effect."""
        for name, count in self.counts.items():
            assert (count > 0) == getattr(self.kind, name), f"{self.kind.name}: {count} {name} cut"


def normalised_like_first_half(module: GroupNorm, x: Array) -> Array:
    """Group normalisation of x (2n, h, w, C) with the mean and variance of its first half."""
    grouped = x.reshape(*x.shape[:3], module.groups, -1)
    first = jnp.split(grouped, 2)[0]
    mean, variance = (_repeat_batch(f(first, axis=(1, 2, 4), keepdims=True)) for f in (jnp.mean, jnp.var))
    normal = (grouped - mean) * jax.lax.rsqrt(variance + module.eps)
    params = module.variables["params"]
    return normal.reshape(x.shape) * params["scale"] + params["bias"]


def _repeat_batch(x: Array) -> Array:
    return jnp.concatenate([x, x])


def subject_regions(masks: Array, height: int, width: int, levels: int) -> Array:
    """Latents that masks (n, 1, h', w') cover at any level of the UNet: bool (n, h, w)."""
    regions = jnp.zeros((len(masks), height, width), bool)
    for side in (2**level for level in range(levels)):
        coarse = resize_mask(masks, height // side, width // side)[:, 0] > 0
        regions |= coarse.repeat(side, axis=1).repeat(side, axis=2)
    return regions


if __name__ == "__main__":
    run_command(main)
