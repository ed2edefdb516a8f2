"""Which optimizer trains the toybox faster? `python benchmarks/optimizers.py [--steps 240] [--rates 1e-3]`.

Trains the toybox's base stage from scratch with each optimizer and each peak learning rate. The VAE and text
encoder are the shipped ones. Batches, noise and schedule are the same (linear warm-up over a tenth of the
steps, then cosine decay to zero). The table shows the mean loss of each eighth of the steps and the median
seconds per step.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
from _small_runs import load_config, reports

from realcustom_jax.common.cli import run_command
from realcustom_jax.common.compile_cache import cache_dir
from realcustom_jax.common.errors import UserError
from realcustom_jax.training.optimizer import OPTIMIZERS
from realcustom_jax.training.run import train

PARTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=240, help="steps per run (%(default)s)")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3], help="peak learning rates (1e-3)")
    parser.add_argument("--examples", type=int, default=10000, help="scenes to draw (%(default)s)")
    args = parser.parse_args()
    if args.steps < PARTS:
        raise UserError(f"--steps must be {PARTS} or more, not {args.steps}")
    rows = {}
    for rate in args.rates:
        for name in OPTIMIZERS:
            rows[f"{name} {rate:g}"] = run(name, rate, args.steps, args.examples)
    ends = [round((i + 1) * args.steps / PARTS) for i in range(PARTS)]
    print("\n" + f"{'to step':16}" + "".join(f"{end:8}" for end in ends) + f"{'s/step':>9}")
    for name, (losses, seconds) in rows.items():
        means = [part.mean() for part in np.array_split(losses, PARTS)]
        print(f"{name:16}" + "".join(f"{mean:8.4f}" for mean in means) + f"{seconds:9.2f}")


def run(name: str, rate: float, steps: int, examples: int) -> tuple[np.ndarray, float]:
    """Train once; gives the loss of every step and the median seconds per step."""
    config = load_config("base")
    config.init_from, config.fresh = "toybox", "^unet/"
    config.steps, config.log_every, config.checkpoint_every = steps, 1, steps
    config.data.toybox_examples = examples
    config.optimizer.update({"name": name, "learning_rate": rate, "warmup": steps // 10, "end_fraction": 0.0})
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder), cache_dir())
        lines = [line for line in reports(Path(folder)) if "loss" in line]
    losses = np.array([line["loss"] for line in lines])
    return losses, statistics.median(line["step_seconds"] for line in lines)


if __name__ == "__main__":
    run_command(main)
