"""Command-line flags that choose a model: its parts, precision and memory."""

import argparse
from collections.abc import Mapping
from typing import Any

from realcustom_jax.common.precision import AUTO, COMPUTE_DTYPES

# {argument of `load`: attribute of the parsed flags}, for all flags that change the images.
_FLAGS = {
    "revision": "revision",
    "unet": "unet",
    "realcustom": "realcustom",
    "image_encoders": "image_encoder",
    "tokenizers": "tokenizer",
    "dtype": "dtype",
    "param_dtype": "param_dtype",
    "vae_dtype": "vae_dtype",
}
_NOT_GIVEN = (None, [], AUTO)  # the defaults of these flags


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add --model, and the flags for its parts, precision and memory."""
    # --model has no default here: without it, `sample --from` takes the recorded model.
    group = parser.add_argument_group("the model")
    group.add_argument("--model", metavar="MODEL", help="model folder or file, hub id, or toybox (default)")
    group.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub id")
    group.add_argument("--unet", metavar="PATH", help="another base UNet of the same shape: folder or file")
    group.add_argument("--realcustom", metavar="PATH", help="folder or file of RealCustom's added parts")
    group.add_argument(
        "--image-encoder", action="append", default=[], metavar="FOLDER", help="image tower; once or twice"
    )
    group.add_argument(
        "--tokenizer", action="append", default=[], metavar="FOLDER",
        help="tokenizer for a one-file checkpoint, one per text encoder; default: those on the hub",
    )  # fmt: skip
    add_precision_flags(group)
    group.add_argument(
        "--param-dtype", choices=COMPUTE_DTYPES, help="dtype of the parameters alone (as --dtype)"
    )
    group.add_argument(
        "--offload",
        action="store_true",
        help="keep only the component in use on the devices, if memory is small",
    )


def add_precision_flags(
    parser: argparse._ActionsContainer, default: str = AUTO, target: str = "parameters and computation"
) -> None:
    """Add --dtype and --vae-dtype; `target` says in the help of --dtype which values it is for."""
    choices = (AUTO, *COMPUTE_DTYPES)
    parser.add_argument(
        "--dtype", choices=choices, default=default,
        help=f"dtype of {target}; auto: float32 on CPUs, bfloat16 elsewhere (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--vae-dtype", choices=choices, default=default,
        help="dtype of the VAE; auto: float32, unless its config allows less (%(default)s)",
    )  # fmt: skip


def given_model(args: argparse.Namespace) -> dict[str, Any]:
    """{argument of `load`: its value} for the flags of parts and dtypes that were given."""
    values = {name: getattr(args, flag) for name, flag in _FLAGS.items()}
    return {name: value for name, value in values.items() if value not in _NOT_GIVEN}


def use_recorded_model(args: argparse.Namespace, source: Mapping[str, Any]) -> None:
    """Without --model, set the model flags that were not given to the values of a record.

    Args:
      args: the parsed flags; changed in place.
      source: arguments of `load`, see `Pipeline.source`; without a model, the toybox.
    """
    # With another --model, the recorded parts of the old one would not fit.
    if args.model is not None:
        return
    args.model = source.get("model", "toybox")
    for name, flag in _FLAGS.items():
        if name in source and getattr(args, flag) in _NOT_GIVEN:
            setattr(args, flag, source[name])
