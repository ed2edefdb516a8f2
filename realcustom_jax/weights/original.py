"""Original one-file checkpoints of SD1.5 and SDXL: all weights in one file, without tokenizers or configs.

Configs are derived from the shapes of the tensors. Values that no shape shows are constants of the family.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from realcustom_jax.common.errors import UserError
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.models.clip_text import CLIPTextConfig
from realcustom_jax.models.config import UNetConfig, from_mapping
from realcustom_jax.models.vae import VAEConfig
from realcustom_jax.weights.bases import Base
from realcustom_jax.weights.components import open_params
from realcustom_jax.weights.keys import explain_shape_errors
from realcustom_jax.weights.layouts import Layout
from realcustom_jax.weights.original_layout import OPEN_CLIP, ORIGINAL_TEXT, ORIGINAL_UNET, ORIGINAL_VAE
from realcustom_jax.weights.tensors import Tensors

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

# {component: (prefix in the file, layout)}
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
# Tensors that only training needs: averages, tables of the noise schedule, a temperature.
_UNUSED = re.compile(
    r"(model_ema|denoiser)\.|(betas|logvar|alphas_.*|sqrt_.*|log_one_minus_.*|posterior_.*)$"
    r"|cond_stage_model\.logit_scale$"
)
# Hub repositories with the tokenizers of the two text encoders.
_TOKENIZERS = ("openai/clip-vit-large-patch14", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k")
# (component, tensor, axis) that show the number of latent channels of the UNet and of the VAE.
_LATENTS = (("unet", "input_blocks.0.0.weight", 1), ("vae", "post_quant_conv.weight", 0))
_HEAD_DIM = 64  # channels per head in SDXL's UNet and in all text encoders
_SD15_HEADS = 8  # heads in every block of SD1.5's UNet, whatever its width
_SDXL_TIME_DIM = 256  # channels of each embedded size and crop number


def is_original(tensors: Tensors) -> bool:
    """Whether a file is an original checkpoint; the UNet's prefix shows it."""
    return any(key.startswith(_UNET_VAE["unet"][0]) for key in tensors.shapes)


def default_tokenizers(tensors: Tensors) -> tuple[str, ...]:
    """Hub ids of the tokenizers for a file, one for each text encoder."""
    return _TOKENIZERS[: len(_parts(tensors)) - len(_UNET_VAE)]


def original_layouts(text_encoders: int) -> Mapping[str, tuple[str, Layout]]:
    """{component: (prefix in the file, layout)} of SD1.5 (one text encoder) or SDXL (two)."""
    return _SD15 if text_encoders == 1 else _SDXL


def original_base(tensors: Tensors, tokenizers: Sequence[Path]) -> Base:
    """The base model in an original checkpoint.

    Args:
      tensors: tensors of the file.
      tokenizers: one folder for each text encoder.

    Raises:
      UserError: the file is of another model family, or has tensors that belong to no component.
    """
    layouts = _parts(tensors)
    known = tuple(prefix for prefix, _ in layouts.values())
    # Such as ControlNets and LoRAs in the same file: without them the model would give other images.
    unknown = [key for key in tensors.shapes if not (key.startswith(known) or _UNUSED.match(key))]
    if unknown:
        raise UserError(f"{tensors.source} has tensors of unknown parts: {', '.join(sorted(unknown)[:20])}")
    parts = {name: tensors.select(prefix) for name, (prefix, _) in layouts.items()}
    with explain_shape_errors(tensors.source):
        unet, vae, texts = _configs(parts)
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

    # SDXL's second text encoder was trained with "!" (id 0) as padding, whatever its tokenizer's config says.
    padding = (None, "!")[: len(texts)]
    return Base(unet, vae, texts, ScheduleConfig(), tuple(tokenizers), padding, opened)


def _configs(
    parts: Mapping[str, Tensors],
) -> tuple[UNetConfig, VAEConfig, tuple[CLIPTextConfig, ...]]:
    """Configs of the UNet, the VAE and the one or two text encoders, from the shapes."""
    sdxl = "text_encoder_2" in parts
    texts = (_text(parts["text_encoder"]),)
    if sdxl:
        texts += (_open_clip(parts["text_encoder_2"]),)
    # The scaling factors are those of the published configs; no tensor shows them.
    vae = _vae(parts["vae"], 0.13025 if sdxl else 0.18215, unet_side(sdxl))
    return _unet(parts["unet"], sdxl), vae, texts


def _parts(tensors: Tensors) -> Mapping[str, tuple[str, Layout]]:
    """{component: (prefix, layout)} of the family that the file belongs to."""
    for parts in (_SDXL, _SD15):
        if all(any(key.startswith(prefix) for key in tensors.shapes) for prefix, _ in parts.values()):
            return parts
    prefixes = sorted({".".join(key.split(".")[:2]) for key in tensors.shapes})
    raise UserError(
        f"{tensors.source} is not an original checkpoint of SD1.5 or SDXL: it has {', '.join(prefixes[:20])}"
    )


# ---------------------------------------------------------------- configs from shapes


def unet_side(sdxl: bool) -> int:
    """Side of the latents at the resolution that the family was trained with."""
    return 128 if sdxl else 64


def _unet(tensors: Tensors, sdxl: bool) -> UNetConfig:
    """UNet config from the shapes."""
    shapes, blocks = tensors.shapes, _blocks(tensors.shapes, "input_blocks")
    # The original numbers blocks through all levels. A level ends with the block that halves the resolution;
    # the last level has no such block.
    ends = [n for n in sorted(blocks) if f"input_blocks.{n}.0.op.weight" in shapes] + [max(blocks) + 1]
    starts = [1, *(end + 1 for end in ends[:-1])]
    last = [end - 1 for end in ends]
    channels = tuple(shapes[f"input_blocks.{n}.0.out_layers.3.weight"][0] for n in last)
    depths = [_count(shapes, rf"input_blocks\.{n}\.1\.transformer_blocks\.(\d+)\.") for n in last]
    attends = [depth > 0 for depth in depths]
    middle = _count(shapes, r"middle_block\.1\.transformer_blocks\.(\d+)\.")
    # diffusers' config has a depth for levels without transformers too. The middle block uses the last one.
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
    return _checked(
        UNetConfig,
        tensors,
        sample_size=unet_side(sdxl),
        in_channels=shapes["input_blocks.0.0.weight"][1],
        out_channels=shapes["out.2.weight"][0],
        block_out_channels=channels,
        layers_per_block=ends[0] - starts[0],
        down_block_types=tuple("CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attends)),
        cross_attention_dim=shapes[query][1],
        # Despite its name, diffusers' field is the number of heads.
        attention_head_dim=tuple(c // _HEAD_DIM for c in channels) if sdxl else _SD15_HEADS,
        transformer_layers_per_block=depths[0] if len(set(depths)) == 1 else tuple(depths),
        # SD1.5 projects with 1×1 convolutions, SDXL with dense layers.
        use_linear_projection=len(shapes[projection]) == 2,
        **added,
    )


def _vae(tensors: Tensors, scaling_factor: float, latent_side: int) -> VAEConfig:
    """VAE config from the shapes."""
    shapes = tensors.shapes
    levels = _count(shapes, r"encoder\.down\.(\d+)\.")
    channels = (shapes[f"encoder.down.{i}.block.0.conv2.weight"][0] for i in range(levels))
    return _checked(
        VAEConfig,
        tensors,
        latent_channels=shapes["post_quant_conv.weight"][0],
        block_out_channels=tuple(channels),
        layers_per_block=_count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        scaling_factor=scaling_factor,
        sample_size=latent_side * 2 ** (levels - 1),
    )


def _text(tensors: Tensors) -> CLIPTextConfig:
    """Config of the CLIP text encoder, stored with transformers' names, from the shapes."""
    shapes = tensors.shapes
    embeddings, layer = "text_model.embeddings", "text_model.encoder.layers"
    vocabulary, width = shapes[f"{embeddings}.token_embedding.weight"]
    return _checked(
        CLIPTextConfig,
        tensors,
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
    """Config of SDXL's second text encoder, stored with OpenCLIP's names, from the shapes."""
    shapes = tensors.shapes
    vocabulary, width = shapes["token_embedding.weight"]
    return _checked(
        CLIPTextConfig,
        tensors,
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        num_hidden_layers=_count(shapes, r"transformer\.resblocks\.(\d+)\."),
        num_attention_heads=width // _HEAD_DIM,
        max_position_embeddings=shapes["positional_embedding"][0],
        hidden_act="gelu",  # OpenAI's CLIP has quick_gelu instead, the default
        projection_dim=shapes["text_projection"][1],
        eos_token_id=vocabulary - 1,
        with_projection=True,
    )


def _checked(cls: type[Config], tensors: Tensors, **fields: Any) -> Config:
    return from_mapping(cls, fields, tensors.source)


def _blocks(shapes: Mapping[str, Any], name: str) -> set[int]:
    """Numbers of the blocks called `name`."""
    return {int(m[1]) for key in shapes if (m := re.match(rf"{name}\.(\d+)\.", key))}


def _count(shapes: Mapping[str, Any], regex: str) -> int:
    """Count the different numbers that the regex's group matches."""
    return len({m[1] for key in shapes if (m := re.match(regex, key))})
