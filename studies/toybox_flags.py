"""Command-line flags of the studies that generate images for toybox requests."""

import argparse
from pathlib import Path

from realcustom_jax.evaluation.plots import check_plots


def parse(description: str, requests: int, plots: bool = True) -> argparse.Namespace:
    """Parse the command line with the parser of `flags`; takes the same arguments.

    Raises:
      UserError: the script makes plots, but matplotlib is missing.
    """
    args = flags(description, requests, plots).parse_args()
    if plots:
        check_plots()
    return args


def flags(description: str, requests: int, plots: bool = True) -> argparse.ArgumentParser:
    """Make a parser of --requests, --model, --batch and (with plots) --out; a script may add its own flags.

    Args:
      description: text of `--help`.
      requests: default number of requests.
      plots: whether the script makes plots.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=requests, help="number of requests (%(default)s)")
    parser.add_argument("--model", default="toybox", help="toybox model (default: the shipped one)")
    parser.add_argument("--batch", type=int, default=26, help="images per batch (%(default)s)")
    if plots:
        parser.add_argument(
            "--out", type=Path, default=Path("runs/studies"), help="folder of the plots (%(default)s)"
        )
    return parser
