"""A base model, wherever it comes from: its configs, and its parameters on demand."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.models.clip_text import CLIPTextConfig
from realcustom_jax.models.config import UNetConfig
from realcustom_jax.models.family import TEXT
from realcustom_jax.models.vae import VAEConfig
from realcustom_jax.weights.components import Place, load_params, read_config
from realcustom_jax.weights.configs import read_schedule, read_text, read_unet, read_vae

TOKENIZERS = ("tokenizer", "tokenizer_2")


@dataclasses.dataclass(frozen=True)
class Base:
    """A base model on disk.

    Attributes:
      unet, vae, texts, schedule: its shapes and noise schedule; one or two text encoders.
      tokenizers: a folder for each text encoder.
      padding: the token that each tokenizer pads with; None for its own.
      load: (component, its `params` tree as shapes, place) → its parameters, checked key by key.
    """

    unet: UNetConfig
    vae: VAEConfig
    texts: tuple[CLIPTextConfig, ...]
    schedule: ScheduleConfig
    tokenizers: tuple[Path, ...]
    padding: tuple[str | None, ...]
    load: Callable[[str, Any, Place], Any]


def folder_base(parts: Mapping[str, Path]) -> Base:
    """From a folder in the diffusers layout.

    Args:
      parts: {component, tokenizer or "scheduler": its folder}.

    Raises:
      UserError: when a config is missing, or is of a network that is none of ours.
    """
    texts = tuple(read_text(read_config(parts[name]), str(parts[name])) for name in TEXT if name in parts)
    scheduler = parts["scheduler"]
    return Base(
        read_unet(read_config(parts["unet"]), str(parts["unet"])),
        read_vae(read_config(parts["vae"]), str(parts["vae"])),
        texts,
        read_schedule(read_config(scheduler, "scheduler_config.json"), str(scheduler)),
        tuple(parts[name] for name in TOKENIZERS[: len(texts)]),
        (None,) * len(texts),
        lambda name, shapes, place: load_params(parts[name], re.sub(r"_2$", "", name), shapes, place),
    )
