"""The losses of runs as one picture: `python studies/loss_curves.py RUN [RUN …] --out runs/losses.png`.

RUN is the workdir of a training. Each run is a curve, called as its folder is: the mean of the loss over
windows of steps, with the standard error of that mean. With --apart losses above that value are a curve of
their own, and windows are of equally many losses: the stage instance mixes coloured batches with grey ones,
which lose much more. Needs matplotlib, which the extra `eval` brings.
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
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="workdirs of runs")
    parser.add_argument("--out", type=Path, default=Path("runs/losses.png"), help="the picture (%(default)s)")
    parser.add_argument("--windows", type=int, default=20, help="of each run (%(default)s)")
    parser.add_argument(
        "--apart",
        type=float,
        default=np.inf,
        metavar="LOSS",
        help="where a run's curve is cut in two (nowhere)",
    )
    args = parser.parse_args()
    if args.windows < 1 or len({run.name for run in args.runs}) < len(args.runs):
        raise UserError("--windows must be 1 or more, and the folders of the runs of different names")
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
    """Of all lines of the metrics in a folder, in the order of their steps."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    # The end of a killed process may have cut the last line off.
    reports = [json.loads(line) for line in lines if line.endswith("}")]
    # Of lines that a resumed run wrote again, the last.
    by_step = {report["step"]: report["loss"] for report in reports if "loss" in report}
    return np.array([by_step[step] for step in sorted(by_step)])


def windows(name: str, losses: np.ndarray, count: int) -> list[np.ndarray]:
    """The losses in each of so many windows of the steps.

    Raises:
      UserError: they are too few.
    """
    if len(losses) < 2 * count:
        raise UserError(f"{count} windows need {2 * count} losses, but {name} has {len(losses)}")
    return np.array_split(losses, count)


def standard_error(losses: np.ndarray) -> tuple[float, float]:
    """Of the mean, on both sides of it; a bootstrap of so few losses would be too narrow."""
    error = losses.std(ddof=1) / len(losses) ** 0.5
    return losses.mean() - error, losses.mean() + error


if __name__ == "__main__":
    run_command(main)
