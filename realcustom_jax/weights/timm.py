"""Image towers in timm's key layout (SigLIP, DINOv2): fused q/k/v, and other names than transformers'."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from realcustom_jax.weights.keys import check_keys, from_torch, unflatten

# SigLIP's attention-pooling head: visual features come from before it.
_UNUSED = re.compile(r"^attn_pool\.")

_NAMES = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn/out_proj",
    "mlp.fc1": "mlp/fc1",
    "mlp.fc2": "mlp/fc2",
}
_BLOCK = re.compile(r"^blocks\.(\d+)\.(.+)$")


def from_timm(state: Mapping[str, np.ndarray], shapes: Mapping[str, Any]) -> Any:
    """Parameters of `ViT` from a timm state dict.

    Args:
      state: {key: array}, PyTorch's layout.
      shapes: {"vision_model/…": leaf with `.shape`}, the flat `params` of the `ViT` that wants them.

    Raises:
      UserError: when names or shapes differ; keys of the unused pooling head are allowed.
    """
    values: dict[str, np.ndarray] = {}
    for key, value in state.items():
        if not _UNUSED.match(key):
            values |= _convert(key, np.asarray(value))
    wanted = {path: leaf.shape for path, leaf in shapes.items()}
    check_keys("the timm state dict", wanted, {path: value.shape for path, value in values.items()})
    return unflatten(values)


def _convert(key: str, value: np.ndarray) -> dict[str, np.ndarray]:
    """One timm tensor as ours; a fused one becomes three. Unknown keys keep their name, to be reported."""
    root = "vision_model"
    if match := _BLOCK.match(key):
        layer, rest = f"{root}/encoder/layers_{match[1]}", match[2]
        if rest in ("ls1.gamma", "ls2.gamma"):
            return {f"{layer}/layer_scale{rest[2]}": value}
        module, leaf = rest.rsplit(".", 1)
        if module == "attn.qkv":
            return {
                path: from_torch(path, part)
                for name, part in zip("qkv", np.split(value, 3), strict=True)
                for path in [f"{layer}/self_attn/{name}_proj/{_leaf(leaf, part)}"]
            }
        if module in _NAMES:
            path = f"{layer}/{_NAMES[module]}/{_leaf(leaf, value)}"
            return {path: from_torch(path, value)}
    if key in ("norm.weight", "norm.bias"):
        return {f"{root}/post_layernorm/{_leaf(key[5:], value)}": value}
    if key in ("patch_embed.proj.weight", "patch_embed.proj.bias"):
        path = f"{root}/embeddings/patch_embedding/{_leaf(key[17:], value)}"
        return {path: from_torch(path, value)}
    embeddings = {
        "pos_embed": ("position_embedding/embedding", 1),
        "cls_token": ("class_embedding", 2),
        "reg_token": ("register_tokens", 1),
    }
    if key in embeddings:
        name, leading = embeddings[key]
        return {f"{root}/embeddings/{name}": value.reshape(value.shape[leading:])}
    return {key: value}


def _leaf(leaf: str, value: np.ndarray) -> str:
    return leaf if leaf == "bias" else "scale" if value.ndim == 1 else "kernel"
