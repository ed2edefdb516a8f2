"""Flags of the commands that load a model: which parts it is made of, and how it is computed."""

import argparse
from typing import Any

from realcustom_jax.common.precision import AUTO, COMPUTE_DTYPES
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.models.family import Models
from realcustom_jax.options import SamplingOptions
from realcustom_jax.pipeline import Pipeline, load, read_settings
from realcustom_jax.weights.parts import find_parts


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add --model, None where it is not given, and the flags of parts, precision and memory."""
    group = parser.add_argument_group("the model")
    group.add_argument("--model", metavar="MODEL", help="model folder or file, hub id, or toybox (default)")
    group.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub id")
    group.add_argument("--unet", metavar="PATH", help="another base UNet of the same shape: folder or file")
    group.add_argument("--realcustom", metavar="PATH", help="folder or file of what RealCustom adds")
    group.add_argument(
        "--image-encoder", action="append", default=[], metavar="FOLDER", help="image tower; once or twice"
    )
    group.add_argument(
        "--tokenizer", action="append", default=[], metavar="FOLDER",
        help="of a one-file checkpoint, for each text encoder; default those on the hub",
    )  # fmt: skip
    add_precision_flags(group)
    group.add_argument("--param-dtype", choices=COMPUTE_DTYPES, help="of the parameters alone (as --dtype)")
    group.add_argument(
        "--offload",
        action="store_true",
        help="keep only the part that works on the devices: for small memory",
    )


def add_precision_flags(
    parser: argparse._ActionsContainer, default: str = AUTO, of: str = "parameters and computation"
) -> None:
    """Add --dtype, which is `of` these, and --vae-dtype."""
    choices = (AUTO, *COMPUTE_DTYPES)
    parser.add_argument(
        "--dtype", choices=choices, default=default,
        help=f"of {of}; auto: float32 on CPUs, bfloat16 elsewhere (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--vae-dtype", choices=choices, default=default,
        help="of the VAE; auto: float32, unless its config allows less (%(default)s)",
    )  # fmt: skip


def model_settings(args: argparse.Namespace) -> tuple[Models, ScheduleConfig, SamplingOptions]:
    """What the model that the flags ask for says before its parameters are read; see `read_settings`."""
    return read_settings(
        find_parts(
            args.model, args.realcustom, args.image_encoder, args.tokenizer, args.revision, unet=args.unet
        )
    )


def given_model(args: argparse.Namespace) -> dict[str, Any]:
    """{argument of `load`: its value} of the parts and dtypes that were given, to keep or to compare."""
    values = {name: getattr(args, flag) for name, flag in FLAGS.items()}
    return {name: value for name, value in values.items() if value not in NOT_GIVEN}


# {argument of `load`: the flag's name in the arguments}, of all that changes the images.
FLAGS = {
    "revision": "revision",
    "unet": "unet",
    "realcustom": "realcustom",
    "image_encoders": "image_encoder",
    "tokenizers": "tokenizer",
    "dtype": "dtype",
    "param_dtype": "param_dtype",
    "vae_dtype": "vae_dtype",
}
NOT_GIVEN = (None, [], AUTO)


def load_model(args: argparse.Namespace, **more: Any) -> Pipeline:
    """The model that the flags ask for; `more` goes to `load` too."""
    return load(
        args.model,
        dtype=args.dtype,
        param_dtype=args.param_dtype,
        vae_dtype=args.vae_dtype,
        offload=args.offload,
        revision=args.revision,
        unet=args.unet,
        realcustom=args.realcustom,
        image_encoders=args.image_encoder,
        tokenizers=args.tokenizer,
        **more,
    )
