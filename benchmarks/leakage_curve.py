"""Where images leak: `python benchmarks/leakage_curve.py [--requests 104] [--out docs]`.

How much an image differs from the text-only image of the same seed, by the distance in pixels from the
subject in any of them, without a mask and with it: leakage_distance.png. What lies next to the subject
are its outline and its shadow, which change with any other subject; what lies far away is the prompt's alone.
"""

import numpy as np
import scipy.ndimage
from toybox_flags import parse

from realcustom_jax.cli import run_command
from realcustom_jax.evaluation import plots
from realcustom_jax.evaluation.generate import Generator
from realcustom_jax.evaluation.judge import Judge
from realcustom_jax.evaluation.toybox import SETTINGS, Benchmark, Setting, make_requests

RINGS = (2, 4, 6, 8, 12, 16, 24)  # outer ends, in pixels; one more ring has all beyond
COMPARED = {
    "text only": SETTINGS["text_only"],
    "no mask": SETTINGS["no_mask"],
    "full": SETTINGS["full"],
    "full, ω_i in the mask alone": Setting({"guidance_scope": "mask"}),
}


def main() -> None:
    args = parse(__doc__, 104)
    benchmark = Benchmark(make_requests(args.requests), Judge.load(), None)
    generator = Generator.load(args.model, args.batch)
    images = {name: benchmark.make(generator, setting)[0] for name, setting in COMPARED.items()}
    where = rings(np.any([benchmark.judge.look(found).regions for found in images.values()], axis=0))
    plain = images.pop("text only")
    changes = {name: by_ring(found, plain, where) for name, found in images.items()}

    curves = {name: [column[~np.isnan(column)] for column in rows.T] for name, rows in changes.items()}
    x, y = "pixels from the subject, up to (the last: beyond)", "change against the text-only image"
    at = (*RINGS, RINGS[-1] + 8)
    plots.curves(args.out / "leakage_distance.png", at, curves, x, y)
    print(f"{'change, up to so many pixels away':40}" + "".join(f"{r:>7}" for r in (*RINGS, "beyond")))
    for name, row in curves.items():
        print(f"{name:40}" + "".join(f"{values.mean():7.3f}" for values in row))
    everywhere = np.nanmean(changes.pop("no mask"), axis=0)
    for name, rows in changes.items():
        ratios = np.nanmean(rows, axis=0) / everywhere
        print(f"{name + ' / no mask':40}" + "".join(f"{ratio:7.2f}" for ratio in ratios))


def rings(subjects: np.ndarray) -> np.ndarray:
    """In which of the rings around a subject, bool (n, H, W), each pixel lies: (n, H, W), -1 for in none.

    None are those of the subject, and those of an image without one.
    """
    distance = np.stack([scipy.ndimage.distance_transform_edt(~subject) for subject in subjects])
    outside = ~subjects & subjects.any(axis=(1, 2), keepdims=True)
    return np.where(outside, np.searchsorted(RINGS, distance), -1)


def by_ring(images: np.ndarray, plain: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Mean change (n, rings) of the pixels of each ring, as a share of their range; NaN where it has none."""
    change = np.abs(images.astype(np.float64) - plain).mean(axis=-1) / 255.0
    found = np.full((len(images), len(RINGS) + 1), np.nan)
    for n, r in np.ndindex(found.shape):
        if (ring[n] == r).any():
            found[n, r] = change[n][ring[n] == r].mean()
    return found


if __name__ == "__main__":
    run_command(main)
