"""One component of a model folder: `config.json` and `.safetensors` in the PyTorch key layout."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from realcustom_jax.errors import UserError
from realcustom_jax.weights.keys import (
    check_keys,
    flatten,
    from_torch,
    to_torch,
    torch_key,
    torch_shape,
    unflatten,
)

_WEIGHT_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
# What weights can be written as: numpy's names.
WEIGHT_DTYPES = ("float32", "float16")


def weights_name(component: str) -> str:
    """What diffusers calls the weights file of a component."""
    return _WEIGHT_NAMES[1] if component.split("_")[0] in ("text", "image") else _WEIGHT_NAMES[0]


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """`config.json` of a component, or its file called `name`.

    Raises:
      UserError: if it is not there or is not JSON.
    """
    path = folder / name
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None


def load_params(folder: Path, shapes: Any) -> Any:
    """The parameters of one component, checked key by key.

    Args:
      folder: holds one `.safetensors` file.
      shapes: the `params` tree that the module wants, as shapes.

    Returns:
      a nested dict of numpy arrays with the shapes' dtypes.

    Raises:
      UserError: without a file, for a damaged one, or when names or shapes differ (see `check_keys`).
    """
    path = next((folder / name for name in _WEIGHT_NAMES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder} has no weights: expected {' or '.join(_WEIGHT_NAMES)}")
    flat = flatten(shapes)
    try:
        opened = safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from None
    with opened as file:
        found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
        wanted = {torch_key(name): torch_shape(name, leaf.shape) for name, leaf in flat.items()}
        check_keys(str(path), wanted, found)
        return unflatten(
            {
                name: from_torch(name, file.get_tensor(torch_key(name))).astype(leaf.dtype)
                for name, leaf in flat.items()
            }
        )


def save_params(folder: Path, component: str, config: Mapping[str, Any], params: Any, dtype: str) -> None:
    """Write one component; the inverse of `load_params`. `dtype` is one of `WEIGHT_DTYPES`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tensors = {
        torch_key(name): to_torch(name, np.asarray(value)).astype(dtype)
        for name, value in flatten(params).items()
    }
    safetensors.numpy.save_file(tensors, folder / weights_name(component), metadata={"format": "pt"})
