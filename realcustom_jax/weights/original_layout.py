"""Layouts of the original one-file checkpoints of SD1.5 and SDXL, with the names of latent diffusion's code.

The original numbers blocks through all levels: `input_blocks.4` is the first residual block of the second
level, diffusers' `down_blocks.1.resnets.0`. Names within a transformer are the same in both.
"""

import re
from collections.abc import Callable, Iterable, Mapping

from realcustom_jax.weights.keys import torch_key, torch_shape
from realcustom_jax.weights.layouts import Entry, Layout, Shapes, entry

# The original builds its layers with `nn.Sequential`, so their names are positions; activations have no
# tensors but take a position.
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_MIDDLE = {"resnets.0": "middle_block.0", "attentions.0": "middle_block.1", "resnets.1": "middle_block.2"}


def _unet(shapes: Shapes) -> list[Entry]:
    """Entries of the UNet."""
    blocks = _MIDDLE | _numbered_blocks({torch_key(path) for path in shapes})
    return [entry(_unet_key(torch_key(path), blocks), shapes, path) for path in shapes]


def _numbered_blocks(keys: Iterable[str]) -> dict[str, str]:
    """Map diffusers' block names to original ones: {"down_blocks.1.resnets.0": "input_blocks.4.0"}.

    A numbered block is a residual block (.0) and its transformer (.1), if there is one. A downsampler is a
    block of its own; an upsampler is the last part of the block before it.
    """
    matches = [re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)", key)
               for key in keys]  # fmt: skip
    modules = {(m[1], int(m[2]), m[3], int(m[4])) for m in matches if m}
    names, number = {}, {"down": 1, "up": 0}  # input_blocks.0 is conv_in
    for path, name in (("down", "input_blocks"), ("up", "output_blocks")):
        for level in sorted({module[1] for module in modules if module[0] == path}):
            prefix = f"{path}_blocks.{level}"
            resnets = sum(module[:3] == (path, level, "resnets") for module in modules)
            for j in range(resnets):
                block, place = f"{name}.{number[path]}", 1
                names[f"{prefix}.resnets.{j}"] = f"{block}.0"
                if (path, level, "attentions", j) in modules:
                    names[f"{prefix}.attentions.{j}"] = f"{block}.1"
                    place = 2
                if j == resnets - 1:
                    names[f"{prefix}.upsamplers.0"] = f"{block}.{place}"
                number[path] += 1
            if (path, level, "downsamplers", 0) in modules:
                names[f"{prefix}.downsamplers.0"] = f"{name}.{number[path]}.0"
                number[path] += 1
    return names


def _unet_key(key: str, blocks: Mapping[str, str]) -> str:
    """Original name of a UNet tensor, given diffusers' name."""
    for ours, theirs in _UNET_ENDS.items():
        if key.startswith(f"{ours}."):
            return theirs + key[len(ours) :]
    match = re.fullmatch(r"(?:mid_block|(?:down|up)_blocks\.\d+)\.(\w+\.\d+)\.(.+)", key)
    if not match:
        return key  # the original has no such tensor, so the error lists it as missing under our name
    block = blocks[match[1] if key.startswith("mid_block.") else key[: match.end(1)]]
    rest = match[2]
    if match[1].startswith("resnets."):
        module, leaf = rest.rsplit(".", 1)
        rest = f"{_RESNET[module]}.{leaf}"
    elif match[1].startswith("downsamplers."):
        rest = rest.replace("conv.", "op.", 1)
    return f"{block}.{rest}"


# ---------------------------------------------------------------- VAE


def _vae(shapes: Shapes) -> list[Entry]:
    """Entries of the VAE."""
    # The original's attention uses 1×1 convolutions, (out, in, 1, 1); ours uses dense layers, (out, in).
    keys = [torch_key(path) for path in shapes]
    levels = 1 + max(int(m[1]) for key in keys if (m := re.match(r"decoder\.up_blocks\.(\d+)\.", key)))
    entries = []
    for path, leaf in shapes.items():
        shape = torch_shape(path, leaf.shape)
        convolution = re.search(r"mid_block/attentions_0/to_\w+/kernel$", path)
        key = _vae_key(torch_key(path), levels)
        entries.append(entry(key, shapes, path, shape=(*shape, 1, 1) if convolution else None))
    return entries


_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _vae_key(key: str, levels: int) -> str:
    """Original name of a VAE tensor, given diffusers' name and the number of levels."""
    key = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    if match := re.fullmatch(r"(\w+)\.mid_block\.resnets\.(\d)\.(.+)", key):
        return f"{match[1]}.mid.block_{int(match[2]) + 1}.{match[3]}"
    if match := re.fullmatch(r"(\w+)\.mid_block\.attentions\.0\.(.+)\.(\w+)", key):
        return f"{match[1]}.mid.attn_1.{_VAE_ATTENTION[match[2]]}.{match[3]}"
    if match := re.fullmatch(r"(\w+)\.(down|up)_blocks\.(\d+)\.(\w+?)s\.(\d+)\.(.+)", key):
        part, way, level, kind, j, rest = match.groups()
        # The original counts the decoder's levels from the pixels, diffusers from the latents.
        level = level if way == "down" else levels - 1 - int(level)
        inner = f"block.{j}" if kind == "resnet" else f"{way}sample"
        return f"{part}.{way}.{level}.{inner}.{rest}"
    return key


# ---------------------------------------------------------------- OpenCLIP's text encoder

_OPEN_CLIP_ENDS = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def _open_clip(shapes: Shapes) -> list[Entry]:
    """Entries of OpenCLIP's text encoder."""
    entries = []
    for path, leaf in shapes.items():
        key = torch_key(path)
        if key == "text_projection.weight":
            # A plain matrix (in, out) in OpenCLIP instead of a layer with a weight (out, in).
            shape = tuple(leaf.shape)
            entries.append(Entry("text_projection", shape, (path,), (shape,), flax=True))
        elif key in _OPEN_CLIP_ENDS:
            entries.append(entry(_OPEN_CLIP_ENDS[key], shapes, path))
        else:
            entries += _open_clip_layer(shapes, path, key)
    return entries


def _open_clip_layer(shapes: Shapes, path: str, key: str) -> list[Entry]:
    """Entries of one tensor of a layer: one, or none for k and v, which are fused with q."""
    match = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(\w+)", key)
    assert match is not None
    number, name, leaf = match.groups()
    block = f"transformer.resblocks.{number}"
    if match := re.fullmatch(r"self_attn\.([qkv])_proj", name):
        if match[1] != "q":
            return []  # the entry of the queries holds all three
        paths = (path.replace("/q_proj/", f"/{letter}_proj/") for letter in "qkv")
        return [entry(f"{block}.attn.in_proj_{leaf}", shapes, *paths)]
    return [entry(f"{block}.{_OPEN_CLIP_LAYER[name]}.{leaf}", shapes, path)]


def _named(name: str, entries: Callable[[Shapes], list[Entry]], unused: str = r"(?!)") -> Layout:
    """A layout whose name in errors says that it is the original one. By default no tensor is unused."""
    return Layout(f"the original {name}", entries, unused)


ORIGINAL_UNET = _named("UNet", _unet)
ORIGINAL_VAE = _named("VAE", _vae)
ORIGINAL_TEXT = _named(
    "text encoder",
    lambda shapes: [entry(torch_key(path), shapes, path) for path in shapes],
    r"position_ids$|^text_projection",
)
OPEN_CLIP = _named("OpenCLIP", _open_clip, r"^logit_scale$|attn_mask$|position_ids$")
