"""Export a model from a training run: `python -m realcustom_jax.export --workdir DIR --out FOLDER`.

Reads the newest checkpoint of a run, or the one of --step N, and writes one of

  realcustom  RealCustom's added weights as a realcustom/ folder: rc.load(BASE, realcustom=FOLDER) (default)
  published   the same as one file with the names of the published checkpoint, and with the base UNet if it
              trained too
  diffusers   the whole model; weights that did not train come from the folder that the run started from

each with a model card, README.md. The run may still be training. The first two forms need only as much memory
as they write. The weights are the average over the steps (EMA), or with --raw the values of the step itself.
The export runs on the CPU, because the run may be using the accelerator.
"""

import argparse
from pathlib import Path

import jax

from realcustom_jax.common.cli import CommandParser, run_command
from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import check_local, reading
from realcustom_jax.common.folders import replacing_folder
from realcustom_jax.training.export import FORMS, Choice, export_checkpoint
from realcustom_jax.weights.components import WEIGHT_DTYPES


def main() -> None:
    """Run the command line."""
    args = _parser().parse_args()
    # A second process cannot open a TPU that the run is using.
    jax.config.update("jax_platforms", "cpu")
    out = Path(args.out)
    check_local(args.workdir, "workdir")
    check_local(out, "--out")
    with reading():
        if out.is_file():
            raise UserError(f"--out {str(out)!r} is a file, but an export is a folder")
        if out.is_dir() and any(out.iterdir()):
            raise UserError(f"--out {str(out)!r} is not empty: files of two models would mix")
    choice = Choice(args.step, not args.raw)
    with replacing_folder(out, "--out") as temporary:
        step, left = export_checkpoint(Path(args.workdir), choice, args.form, temporary, args.dtype)
    if left:
        print(left)
    print(f"wrote {out}, of step {step}")


def _parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser("export", __doc__)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="workdir of the training run")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument("--step", type=int, metavar="N", help="step of the checkpoint (the newest)")
    parser.add_argument("--form", choices=FORMS, default=FORMS[0], help="output format (%(default)s)")
    parser.add_argument("--raw", action="store_true", help="export the last values, not their average (EMA)")
    parser.add_argument(
        "--dtype", choices=list(WEIGHT_DTYPES), default="float32", help="dtype of the weights (%(default)s)"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
