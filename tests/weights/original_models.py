"""Small models of SD1.5's and SDXL's form, with the heads and groups that both families have."""

import numpy as np

from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.models.family import Models
from realcustom_jax.models.init import init_params
from realcustom_jax.options import SDXL, SamplingOptions
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.weights.keys import flatten, unflatten

_TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}
_VAE = {"block_out_channels": (32, 64, 64), "layers_per_block": 2}
_SD15_UNET = {
    "sample_size": 64,
    "block_out_channels": (32, 32, 64),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2,
    "cross_attention_dim": 64,
}
_SDXL_UNET = {
    "sample_size": 128,
    "block_out_channels": (64, 64, 128),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
    "cross_attention_dim": 128,
    "attention_head_dim": (1, 1, 2),
    "transformer_layers_per_block": (1, 1, 3),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 48 + 6 * 256,
}


def make(kind: str, tokenizer) -> Pipeline:
    """A pipeline of random parameters, none of them 0; `kind` is "sd15" or "sdxl"."""
    words = {"vocab_size": len(tokenizer), "eos_token_id": len(tokenizer) - 1}
    text = _TEXT | words | {"projection_dim": 64}
    configs = {"unet": _SD15_UNET, "vae": _VAE | {"sample_size": 256}, "text_encoder": text}
    if kind == "sdxl":
        second = text | {"hidden_act": "gelu", "projection_dim": 48, "with_projection": True}
        vae = _VAE | {"sample_size": 512, "scaling_factor": 0.13025}
        configs |= {"unet": _SDXL_UNET, "vae": vae, "text_encoder_2": second}
    models = Models.from_configs(configs)
    rng = np.random.default_rng(0)
    params = {
        path: (value + 0.05 * rng.standard_normal(value.shape)).astype(np.float32)
        for path, value in flatten(init_params(models.param_shapes(), 0)).items()
    }
    tokenizers = (tokenizer,) * len(models.text_configs)
    defaults = SDXL if kind == "sdxl" else SamplingOptions()
    return Pipeline(models, ScheduleConfig(), unflatten(params), tokenizers, defaults)
