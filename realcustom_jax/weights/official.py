"""The published RealCustom++ checkpoint, and other files with the weights that RealCustom adds to a UNet."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from realcustom_jax.common.errors import UserError
from realcustom_jax.models.config import RealCustomConfig, from_mapping
from realcustom_jax.weights.added import ADDED
from realcustom_jax.weights.components import find_weights, read_config
from realcustom_jax.weights.keys import explain_shape_errors
from realcustom_jax.weights.tensors import Tensors, open_tensors, read_metadata

# Key of the config, as JSON text, in the metadata of our own files.
CONFIG_KEY = "realcustom_config"
_PROJECTION = "encoder_hidden_states_vision_projection"
# The published code takes SigLIP-so400m's blocks 7, 13, 19 and DINOv2-L's 4, 10, 16, counted from 0, and the
# last but one. State n is the output of block n - 1, as in transformers' `hidden_states`.
_SHALLOW_LAYERS = ((8, 14, 20, -2), (5, 11, 17, -2))


@dataclasses.dataclass(frozen=True)
class Added:
    """The weights that RealCustom adds to a base UNet, on disk.

    Attributes:
      config: config of the added layers.
      tensors: the added weights, with diffusers' names.
      base: tensors of a base UNet in the same file, or None.
    """

    config: RealCustomConfig
    tensors: Tensors
    base: Tensors | None = None


def open_added(path: Path, base_keys: Callable[[], set[str]]) -> Added:
    """Open the weights that RealCustom adds, from a `realcustom/` folder or a checkpoint file.

    Args:
      path: a folder with `config.json`, or a file. A file may also have the base UNet, like the published
        one. Its config comes from its metadata or from its shapes.
      base_keys: returns the names of the base UNet's tensors; called only for a file.

    Raises:
      UserError: the path is neither, or the file has only a part of the base UNet.
    """
    if path.is_dir():
        config = from_mapping(RealCustomConfig, read_config(path), str(path / "config.json"))
        return Added(config, open_tensors(find_weights(path)))
    tensors = open_tensors(path)
    # PyTorch's DistributedDataParallel adds "module.", saving a whole pipeline adds "unet.".
    for prefix in ("module.", "unet."):
        if tensors.shapes and all(key.startswith(prefix) for key in tensors.shapes):
            tensors = tensors.select(prefix)
    known = base_keys()
    base = {key: shape for key, shape in tensors.shapes.items() if key in known}
    added = {key: shape for key, shape in tensors.shapes.items() if key not in known}
    if not any(re.search(ADDED, key.replace(".", "/")) for key in added):
        raise UserError(f"{path} holds nothing that RealCustom adds to a UNet, such as to_k_vision")
    # A part of a base cannot replace the model's own, and dropping it silently would hide a broken file.
    if base and len(base) < len(known):
        missing = sorted(known - base.keys())
        raise UserError(
            f"{path} holds {len(base)} of the {len(known)} tensors of a base UNet: {missing[0]} is missing"
        )
    tensors = dataclasses.replace(tensors, shapes=added)
    base_tensors = dataclasses.replace(tensors, shapes=base) if base else None
    return Added(_metadata_config(path) or guess_config(tensors), tensors, base_tensors)


def _metadata_config(path: Path) -> RealCustomConfig | None:
    """The config in a file's metadata, written by `exports.write_published`; None if there is none.

    Raises:
      UserError: the metadata entry is not a config.
    """
    text = read_metadata(path).get(CONFIG_KEY)
    if text is None:
        return None
    try:
        return from_mapping(RealCustomConfig, json.loads(text), f"{path}: its metadata {CONFIG_KEY}")
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: its metadata {CONFIG_KEY} is not a config: {error!r}") from None


def guess_config(tensors: Tensors) -> RealCustomConfig:
    """Derive the config of a checkpoint file from its shapes.

    Raises:
      UserError: the file has no known projector.
    """
    with explain_shape_errors(tensors.source):
        return from_mapping(RealCustomConfig, _fields_from_shapes(tensors), tensors.source)


def _fields_from_shapes(tensors: Tensors) -> dict[str, Any]:
    """Fields of `RealCustomConfig`."""
    # The number of heads shows in no shape: the default of 64 channels per head is the published value.
    shapes = {
        key.removeprefix(f"{_PROJECTION}."): shape
        for key, shape in tensors.shapes.items()
        if key.startswith(_PROJECTION)
    }
    score = tensors.shapes.get("scoring.text_score.linear_1.weight")
    scoring = {"scoring": score is not None, **({"scoring_dim": score[0]} if score else {})}
    if "proj.weight" in shapes:
        return {"token_dim": shapes["proj.weight"][0], "projector": "plain", **scoring}
    if "projector_base.weight" not in shapes:
        raise UserError(f"{tensors.source} has no known projector among {_PROJECTION}.…")
    shallow = "min_attention2.to_q.weight" in shapes
    return {
        "token_dim": shapes["projector_base.weight"][0],
        "projector": "shallow" if shallow else "deep",
        "feature_layers": _SHALLOW_LAYERS if shallow else ((-2,), (-2,)),
        **scoring,
    }
