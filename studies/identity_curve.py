"""Two curves that explain identity top-1: `python studies/identity_curve.py [--requests 208] [--out DIR]`.

Uses held-out requests of the toybox benchmark.

- identity_ranks.png: how close are wrong images? It plots the share of images whose true subject ranks among
  the first k of the 20 subjects of its word.
- identity_detail.png: how much detail does the judge need? It plots identity top-1 of real scenes in which
  each square of N × N pixels has one colour.

Prints both curves, and identity top-1 of the full method for each pattern.
"""

import numpy as np
from toybox_flags import parse

import realcustom_jax as rc
from realcustom_jax.common.cli import run_command
from realcustom_jax.evaluation import plots
from realcustom_jax.evaluation.judge import Judge
from realcustom_jax.evaluation.tables import cell
from realcustom_jax.evaluation.toybox import (
    IDENTITIES,
    SETTINGS,
    Benchmark,
    identity,
    make_cases,
    real_scene,
)
from realcustom_jax.generate import Generator
from realcustom_jax.toybox.palette import PATTERNS

SQUARES = (1, 2, 4, 8, 16)  # side lengths in pixels


def main() -> None:
    args = parse(__doc__, 208)
    benchmark = Benchmark(make_cases(args.requests), Judge.load(), None)
    generator = Generator(rc.load(args.model), args.batch)
    ranks = {
        name.replace("_", " "): benchmark.ranks(benchmark.make(generator, setting)[0])
        for name, setting in SETTINGS.items()
    }
    scenes = np.stack([real_scene(request).image for request in benchmark.cases])
    coarse = [benchmark.ranks(in_squares(scenes, side)) == 0 for side in SQUARES]

    first = (1, 2, 3, 5, 10, IDENTITIES)
    shares = {name: [found < k for k in first] for name, found in ranks.items()}
    plots.curves(
        args.out / "identity_ranks.png", first, shares, "k", "share with the true subject in the first k"
    )
    x = "side of the one-colour squares, in pixels"
    plots.curves(args.out / "identity_detail.png", SQUARES, {"real scenes": coarse}, x, "identity top-1")

    print(f"{'true subject in the first':32}" + "".join(f"{k:>7}" for k in first))
    for name, row in shares.items():
        print(f"{name:32}" + "".join(f"{found.mean():7.2f}" for found in row))
    print("identity top-1 of real scenes in squares of " + _listed(SQUARES, [x.mean() for x in coarse]))
    patterns = np.array([identity(r).pattern for r in benchmark.cases])
    print("identity top-1 of the full method by pattern:")
    for pattern in PATTERNS:
        correct = ranks["full"][patterns == pattern] == 0
        print(f"  {pattern:12}{cell(correct.astype(float)):>24} of {len(correct)}")


def in_squares(images: np.ndarray, side: int) -> np.ndarray:
    """Images, uint8 (n, H, W, 3), with each square of `side` × `side` pixels in its mean colour."""
    n, height, width, c = images.shape
    squares = images.reshape(n, height // side, side, width // side, side, c).mean(axis=(2, 4))
    return np.round(squares).astype(np.uint8).repeat(side, axis=1).repeat(side, axis=2)


def _listed(names: tuple, values: list) -> str:
    return ", ".join(f"{name}: {value:.2f}" for name, value in zip(names, values, strict=True))


if __name__ == "__main__":
    run_command(main)
