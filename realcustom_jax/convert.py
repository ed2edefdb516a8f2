"""Combine and convert models: `python -m realcustom_jax.convert --model BASE --out FOLDER`.

The input is a base model: a diffusers folder, a hub id, or an original one-file checkpoint of SD1.5 or SDXL.
Options replace its parts: the UNet (--unet), the RealCustom part (--realcustom: a `realcustom/` folder or a
checkpoint file such as the published one; if that file has a base UNet, it is used too) and the image towers
(--image-encoder, once or twice: folders or hub ids of transformers or timm). With --average MODEL, once or
more, the weights become the mean of those of all models given. The output is one of

  folder     a model folder for rc.load, diffusers and transformers (default)
  flax       the base and the towers for diffusers' and transformers' Flax models (.msgpack)
  timm       the image towers (SigLIP, DINOv2) in timm's layout
  unet       one file, .safetensors or .pth, with the UNet and RealCustom's weights, like the published one
  realcustom one such file with only RealCustom's added weights
  original   one file with the base model, in the original format of SD1.5 or SDXL
"""

import argparse
from pathlib import Path
from typing import Any

from realcustom_jax import pipeline
from realcustom_jax.common.cli import CommandParser, run_command
from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import check_local, reading
from realcustom_jax.common.folders import replacing_folder
from realcustom_jax.weights.average import average_params
from realcustom_jax.weights.components import WEIGHT_DTYPES
from realcustom_jax.weights.exports import (
    export_added,
    export_flax,
    export_original,
    export_timm,
    export_unet,
)

_FILES = {"unet": export_unet, "realcustom": export_added, "original": export_original}
_FOLDERS = {"folder": pipeline.save, "flax": export_flax, "timm": export_timm}


def main() -> None:
    """Run the command line."""
    args = _parser().parse_args()
    out = Path(args.out)
    _check_out(args.to, out)  # before minutes of reading
    print(f"reading {args.model}", flush=True)
    # Opens the model without its parameters: they are read one by one while the output is written.
    pipe = pipeline.open_model(
        args.model,
        unet=args.unet,
        realcustom=args.realcustom,
        image_encoders=args.image_encoder,
        tokenizers=args.tokenizer,
    )
    if args.average:
        pipe = _average(pipe, args)
    if args.to in _FILES:
        _FILES[args.to](pipe, out, args.dtype)
    else:
        with replacing_folder(out, "--out") as temporary:
            _FOLDERS[args.to](pipe, temporary, args.dtype)
    print(f"wrote {out}")


def _average(pipe: pipeline.Pipeline, args: argparse.Namespace) -> pipeline.Pipeline:
    """The pipeline with the mean of its weights and of those of --average."""
    others = []
    for source in args.average:
        print(f"reading {source}", flush=True)
        other = pipeline.open_model(source)
        ours, theirs = _shape(pipe), _shape(other)
        different = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        if different:
            raise UserError(
                f"{args.model} and {source} cannot be averaged: they differ in {', '.join(different)}"
            )
        others.append(other.params)
    return pipe.replace(params=average_params([pipe.params, *others]))


def _shape(pipe: pipeline.Pipeline) -> dict[str, Any]:
    """{part: its config}: the same for models whose weights can be averaged."""
    parts = {**pipe.models.configs, "scheduler": pipe.schedule}
    return {**parts, "realcustom": pipe.models.realcustom} if pipe.models.realcustom else parts


@reading()
def _check_out(to: str, out: Path) -> None:
    """Raise `UserError` if the output path does not fit the output format."""
    check_local(out, "--out")
    if to in _FILES and out.suffix not in (".safetensors", ".pth"):
        raise UserError(f"--out {str(out)!r} must end in .safetensors or .pth for --to {to}")
    if to in _FOLDERS and out.is_file():
        raise UserError(f"--out {str(out)!r} is a file, but --to {to} writes a folder")
    if to in _FOLDERS and out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out {str(out)!r} is not empty: files of two models would mix")


def _parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser("convert", __doc__)
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="model folder or file, hub id, or toybox"
    )
    parser.add_argument("--unet", metavar="PATH", help="another base UNet of the same shape: folder or file")
    parser.add_argument("--realcustom", metavar="PATH", help="folder or file with RealCustom's added weights")
    parser.add_argument(
        "--image-encoder",
        action="append",
        default=[],
        metavar="FOLDER",
        help="image tower; may be given twice",
    )
    parser.add_argument(
        "--tokenizer",
        action="append",
        default=[],
        metavar="FOLDER",
        help="tokenizer of a one-file checkpoint, for each text encoder (those on the hub)",
    )
    parser.add_argument(
        "--average",
        action="append",
        default=[],
        metavar="MODEL",
        help="a model of the same shape, to write the mean of the weights; may be given again",
    )
    parser.add_argument("--out", required=True, metavar="PATH", help="folder or file to write")
    parser.add_argument(
        "--to", choices=[*_FOLDERS, *_FILES], default="folder", help="output format (%(default)s)"
    )
    parser.add_argument(
        "--dtype", choices=list(WEIGHT_DTYPES), default="float32", help="dtype of the weights (%(default)s)"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
