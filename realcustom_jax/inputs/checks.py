"""Checks of requests before sampling: options without effect, empty masks, images too large for memory."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from realcustom_jax.common.errors import UserError
from realcustom_jax.diffusion.masks import keeps_fixed_share
from realcustom_jax.diffusion.solvers import takes_eta
from realcustom_jax.inputs.subjects import Subject
from realcustom_jax.models.family import Models
from realcustom_jax.options import SamplerConfig, SamplingOptions

# (option, the other option that it needs, the value that this must have)
_REQUIREMENTS = (
    ("image_weight", "guidance", "paper"),
    ("rescale", "guidance", "direct"),
)


def check_has_effect(given: Mapping[str, Any], options: SamplingOptions) -> None:
    """Check that each given option has an effect together with the others.

    Raises:
      UserError: for an option without effect.
    """
    for name, mode, value in _REQUIREMENTS:
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
    """The recorded options that still have an effect together with the given ones.

    Args:
      recorded: options of a record (`sample --from`).
      given: options that the user gives now; they override recorded ones.
      defaults: the defaults of the model.

    Returns:
      `recorded` without the options that have no effect.
    """
    # They are no error: a user who changes the guidance need not know the recorded options of the old one.
    # `check_has_effect` reports given options without effect.
    options = defaults.changed({**recorded, **given})
    unused = {name for name, mode, value in _REQUIREMENTS if getattr(options, mode) != value}
    unused |= {"gamma_num"} if options.scoring == "none" else set()
    unused |= set() if takes_eta(options.solver) else {"eta"}
    unused |= (
        {"guidance_scope"} if options.guidance_scope == "mask" and options.guidance != "paper" else set()
    )
    unused |= {"mask_steps"} if "steps" in given else set()  # it counted other steps
    return {name: value for name, value in recorded.items() if name not in unused}


def check_scope(
    options: SamplingOptions, config: SamplerConfig, subjects: Sequence[Sequence[Subject]]
) -> None:
    """Check that the mask of each guided subject can have at least one pixel.

    Raises:
      UserError: if `gamma_scope` is less than one pixel of the mask grid.
    """
    if not keeps_fixed_share(options.mask_kind):
        return
    pixels = config.mask_height * config.mask_width
    shares = options.scalar("gamma_scope", len(subjects))
    for share, own in zip(shares, subjects, strict=True):
        # counted as in `influence_scope`
        if any(subject.guided for subject in own) and np.floor(share * pixels + 1e-4) < 1:
            raise UserError(
                f"gamma_scope {share:g} leaves no pixel of the mask grid of {config.mask_height}x"
                f"{config.mask_width}, so no subject could act: use {1 / pixels:.3g} or more"
            )


def check_fits(models: Models, batch: int, config: SamplerConfig) -> None:
    """Check that a batch can fit into memory. This is a lower bound: larger needs may still fail later.

    Raises:
      UserError: if the skip connections of one UNet pass alone need more memory than the machine has.
    """
    # A mistyped size is then an error at once, instead of an out-of-memory kill after minutes of loading.
    unet, down = models.unet_config, models.vae_config.downscale
    # skips of the UNet's first level in one pass, and one copy; 2 bytes each in half precision
    numbers = config.height * config.width * unet.block_out_channels[0] * (unet.layers_per_block + 2)
    needed, available = batch * numbers * 2, _memory()
    if needed > available:
        images = f"{batch} image{'' if batch == 1 else 's'} of {config.height * down}x{config.width * down}"
        raise UserError(
            f"{images} pixels need more than {needed >> 30} GiB of memory, but only {available >> 30} are "
            "available: use a smaller height and width, or fewer images at once"
        )


def _memory() -> int:
    """Bytes of memory of all devices together, or of the machine if the devices do not report any."""
    # CPU devices report nothing.
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    limits = [one.get("bytes_limit", 0) for one in stats]
    return sum(limits) or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
