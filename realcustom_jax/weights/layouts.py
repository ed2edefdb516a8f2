"""Key layouts: the mapping between a file's tensors and our parameters, in both directions.

A layout makes a list of `Entry`. Reading and writing use the same list, so a file that is written and read
again has the same bits. Our modules have the names of diffusers and transformers, so most entries follow one
rule (see `keys`). Other layouts rename keys, fuse q, k and v into one tensor, or store vectors with leading
axes of size 1.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from realcustom_jax.weights.keys import from_torch, to_torch, torch_key, torch_shape

Shapes = Mapping[str, Any]  # {path: leaf with `.shape`}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a file, and the parameters that it holds.

    Attributes:
      key: name of the tensor in the file.
      shape: shape of the tensor in the file.
      paths: paths of our parameters in it, concatenated along PyTorch's first axis.
      parts: shapes of these parameters in PyTorch's layout (in ours if `flax`).
      flax: whether kernels keep Flax's layout.
    """

    key: str
    shape: tuple[int, ...]
    paths: tuple[str, ...]
    parts: tuple[tuple[int, ...], ...]
    flax: bool = False

    def to_file(self, values: Iterable[np.ndarray]) -> np.ndarray:
        """Make the tensor from our parameters."""
        parts = [v if self.flax else to_torch(p, v) for p, v in zip(self.paths, values, strict=True)]
        tensor = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return tensor.reshape(self.shape)  # adds axes of size 1 where the file has them

    def from_file(self, tensor: np.ndarray) -> dict[str, np.ndarray]:
        """Make our parameters from the tensor: {path: values}."""
        # Fused q, k, v: (3C, C) → three (C, C).
        ends = np.cumsum([shape[0] for shape in self.parts])[:-1]
        pieces = np.split(tensor.reshape(_joined(self.parts)), ends)
        return {
            path: np.ascontiguousarray(piece) if self.flax else from_torch(path, np.ascontiguousarray(piece))
            for path, piece in zip(self.paths, pieces, strict=True)
        }


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way to name the tensors of a component.

    Attributes:
      name: its name in error messages.
      entries: shapes of our parameters → the file's tensors.
      unused: regex of further tensors that files of this layout may hold; the model does not need them.
    """

    name: str
    entries: Callable[[Shapes], list[Entry]]
    # Old versions of transformers saved this buffer, which is only 0, 1, 2, …
    unused: str = r"(^|\.)position_ids$"


def entry(key: str, shapes: Shapes, *paths: str, shape: tuple[int, ...] | None = None) -> Entry:
    """Make an entry in PyTorch's layout. Its shape is that of the joined parameters unless it is given."""
    parts = tuple(torch_shape(path, shapes[path].shape) for path in paths)
    return Entry(key, _joined(parts) if shape is None else shape, paths, parts)


def _joined(parts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Shape of arrays concatenated along the first axis."""
    return (sum(shape[0] for shape in parts), *parts[0][1:])


def _by_rename(rename: Callable[[str], str]) -> Callable[[Shapes], list[Entry]]:
    return lambda shapes: [entry(rename(torch_key(path)), shapes, path) for path in shapes]


# ---------------------------------------------------------------- diffusers and transformers

DIFFUSERS = Layout("diffusers", _by_rename(lambda key: key))

# diffusers 0.18 renamed the VAE's attention layers; SD1.5's published VAE still has the old names.
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def _old_vae(key: str) -> str:
    match = re.fullmatch(r"(.*mid_block\.attentions\.0\.)(to_q|to_k|to_v|to_out\.0)(\..*)", key)
    return match[1] + _OLD_ATTENTION[match[2]] + match[3] if match else key


OLD_VAE = Layout("diffusers before 0.18", _by_rename(_old_vae))

# Image towers often come in files with a whole CLIP or SigLIP. SigLIP's pooling head is not needed either:
# visual tokens are taken before it.
_REST_OF_CLIP = r"^(text_model\.|text_projection\.|logit_(scale|bias)$)|^vision_model\.head\.|position_ids$"
CLIP_VISION = Layout("transformers", DIFFUSERS.entries, _REST_OF_CLIP)
# The text tower in a file with a whole CLIP.
CLIP_TEXT = Layout(
    "transformers", DIFFUSERS.entries, r"^(vision_model\.|visual_projection\.|logit_scale$)|position_ids$"
)

# ---------------------------------------------------------------- DINOv2 in transformers, and timm


def _tower(
    shapes: Shapes,
    embeddings: Mapping[str, tuple[str, tuple[int, ...]]],
    layer: Callable[[Shapes, str, str, str], list[Entry]],
    norm: str,
) -> list[Entry]:
    """Entries of an image tower.

    Args:
      shapes: shapes of our parameters.
      embeddings: {our name: (name in the file, leading axes of size 1 in the file)}.
      layer: (shapes, our path, layer number, our name within the layer) → zero or one entry.
      norm: name in the file for the norm after the last layer.
    """
    entries = []
    for path, leaf in shapes.items():
        key = torch_key(path).removeprefix("vision_model.")
        if match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", key):
            entries += layer(shapes, path, match[1], match[2])
        elif key.startswith("embeddings."):
            key, ones = embeddings[key.removeprefix("embeddings.")]
            entries.append(entry(key, shapes, path, shape=ones + torch_shape(path, leaf.shape)))
        else:
            entries.append(entry(key.replace("post_layernorm", norm), shapes, path))
    return entries


_DINOV2_LAYER = {
    "layer_scale1": "layer_scale1.lambda1",
    "layer_scale2": "layer_scale2.lambda1",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.q_proj": "attention.attention.query",
    "self_attn.k_proj": "attention.attention.key",
    "self_attn.v_proj": "attention.attention.value",
    "self_attn.out_proj": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
# Both store tokens and positions with a batch axis of size 1, and the class token with a token axis too.
_DINOV2_EMBEDDINGS = {
    "class_embedding": ("embeddings.cls_token", (1, 1)),
    "register_tokens": ("embeddings.register_tokens", (1,)),
    "position_embedding.weight": ("embeddings.position_embeddings", (1,)),
    "patch_embedding.weight": ("embeddings.patch_embeddings.projection.weight", ()),
    "patch_embedding.bias": ("embeddings.patch_embeddings.projection.bias", ()),
}
_TIMM_LAYER = {
    "layer_scale1": "ls1.gamma",
    "layer_scale2": "ls2.gamma",
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


def _renamed(names: Mapping[str, str], name: str) -> str:
    """Translate a name within a layer. The module's name is looked up; `weight` or `bias` stays."""
    # Layer scales have no `weight` at the end.
    match = re.fullmatch(r"(.+?)(\.(?:weight|bias))?", name)
    assert match is not None
    return names[match[1]] + (match[2] or "")


def _dinov2_layer(shapes: Shapes, path: str, number: str, name: str) -> list[Entry]:
    return [entry(f"encoder.layer.{number}.{_renamed(_DINOV2_LAYER, name)}", shapes, path)]


def _timm_layer(shapes: Shapes, path: str, number: str, name: str) -> list[Entry]:
    """timm fuses queries, keys and values into one tensor; the entry of the queries holds all three."""
    if match := re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", name):
        if match[1] != "q":
            return []
        paths = (path.replace("/q_proj/", f"/{letter}_proj/") for letter in "qkv")
        return [entry(f"blocks.{number}.attn.qkv.{match[2]}", shapes, *paths)]
    return [entry(f"blocks.{number}.{_renamed(_TIMM_LAYER, name)}", shapes, path)]


DINOV2 = Layout(
    "transformers' DINOv2",
    lambda shapes: _tower(shapes, _DINOV2_EMBEDDINGS, _dinov2_layer, "layernorm"),
    r"^embeddings\.mask_token$",
)
TIMM = Layout(
    "timm",
    lambda shapes: _tower(shapes, _TIMM_EMBEDDINGS, _timm_layer, "norm"),
    r"^(attn_pool|head|fc_norm)\.",
)

# ---------------------------------------------------------------- Flax


def _flax_key(path: str) -> str:
    """Path in a Flax file of transformers or diffusers."""
    # transformers' Flax models number lists as plain entries, diffusers' Flax models do it as ours. diffusers
    # never renamed the attention layers of its Flax VAE.
    path = re.sub(r"/encoder/layers_(\d+)/", r"/encoder/layers/\1/", path)
    match = re.fullmatch(r"(.*mid_block/attentions_0/)(to_q|to_k|to_v|to_out_0)(/.*)", path)
    return match[1] + _OLD_ATTENTION[match[2].replace("_0", ".0")] + match[3] if match else path


def _flax(shapes: Shapes) -> list[Entry]:
    return [
        Entry(_flax_key(path), tuple(leaf.shape), (path,), (tuple(leaf.shape),), flax=True)
        for path, leaf in shapes.items()
    ]


FLAX = Layout("Flax", _flax, r"(^|/)position_ids$")
# Files with a whole CLIP.
FLAX_TEXT = Layout("Flax", _flax, r"^(vision_model/|visual_projection/|logit_scale$)|(^|/)position_ids$")
FLAX_VISION = Layout("Flax", _flax, r"^(text_model/|text_projection/|logit_scale$)|(^|/)position_ids$")
