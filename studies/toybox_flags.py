"""The flags of the scripts here that make images of toybox requests."""

import argparse
from pathlib import Path

from realcustom_jax.evaluation.plots import check_plots


def parse(story: str, requests: int, plots: bool = True) -> argparse.Namespace:
    """The flags of `flags`, read; the arguments are the same.

    Raises:
      UserError: for plots without matplotlib, before any image is made.
    """
    args = flags(story, requests, plots).parse_args()
    if plots:
        check_plots()
    return args


def flags(story: str, requests: int, plots: bool = True) -> argparse.ArgumentParser:
    """`requests`, `model`, `batch` and, of a script with plots, the folder `out`; a script may add its own.

    Args:
      story: what `--help` says.
      requests: how many by default.
      plots: whether the script makes plots.
    """
    parser = argparse.ArgumentParser(description=story, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=requests, help="(%(default)s)")
    parser.add_argument("--model", default="toybox", help="a toybox model (the shipped one)")
    parser.add_argument("--batch", type=int, default=26, help="images made at once (%(default)s)")
    if plots:
        parser.add_argument(
            "--out", type=Path, default=Path("runs/studies"), help="of the plots (%(default)s)"
        )
    return parser
