"""Take a model out of a training: `python -m realcustom_jax.export --workdir DIR --out FOLDER`.

Reads the newest checkpoint of a run, or that of --step N, also while the run goes on, and writes one of

  realcustom  what RealCustom adds, as a realcustom/ folder: rc.load(BASE, realcustom=FOLDER) (default)
  published   the same as one file in the names of the published checkpoint; with the base UNet where that
              trained too
  diffusers   the whole model: what did not train comes from the folder that the run began with

each with a model card, README.md. The first two forms need only as much memory as they write. The weights are
the average over the steps (EMA), or with --raw those of the step itself. An accelerator is not used: the run
may have it.
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
    args = _parser().parse_args()
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
    with replacing_folder(out, "--out") as half:
        step, left = export_checkpoint(Path(args.workdir), choice, args.form, half, args.dtype)
    if left:
        print(left)
    print(f"wrote {out}, of step {step}")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("export", __doc__)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="of the training")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="to write")
    parser.add_argument("--step", type=int, metavar="N", help="of the checkpoint (the newest)")
    parser.add_argument("--form", choices=FORMS, default=FORMS[0], help="(%(default)s)")
    parser.add_argument("--raw", action="store_true", help="not the average over the steps")
    parser.add_argument("--dtype", choices=list(WEIGHT_DTYPES), default="float32", help="(%(default)s)")
    return parser


if __name__ == "__main__":
    run_command(main)
