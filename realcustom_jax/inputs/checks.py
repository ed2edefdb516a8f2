"""Checks of requests against options and model: options without effect, empty scopes, sizes beyond memory."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from realcustom_jax.common.errors import UserError
from realcustom_jax.inputs.subjects import Subject
from realcustom_jax.models.family import Models
from realcustom_jax.options import SamplerConfig, SamplingOptions

# (option, what it needs: option and value)
_NEEDS = (
    ("image_weight", "guidance", "paper"),
    ("rescale", "guidance", "direct"),
)


def check_used(given: Mapping[str, Any], options: SamplingOptions) -> None:
    """Raises `UserError` for an option that was given and has no effect beside the others."""
    for name, mode, value in _NEEDS:
        if name in given and getattr(options, mode) != value:
            raise UserError(
                f"{name} has no effect: it is an option of {mode} {value!r}, and the {mode} is "
                f"{getattr(options, mode)!r}"
            )
    if "gamma_num" in given and options.scoring == "none":
        raise UserError("gamma_num has no effect: scoring 'none' keeps all visual tokens")


def still_used(
    recorded: Mapping[str, Any], given: Mapping[str, Any], defaults: SamplingOptions
) -> dict[str, Any]:
    """The options of a record that have an effect beside those that are given now.

    A recorded option that the given ones leave idle is dropped: who asks for another guidance need not know
    what the record says of the old one. A given option that is idle is for `check_used` to report.
    """
    options = defaults.changed({**recorded, **given})
    idle = {name for name, mode, value in _NEEDS if getattr(options, mode) != value}
    idle |= {"gamma_num"} if options.scoring == "none" else set()
    idle |= {"eta"} if options.eta and options.solver != "ddim" else set()
    idle |= {"guidance_scope"} if options.guidance_scope == "mask" and options.guidance != "paper" else set()
    idle |= {"mask_steps"} if "steps" in given else set()  # it was of other steps
    return {name: value for name, value in recorded.items() if name not in idle}


def check_scope(
    options: SamplingOptions, config: SamplerConfig, subjects: Sequence[Sequence[Subject]]
) -> None:
    """Raises `UserError` where no pixel of the mask grid would be left to a subject that words guide."""
    if options.mask_kind == "threshold":
        return
    pixels = config.mask_height * config.mask_width
    shares = options.scalar("gamma_scope", len(subjects))
    for share, own in zip(shares, subjects, strict=True):
        # As `influence_scope` counts them.
        if any(subject.guided for subject in own) and np.floor(share * pixels + 1e-4) < 1:
            raise UserError(
                f"gamma_scope {share:g} leaves no pixel of the mask grid of {config.mask_height}x"
                f"{config.mask_width}, so no subject could act: use {1 / pixels:.3g} or more"
            )


def check_fits(models: Models, batch: int, config: SamplerConfig) -> None:
    """Raises `UserError` for sizes whose smallest need alone is beyond the machine's memory."""
    unet, down = models.unet_config, models.vae_config.downscale
    # The skip connections of the UNet's first level, of one pass in half precision, and one copy.
    numbers = config.height * config.width * unet.block_out_channels[0] * (unet.layers_per_block + 2)
    needed, there = batch * numbers * 2, _memory()
    if needed > there:
        images = f"{batch} image{'' if batch == 1 else 's'} of {config.height * down}x{config.width * down}"
        raise UserError(
            f"{images} pixels need more than {needed >> 30} GiB of memory, and there are {there >> 30}: use "
            "a smaller height and width, or fewer images at once"
        )


def _memory() -> int:
    """Bytes of the devices together, or of the machine where those do not tell."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    limits = [one.get("bytes_limit", 0) for one in stats]
    return sum(limits) or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
