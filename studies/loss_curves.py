"""Plots the losses of training runs: `python studies/loss_curves.py RUN [RUN …] --out runs/losses.png`.

RUN is a training workdir. Each run is one curve with the name of its folder: the mean loss of each window of
steps, with the standard error of the mean. --apart plots losses above a value as a separate curve. It is for
the stage instance, whose grey batches have a much higher loss than its coloured ones. The windows of a curve
have equal numbers of losses. Needs matplotlib (the extra `eval`).
"""

import argparse
import json
from pathlib import Path

import numpy as np

from realcustom_jax.common.cli import run_command
from realcustom_jax.common.errors import UserError
from realcustom_jax.evaluation.plots import curves


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="training workdirs")
    parser.add_argument("--out", type=Path, default=Path("runs/losses.png"), help="plot file (%(default)s)")
    parser.add_argument("--windows", type=int, default=20, help="windows per curve (%(default)s)")
    parser.add_argument(
        "--apart",
        type=float,
        default=np.inf,
        metavar="LOSS",
        help="plot losses above this value as a separate curve (default: one curve)",
    )
    args = parser.parse_args()
    if args.windows < 1 or len({run.name for run in args.runs}) < len(args.runs):
        raise UserError("--windows must be 1 or more, and the folders of the runs must have different names")
    rows = {}
    for run in args.runs:
        losses = read_losses(run)
        above = losses > args.apart
        parts = {
            f"{run.name}, to {args.apart:g}": losses[~above],
            f"{run.name}, above {args.apart:g}": losses[above],
        }
        for name, part in parts.items() if above.any() else [(run.name, losses)]:
            rows[name] = windows(name, part, args.windows)
    share = [(i + 0.5) / args.windows for i in range(args.windows)]
    curves(args.out, share, rows, "share of the run's steps", "loss", standard_error)
    for name, values in rows.items():
        print(f"{name}: {values[0].mean():.4f} in the first window, {values[-1].mean():.4f} in the last")
    print(args.out)


def read_losses(run: Path) -> np.ndarray:
    """Read all losses of a run's metrics.jsonl, ordered by step."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    # A killed process may have left an incomplete last line.
    reports = [json.loads(line) for line in lines if line.endswith("}")]
    # A resumed run may repeat steps; the last line of a step counts.
    by_step = {report["step"]: report["loss"] for report in reports if "loss" in report}
    return np.array([by_step[step] for step in sorted(by_step)])


def windows(name: str, losses: np.ndarray, count: int) -> list[np.ndarray]:
    """Split losses into `count` windows of about equal length.

    Raises:
      UserError: a window would have fewer than two losses.
    """
    if len(losses) < 2 * count:
        raise UserError(f"{count} windows need {2 * count} losses, but {name} has {len(losses)}")
    return np.array_split(losses, count)


def standard_error(losses: np.ndarray) -> tuple[float, float]:
    """Mean minus and plus its standard error; a bootstrap of so few losses would be too narrow."""
    error = losses.std(ddof=1) / len(losses) ** 0.5
    return losses.mean() - error, losses.mean() + error


if __name__ == "__main__":
    run_command(main)
