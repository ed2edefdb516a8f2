"""How far from the subject does an image change, in the latents or in the decoder? `python
studies/leakage_curve.py [--requests 104] [--out runs/studies]`

Measures how much an image differs from the text-only image of the same seed, with and without a mask, by the
distance in pixels from the subject (leakage_distance.png). The subject's region covers the latents where any
compared image shows a subject. Pixels next to it hold the outline and the shadow, which change with any
subject. Pixels far away should depend on the prompt only.

Two more rows separate the latents from the VAE's decoder:

- *latents of the subject alone* takes the full method's latents where the subject is, and text-only latents
  elsewhere. The decoder causes any change elsewhere.
- *latents elsewhere alone* is the opposite. The two rows need not add up to the full change.

*real scenes* compares a drawn scene with the same scene and another subject of the word.
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np
from by_distance import by_distance
from noised_scenes import conditioned
from toybox_flags import parse

from realcustom_jax.common.cli import run_command
from realcustom_jax.diffusion.sampler import sample_latents
from realcustom_jax.evaluation import plots
from realcustom_jax.evaluation.judge import Judge
from realcustom_jax.evaluation.toybox import (
    SETTINGS,
    Case,
    Setting,
    another_subject,
    make_cases,
    real_scene,
)
from realcustom_jax.inputs.sizes import latent_size
from realcustom_jax.outputs.decode import decode
from realcustom_jax.pipeline import Pipeline, load
from realcustom_jax.toybox import Scene

RINGS = (2, 4, 6, 8, 12, 16, 24)  # outer radii in pixels; a last ring holds everything beyond
COMPARED = {
    "text only": SETTINGS["text_only"],
    "no mask": SETTINGS["no_mask"],
    "full": SETTINGS["full"],
    "full, ω_i in the mask alone": Setting({"guidance_scope": "mask"}),
}


def main() -> None:
    args = parse(__doc__, 104)
    requests, pipe, judge = make_cases(args.requests), load(args.model), Judge.load()
    latents = {name: sampled(pipe, setting, requests, args.batch) for name, setting in COMPARED.items()}
    images = {name: decoded(pipe, z) for name, z in latents.items()}
    regions = np.any([judge.look(x).regions for x in images.values()], axis=0)
    side = pipe.models.vae_config.downscale
    plain, z_plain, z_full = images.pop("text only"), latents["text only"], latents["full"]
    own = in_cells(regions, side)[:, ::side, ::side, None]
    images["latents of the subject alone"] = decoded(pipe, np.where(own, z_full, z_plain))
    images["latents elsewhere alone"] = decoded(pipe, np.where(own, z_plain, z_full))
    rows = {name: rings(x, plain, in_cells(regions, side)) for name, x in images.items()}
    scenes, others = [real_scene(r) for r in requests], [another_subject(r) for r in requests]
    drawn, other_subject = (np.stack([scene.image for scene in x]) for x in (scenes, others))
    either = _masks(scenes) | _masks(others)
    rows["real scenes, another subject"] = rings(other_subject, drawn, in_cells(either, side))

    curves = {name: [column[~np.isnan(column)] for column in row.T] for name, row in rows.items()}
    x, y = "pixels from the subject's latents, up to (last point: beyond)", "mean pixel change"
    near = {name: row[:-1] for name, row in curves.items()}
    plots.curves(args.out / "leakage_distance.png", (*RINGS, RINGS[-1] + 8), near, x, y, log=True)
    print(f"{'mean change, up to N pixels away':40}" + "".join(f"{r:>7}" for r in (*RINGS, "beyond", "all")))
    for name, row in curves.items():
        print(f"{name:40}" + "".join(f"{values.mean():7.4f}" for values in row))
    everywhere = np.nanmean(rows.pop("no mask"), axis=0)
    for name, row in rows.items():
        ratios = np.nanmean(row, axis=0) / everywhere
        print(f"{name + ' / no mask':40}" + "".join(f"{ratio:7.2f}" for ratio in ratios))


def sampled(pipe: Pipeline, setting: Setting, requests: Sequence[Case], batch: int) -> np.ndarray:
    """Sample latents (n, h, w, C) of a setting; the VAE's decoder takes them as they are."""
    options = pipe.defaults.changed(setting.options)
    config = options.sampler_config(*latent_size(pipe.models, options.height, options.width))
    run = jax.jit(sample_latents, static_argnames=("unet", "schedule", "config"))
    static = {"unet": pipe.models.unet, "schedule": pipe.schedule, "config": config}
    latents = []
    for start in range(0, len(requests), batch):
        conditioning, keys = conditioned(pipe, setting, requests[start : start + batch], options)
        latents.append(np.asarray(run(pipe.params["unet"], conditioning, keys, **static)[0]))
    return np.concatenate(latents)


def decoded(pipe: Pipeline, latents: np.ndarray) -> np.ndarray:
    """Decode latents in small batches to images, uint8 (n, H, W, 3)."""
    run = jax.jit(functools.partial(decode, pipe.models))
    parts = [run(pipe.params["vae"], part) for part in np.split(latents, range(26, len(latents), 26))]
    return np.concatenate([np.asarray(part) for part in parts])


def in_cells(regions: np.ndarray, side: int) -> np.ndarray:
    """Widen regions (n, H, W) to whole latents, each of `side` × `side` pixels."""
    n, height, width = regions.shape
    cells = regions.reshape(n, height // side, side, width // side, side).any(axis=(2, 4))
    return cells.repeat(side, axis=1).repeat(side, axis=2)


def rings(images: np.ndarray, plain: np.ndarray, subjects: np.ndarray) -> np.ndarray:
    """Mean pixel change in each ring around subjects, as a share of the value range.

    Returns:
      (n, rings + 1); the last column covers everything outside the subject. NaN for a ring without pixels.
    """
    change = np.abs(images.astype(np.float64) - plain).mean(axis=-1) / 255.0
    parts = [by_distance(change, subjects, ends)[:, 1:] for ends in ((0, *RINGS), (0,))]
    return np.concatenate(parts, axis=1)


def _masks(scenes: Sequence[Scene]) -> np.ndarray:
    return np.stack([scene.masks[0] for scene in scenes])


if __name__ == "__main__":
    run_command(main)
