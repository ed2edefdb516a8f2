"""Key layouts: which tensor of a file holds which of our parameters, both ways.

Every layout is a list of `Entry`. Reading and writing walk the same list, so what one writes the other reads,
to the bit. Our modules are named after diffusers' and transformers', so most entries come from one rule (see
`keys`); other layouts rename, fuse q, k and v into one tensor, or store vectors with leading ones.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from realcustom_jax.weights.keys import from_torch, to_torch, torch_key, torch_shape

Shapes = Mapping[str, Any]  # {path: leaf with `.shape`}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Attributes:
      key: its name there.
      shape: there.
      paths: our parameters that it holds, joined along PyTorch's first axis.
      parts: their shapes in PyTorch's layout (in ours where `flax`).
      flax: kernels keep our layout.
      transposed: a matrix stored the other way round than PyTorch's layers do.
    """

    key: str
    shape: tuple[int, ...]
    paths: tuple[str, ...]
    parts: tuple[tuple[int, ...], ...]
    flax: bool = False
    transposed: bool = False

    def to_file(self, values: Iterable[np.ndarray]) -> np.ndarray:
        """Our parameters → the tensor."""
        parts = [v if self.flax else to_torch(p, v) for p, v in zip(self.paths, values, strict=True)]
        tensor = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return np.ascontiguousarray(tensor.T) if self.transposed else tensor.reshape(self.shape)

    def from_file(self, tensor: np.ndarray) -> dict[str, np.ndarray]:
        """The tensor → our parameters."""
        tensor = tensor.T if self.transposed else tensor
        ends = np.cumsum([shape[0] if shape else 1 for shape in self.parts])[:-1]
        joined = (sum(shape[0] for shape in self.parts), *self.parts[0][1:]) if len(ends) else self.parts[0]
        pieces = np.split(tensor.reshape(joined), ends) if len(ends) else [tensor.reshape(joined)]
        return {
            path: np.ascontiguousarray(piece) if self.flax else from_torch(path, np.ascontiguousarray(piece))
            for path, piece in zip(self.paths, pieces, strict=True)
        }


@dataclasses.dataclass(frozen=True)
class Layout:
    """A way to name tensors.

    Attributes:
      name: for messages.
      entries: from the model's parameters as shapes to the file's tensors.
      unused: tensors that files of this layout may hold beyond what the model has, by regex.
    """

    name: str
    entries: Callable[[Shapes], list[Entry]]
    unused: str = r"(^|\.)position_ids$"


def entry(key: str, shapes: Shapes, *paths: str, shape: tuple[int, ...] | None = None, **more: Any) -> Entry:
    """An entry in PyTorch's layout; its shape is that of its parts joined, unless given."""
    parts = tuple(torch_shape(path, shapes[path].shape) for path in paths)
    joined = (sum(part[0] for part in parts), *parts[0][1:]) if len(parts) > 1 else parts[0]
    if more.get("transposed"):
        joined = joined[::-1]
    return Entry(key, joined if shape is None else shape, paths, parts, **more)


def _by_rename(rename: Callable[[str], str]) -> Callable[[Shapes], list[Entry]]:
    return lambda shapes: [entry(rename(torch_key(path)), shapes, path) for path in shapes]


# ---------------------------------------------------------------- diffusers and transformers

DIFFUSERS = Layout("diffusers", _by_rename(lambda key: key))

_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def _old_vae(key: str) -> str:
    match = re.fullmatch(r"(.*mid_block\.attentions\.0\.)(to_q|to_k|to_v|to_out\.0)(\..*)", key)
    return match[1] + _OLD_ATTENTION[match[2]] + match[3] if match else key


# As VAEs were written before diffusers 0.18, among them SD1.5's.
OLD_VAE = Layout("diffusers before 0.18", _by_rename(_old_vae))

# Image towers of whole CLIP and SigLIP models, and SigLIP's pooling head, which comes after visual features.
_REST_OF_CLIP = r"^(text_model\.|text_projection\.|logit_(scale|bias)$)|^vision_model\.head\.|position_ids$"
CLIP_VISION = Layout("transformers", DIFFUSERS.entries, _REST_OF_CLIP)

_DINOV2_NAMES = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.q_proj": "attention.attention.query",
    "self_attn.k_proj": "attention.attention.key",
    "self_attn.v_proj": "attention.attention.value",
    "self_attn.out_proj": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_DINOV2_EMBEDDINGS = {
    "class_embedding": ("embeddings.cls_token", (1, 1)),
    "register_tokens": ("embeddings.register_tokens", (1,)),
    "position_embedding.weight": ("embeddings.position_embeddings", (1,)),
    "patch_embedding.weight": ("embeddings.patch_embeddings.projection.weight", ()),
    "patch_embedding.bias": ("embeddings.patch_embeddings.projection.bias", ()),
}


def _dinov2(shapes: Shapes) -> list[Entry]:
    entries = []
    for path, leaf in shapes.items():
        key = torch_key(path).removeprefix("vision_model.")
        if match := re.fullmatch(r"encoder\.layers\.(\d+)\.layer_scale([12])", key):
            key = f"encoder.layer.{match[1]}.layer_scale{match[2]}.lambda1"
            entries.append(entry(key, shapes, path))
        elif match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key):
            key = f"encoder.layer.{match[1]}.{_DINOV2_NAMES[match[2]]}.{match[3]}"
            entries.append(entry(key, shapes, path))
        elif key.startswith("embeddings."):
            key, ones = _DINOV2_EMBEDDINGS[key.removeprefix("embeddings.")]
            entries.append(entry(key, shapes, path, shape=ones + torch_shape(path, leaf.shape)))
        else:
            entries.append(entry(key.replace("post_layernorm", "layernorm"), shapes, path))
    return entries


DINOV2 = Layout("transformers' DINOv2", _dinov2, r"^embeddings\.mask_token$")

# ---------------------------------------------------------------- timm

_TIMM_NAMES = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_TIMM_EMBEDDINGS = {
    "class_embedding": ("cls_token", (1, 1)),
    "register_tokens": ("reg_token", (1,)),
    "position_embedding.weight": ("pos_embed", (1,)),
    "patch_embedding.weight": ("patch_embed.proj.weight", ()),
    "patch_embedding.bias": ("patch_embed.proj.bias", ()),
}


def _timm(shapes: Shapes) -> list[Entry]:
    entries = []
    for path, leaf in shapes.items():
        key = torch_key(path).removeprefix("vision_model.")
        if match := re.fullmatch(r"encoder\.layers\.(\d+)\.layer_scale([12])", key):
            entries.append(entry(f"blocks.{match[1]}.ls{match[2]}.gamma", shapes, path))
        elif match := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", key):
            if match[2] == "q":
                paths = (path.replace("/q_proj/", f"/{name}_proj/") for name in "qkv")
                entries.append(entry(f"blocks.{match[1]}.attn.qkv.{match[3]}", shapes, *paths))
        elif match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key):
            entries.append(entry(f"blocks.{match[1]}.{_TIMM_NAMES[match[2]]}.{match[3]}", shapes, path))
        elif key.startswith("embeddings."):
            key, ones = _TIMM_EMBEDDINGS[key.removeprefix("embeddings.")]
            entries.append(entry(key, shapes, path, shape=ones + torch_shape(path, leaf.shape)))
        else:
            entries.append(entry(key.replace("post_layernorm", "norm"), shapes, path))
    return entries


TIMM = Layout("timm", _timm, r"^(attn_pool|head|fc_norm)\.")

# ---------------------------------------------------------------- Flax


def _flax_key(path: str) -> str:
    """transformers' Flax lists are plain numbers, diffusers' are ours; its VAE has old attention names."""
    path = re.sub(r"/encoder/layers_(\d+)/", r"/encoder/layers/\1/", path)
    match = re.fullmatch(r"(.*mid_block/attentions_0/)(to_q|to_k|to_v|to_out_0)(/.*)", path)
    return match[1] + _OLD_ATTENTION[match[2].replace("_0", ".0")] + match[3] if match else path


def _flax(shapes: Shapes) -> list[Entry]:
    return [
        Entry(_flax_key(path), tuple(leaf.shape), (path,), (tuple(leaf.shape),), flax=True)
        for path, leaf in shapes.items()
    ]


FLAX = Layout("Flax", _flax, r"(^|/)position_ids$")
# With the text tower of a whole CLIP beside it.
FLAX_VISION = Layout("Flax", _flax, r"^(text_model/|text_projection/|logit_scale$)|(^|/)position_ids$")
