"""A base model on disk: its configs, and lazy parameters, from a folder or a single file."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from realcustom_jax.common.errors import UserError
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.models.clip_text import CLIPTextConfig
from realcustom_jax.models.config import UNetConfig
from realcustom_jax.models.family import TEXT
from realcustom_jax.models.vae import VAEConfig
from realcustom_jax.weights.components import LAYOUTS, find_weights, open_params, read_config
from realcustom_jax.weights.configs import read_schedule, read_text, read_unet, read_vae
from realcustom_jax.weights.layouts import DIFFUSERS, FLAX, Layout
from realcustom_jax.weights.original_layout import ORIGINAL_UNET
from realcustom_jax.weights.tensors import Tensors, open_tensors

TOKENIZERS = ("tokenizer", "tokenizer_2")
_SCHEDULER_CONFIG = "scheduler_config.json"


@dataclasses.dataclass(frozen=True)
class Base:
    """A base model on disk.

    Attributes:
      unet, vae, texts, schedule: configs of the networks and the noise schedule; one or two text encoders.
      tokenizers: one folder for each text encoder.
      padding: padding token of each tokenizer; None for the tokenizer's own.
      open: (component, shapes of its `params` tree) → its lazy parameters, after checking their keys.
    """

    unet: UNetConfig
    vae: VAEConfig
    texts: tuple[CLIPTextConfig, ...]
    schedule: ScheduleConfig
    tokenizers: tuple[Path, ...]
    padding: tuple[str | None, ...]
    open: Callable[[str, Any], Any]


def folder_base(parts: Mapping[str, Path]) -> Base:
    """The base model in a folder in the diffusers layout.

    Args:
      parts: {component, tokenizer or "scheduler": its folder}.

    Raises:
      UserError: a config is missing or not supported.
    """
    texts = tuple(
        read_text(read_config(parts[name]), str(parts[name] / "config.json"))
        for name in TEXT
        if name in parts
    )
    scheduler = parts["scheduler"]

    def opened(name: str, shapes: Any) -> Any:
        layouts = LAYOUTS[re.sub(r"_2$", "", name)]  # the second encoder has the layouts of the first
        return open_params(open_tensors(find_weights(parts[name])), layouts, shapes)

    return Base(
        read_unet(read_config(parts["unet"]), str(parts["unet"] / "config.json")),
        read_vae(read_config(parts["vae"]), str(parts["vae"] / "config.json")),
        texts,
        read_schedule(read_config(scheduler, _SCHEDULER_CONFIG), str(scheduler / _SCHEDULER_CONFIG)),
        tuple(parts[name] for name in TOKENIZERS[: len(texts)]),
        (None,) * len(texts),
        opened,
    )


def with_unet(base: Base, path: Path) -> Base:
    """A base model with its UNet replaced by another one of the same shape.

    Args:
      base: the base model that gives the other components.
      path: a folder with the UNet's `config.json`, a folder that has it in `unet/`, or a weights file in
        diffusers' or the original layout. The file may have other components too.

    Raises:
      UserError: the UNet has another shape.
    """
    if path.is_dir():
        folder = path / "unet" if (path / "unet").is_dir() else path
        config = read_unet(read_config(folder), str(folder / "config.json"))
        _check_same_shape(base.unet, config, folder)
        return _with_opened(base, open_tensors(find_weights(folder)), LAYOUTS["unet"])
    tensors = open_tensors(path)
    # A file has no config; keys and shapes are checked when the parameters are opened.
    for prefix in _UNET_PREFIXES:
        if any(key.startswith(prefix) for key in tensors.shapes):
            return _with_opened(base, tensors.select(prefix), (ORIGINAL_UNET, DIFFUSERS, FLAX))
    return _with_opened(base, tensors, (DIFFUSERS, FLAX, ORIGINAL_UNET))


# Prefixes of the UNet's keys in files with several components: original, diffusers, Flax.
_UNET_PREFIXES = ("model.diffusion_model.", "unet.", "unet/")
# Fields that do not change what a forward pass computes.
_SAMPLING_FIELDS = ("sample_size",)


def _check_same_shape(expected: UNetConfig, given: UNetConfig, source: Path) -> None:
    """Raise `UserError` if two UNet configs differ."""
    for field in dataclasses.fields(UNetConfig):
        ours, theirs = getattr(expected, field.name), getattr(given, field.name)
        if ours != theirs and field.name not in _SAMPLING_FIELDS:
            raise UserError(f"the UNet in {source} has another shape: {field.name} is {theirs}, not {ours}")


def with_tensors(base: Base, unet: Tensors) -> Base:
    """A base model with the weights of its UNet replaced; `unet` has diffusers' keys."""
    return _with_opened(base, unet, (DIFFUSERS,))


def _with_opened(base: Base, unet: Tensors, layouts: tuple[Layout, ...]) -> Base:
    def opened(name: str, shapes: Any) -> Any:
        return open_params(unet, layouts, shapes) if name == "unet" else base.open(name, shapes)

    return dataclasses.replace(base, open=opened)
