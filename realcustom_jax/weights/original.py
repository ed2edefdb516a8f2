"""Original one-file checkpoints of SD1.5 and SDXL: everything but the tokenizers in one file.

Such a file has no config. What shapes tell is read off them; the rest is what these two families share.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from realcustom_jax.common.errors import UserError
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.models.clip_text import CLIPTextConfig
from realcustom_jax.models.config import UNetConfig
from realcustom_jax.models.vae import VAEConfig
from realcustom_jax.weights.bases import Base
from realcustom_jax.weights.components import open_params
from realcustom_jax.weights.layouts import Layout
from realcustom_jax.weights.original_layout import OPEN_CLIP, ORIGINAL_TEXT, ORIGINAL_UNET, ORIGINAL_VAE
from realcustom_jax.weights.tensors import Tensors

# (prefix in the file, layout) of each component.
_UNET_VAE = {
    "unet": ("model.diffusion_model.", ORIGINAL_UNET),
    "vae": ("first_stage_model.", ORIGINAL_VAE),
}
_SD15 = {**_UNET_VAE, "text_encoder": ("cond_stage_model.transformer.", ORIGINAL_TEXT)}
_SDXL = {
    **_UNET_VAE,
    "text_encoder": ("conditioner.embedders.0.transformer.", ORIGINAL_TEXT),
    "text_encoder_2": ("conditioner.embedders.1.model.", OPEN_CLIP),
}
# Of the training that made the file: averages, the noise schedule's tables, a temperature.
_UNUSED = re.compile(
    r"(model_ema|denoiser)\.|(betas|logvar|alphas_.*|sqrt_.*|log_one_minus_.*|posterior_.*)$"
    r"|cond_stage_model\.logit_scale$"
)
# Where the files' tokenizers are.
_TOKENIZERS = ("openai/clip-vit-large-patch14", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k")
# (part, tensor, axis) of the UNet's and the VAE's latent channels.
_LATENTS = (("unet", "input_blocks.0.0.weight", 1), ("vae", "post_quant_conv.weight", 0))
_HEAD_DIM = 64  # of SDXL's UNet and of all text encoders; SD1.5's UNet has 8 heads everywhere
_SD15_HEADS = 8
_SDXL_TIME_DIM = 256


def is_original(tensors: Tensors) -> bool:
    return any(key.startswith(_UNET_VAE["unet"][0]) for key in tensors.shapes)


def default_tokenizers(tensors: Tensors) -> tuple[str, ...]:
    """Hub ids of the tokenizers that go with a file."""
    return _TOKENIZERS[: len(_parts(tensors)) - len(_UNET_VAE)]


def original_layouts(text_encoders: int) -> Mapping[str, tuple[str, Layout]]:
    """{component: (prefix of its tensors, their layout)} of SD1.5 (one text encoder) or SDXL (two)."""
    return _SD15 if text_encoders == 1 else _SDXL


def original_base(tensors: Tensors, tokenizers: Sequence[Path]) -> Base:
    """A base model from an original checkpoint.

    Args:
      tensors: of the file.
      tokenizers: a folder for each text encoder.

    Raises:
      UserError: for another family, or tensors that belong to no part.
    """
    layouts = _parts(tensors)
    known = tuple(prefix for prefix, _ in layouts.values())
    strange = [key for key in tensors.shapes if not (key.startswith(known) or _UNUSED.match(key))]
    if strange:
        raise UserError(f"{tensors.source} has tensors of no known part: {', '.join(sorted(strange)[:20])}")
    parts = {name: tensors.select(prefix) for name, (prefix, _) in layouts.items()}
    sdxl = "text_encoder_2" in parts
    texts = (_text(parts["text_encoder"]),)
    if sdxl:
        texts += (_open_clip(parts["text_encoder_2"]),)
    inputs, latents = (parts[name].shapes[key][axis] for name, key, axis in _LATENTS)
    if inputs != latents:
        raise UserError(
            f"{tensors.source}: its UNet takes {inputs} channels and its VAE gives {latents}: inpainting and "
            "editing models are not supported"
        )
    if len(tokenizers) != len(texts):
        raise UserError(f"{tensors.source} needs {len(texts)} tokenizers, not {len(tokenizers)}")

    def opened(name: str, shapes: Any) -> Any:
        return open_params(parts[name], (layouts[name][1],), shapes)

    unet, vae = _unet(parts["unet"], sdxl), _vae(parts["vae"], 0.13025 if sdxl else 0.18215, unet_side(sdxl))
    padding = (None, "!")[: len(texts)]  # SDXL's second was trained so, whatever its tokenizer's file says
    return Base(unet, vae, texts, ScheduleConfig(), tuple(tokenizers), padding, opened)


def _parts(tensors: Tensors) -> Mapping[str, tuple[str, Layout]]:
    for parts in (_SDXL, _SD15):
        if all(any(key.startswith(prefix) for key in tensors.shapes) for prefix, _ in parts.values()):
            return parts
    prefixes = sorted({".".join(key.split(".")[:2]) for key in tensors.shapes})
    raise UserError(
        f"{tensors.source} is no original checkpoint of SD1.5 or SDXL: it holds {', '.join(prefixes[:20])}"
    )


# ---------------------------------------------------------------- configs from shapes


def unet_side(sdxl: bool) -> int:
    """Side of the latents that a family was trained at."""
    return 128 if sdxl else 64


def _unet(tensors: Tensors, sdxl: bool) -> UNetConfig:
    shapes, blocks = tensors.shapes, _blocks(tensors.shapes, "input_blocks")
    # A level ends with the block that halves the resolution, the last one without.
    ends = [n for n in sorted(blocks) if f"input_blocks.{n}.0.op.weight" in shapes] + [max(blocks) + 1]
    starts = [1, *(end + 1 for end in ends[:-1])]
    last = [end - 1 for end in ends]
    channels = tuple(shapes[f"input_blocks.{n}.0.out_layers.3.weight"][0] for n in last)
    depths = [_count(shapes, rf"input_blocks\.{n}\.1\.transformer_blocks\.(\d+)\.") for n in last]
    attends = [depth > 0 for depth in depths]
    middle = _count(shapes, r"middle_block\.1\.transformer_blocks\.(\d+)\.")
    # A level without transformers has a depth all the same, the last one that of the middle.
    depths = [depth or 1 for depth in depths[:-1]] + [middle]
    query = next(key for key in shapes if key.endswith("attn2.to_k.weight"))
    projection = next(key for key in shapes if key.endswith("1.proj_in.weight"))
    added = {}
    if sdxl:
        added = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _SDXL_TIME_DIM,
            "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1],
        }
    return UNetConfig(
        sample_size=unet_side(sdxl),
        in_channels=shapes["input_blocks.0.0.weight"][1],
        out_channels=shapes["out.2.weight"][0],
        block_out_channels=channels,
        layers_per_block=ends[0] - starts[0],
        down_block_types=tuple("CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attends)),
        cross_attention_dim=shapes[query][1],
        attention_head_dim=tuple(c // _HEAD_DIM for c in channels) if sdxl else _SD15_HEADS,
        transformer_layers_per_block=depths[0] if len(set(depths)) == 1 else tuple(depths),
        use_linear_projection=len(shapes[projection]) == 2,
        **added,
    )


def _vae(tensors: Tensors, scaling_factor: float, latent_side: int) -> VAEConfig:
    shapes = tensors.shapes
    levels = _count(shapes, r"encoder\.down\.(\d+)\.")
    channels = (shapes[f"encoder.down.{i}.block.0.conv2.weight"][0] for i in range(levels))
    return VAEConfig(
        latent_channels=shapes["post_quant_conv.weight"][0],
        block_out_channels=tuple(channels),
        layers_per_block=_count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        scaling_factor=scaling_factor,
        sample_size=latent_side * 2 ** (levels - 1),
    )


def _text(tensors: Tensors) -> CLIPTextConfig:
    shapes = tensors.shapes
    embeddings, layer = "text_model.embeddings", "text_model.encoder.layers"
    vocabulary, width = shapes[f"{embeddings}.token_embedding.weight"]
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shapes[f"{layer}.0.mlp.fc1.weight"][0],
        num_hidden_layers=_count(shapes, rf"{re.escape(layer)}\.(\d+)\."),
        num_attention_heads=width // _HEAD_DIM,
        max_position_embeddings=shapes[f"{embeddings}.position_embedding.weight"][0],
        projection_dim=width,
        eos_token_id=vocabulary - 1,
    )


def _open_clip(tensors: Tensors) -> CLIPTextConfig:
    shapes = tensors.shapes
    vocabulary, width = shapes["token_embedding.weight"]
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        num_hidden_layers=_count(shapes, r"transformer\.resblocks\.(\d+)\."),
        num_attention_heads=width // _HEAD_DIM,
        max_position_embeddings=shapes["positional_embedding"][0],
        hidden_act="gelu",
        projection_dim=shapes["text_projection"][1],
        eos_token_id=vocabulary - 1,
        with_projection=True,
    )


def _blocks(shapes: Mapping[str, Any], name: str) -> set[int]:
    return {int(m[1]) for key in shapes if (m := re.match(rf"{name}\.(\d+)\.", key))}


def _count(shapes: Mapping[str, Any], regex: str) -> int:
    """How many different numbers the regex's group finds."""
    return len({m[1] for key in shapes if (m := re.match(regex, key))})
