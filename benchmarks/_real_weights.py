"""Random full-size weights in the layouts of real files, for `benchmarks/real_size.py`.

The base model is a diffusers folder in float16. The image towers are transformers folders in float32. The
RealCustom part is a `realcustom/` folder for SD1.5. For SDXL it is a checkpoint file that includes the base
UNet, like the published one. Values are normally distributed at the scale of an untrained network, so that
activations stay finite.
"""

import dataclasses
import importlib.util
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from realcustom_jax.common.files import write_json
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.inputs.tokenize import load_tokenizer, save_tokenizer
from realcustom_jax.models.family import IMAGE, TEXT, Models
from realcustom_jax.toybox import BACKGROUNDS, WORDS, prompt
from realcustom_jax.toybox.tokenizer import train_tokenizer
from realcustom_jax.weights.bases import TOKENIZERS
from realcustom_jax.weights.components import weights_name, write_params
from realcustom_jax.weights.folder import component_json, component_layout, index_json
from realcustom_jax.weights.keys import flatten, split_added, unflatten
from realcustom_jax.weights.layouts import DIFFUSERS
from realcustom_jax.weights.lazy import LazyArray

_CONFIGS = Path(__file__).parents[1] / "configs"
_POOL = 2**22  # random numbers; all tensors are cut from this pool


@dataclasses.dataclass(frozen=True)
class RealParts:
    """Paths of a model's parts, in the layout of a user's downloads.

    Attributes:
      base: diffusers folder.
      towers: transformers folders.
      realcustom: folder or file with RealCustom's added parameters.
    """

    base: Path
    towers: tuple[Path, ...]
    realcustom: Path


def real_models(family: str, blocks: int | None = None) -> Models:
    """Modules of SD1.5 ("sd15") or SDXL ("sdxl") with RealCustom, from their config files.

    `blocks` limits the number of transformer blocks after each residual block.
    """
    values = load_file(_CONFIGS / f"{family}.py").get_config().model.to_dict()
    if blocks:
        depths = values["unet"]["transformer_layers_per_block"]
        values["unet"]["transformer_layers_per_block"] = tuple(min(depth, blocks) for depth in depths)
    return Models.from_configs(values)


def load_file(path: str | Path) -> Any:
    """Import a config file as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_photos(folder: Path, count: int) -> list[Path]:
    """Write JPEGs above 1024 pixels, none square; keeps existing files."""
    paths = [folder / f"photo_{i:02d}.jpg" for i in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i, path in enumerate(paths):
        size = (1100 + 10 * i, 1500 + 8 * i)[:: 1 if i % 2 == 0 else -1]  # (width, height): tall, wide, …
        noise = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        if not path.exists():
            noise.resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def write_parts(family: str, folder: Path, blocks: int | None = None) -> RealParts:
    """Write all parts of a family unless they are complete already; `blocks` as in `real_models`."""
    models = real_models(family, blocks)
    base, towers = folder / "base", tuple(folder / name for name in IMAGE[: len(models.image_configs)])
    sdxl = family == "sdxl"
    realcustom = folder / ("realcustom_plus.safetensors" if sdxl else "realcustom")
    parts = RealParts(base, towers, realcustom)
    if (folder / "complete").exists():
        return parts
    tokenizer_ids = [write_tokenizer(base / name) for name in TOKENIZERS[: len(models.text_configs)]]
    texts = tuple(
        dataclasses.replace(config, eos_token_id=ids)
        for config, ids in zip(models.text_configs, tokenizer_ids, strict=True)
    )
    models = dataclasses.replace(models, text_configs=texts)
    unet, added = split_added(models.component_shapes("unet"))
    for name in ("unet", "vae", *TEXT[: len(texts)]):
        shapes = unet if name == "unet" else models.component_shapes(name)
        _write(base / name, name, models.configs[name], shapes, "float16")
    for path, (name, config) in zip(towers, zip(IMAGE, models.image_configs, strict=False), strict=True):
        _write(path, name, config, models.component_shapes(name), "float32")
    write_json(
        base / "model_index.json", index_json(dataclasses.replace(models, realcustom=None, image_configs=()))
    )
    write_json(base / "scheduler" / "scheduler_config.json", dataclasses.asdict(ScheduleConfig()))
    if sdxl:  # 7.8 GB as published: one file, everything in it
        write_params(realcustom, DIFFUSERS, _random(models.component_shapes("unet")), "float16", 10**12)
    else:
        write_json(realcustom / "config.json", dataclasses.asdict(models.realcustom))
        write_params(realcustom / weights_name("realcustom"), DIFFUSERS, _random(added), "float32")
    (folder / "complete").touch()
    return parts


def write_tokenizer(folder: Path) -> int:
    """Write a CLIP tokenizer of the toybox's words; gives its end token."""
    words = list(WORDS)
    pairs = zip(words, words[1:] + words[:1], strict=True)
    train_tokenizer([prompt(pair, place) for pair in pairs for place in BACKGROUNDS], folder)
    tokenizer = load_tokenizer(folder)
    save_tokenizer(tokenizer, folder)
    return tokenizer.eos_token_id


def _write(folder: Path, name: str, config: Any, shapes: Any, dtype: str) -> None:
    write_json(folder / "config.json", component_json(name, config))
    layout = component_layout(name, config)
    write_params(folder / weights_name(name), layout, _random(shapes), dtype)


def _random(shapes: Any) -> Any:
    """Lazy arrays of random values; each is created only when it is written."""
    pool = np.random.default_rng(0).standard_normal(_POOL, np.float32)

    def values(path: str, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
        leaf = path.rsplit("/", 1)[-1]
        if leaf == "scale" or "layer_scale" in leaf:
            return lambda: np.ones(shape, np.float32)
        if leaf == "bias":
            return lambda: np.zeros(shape, np.float32)
        deviation = 0.02 if leaf == "embedding" or len(shape) < 2 else 0.7 / math.sqrt(math.prod(shape[:-1]))
        start = zlib.crc32(path.encode()) % 1000
        return lambda: np.resize(pool[start:], math.prod(shape)).reshape(shape) * np.float32(deviation)

    return unflatten(
        {
            path: LazyArray(tuple(leaf.shape), values(path, tuple(leaf.shape)))
            for path, leaf in flatten(shapes).items()
        }
    )
