"""RealCustom++ on Stable Diffusion XL: SigLIP and DINOv2 towers, the high-resolution projector.

First combine base and image towers and make a data set, then train RealCustom++'s added weights:

  python -m realcustom_jax.convert --model stabilityai/stable-diffusion-xl-base-1.0 \
    --image-encoder google/siglip-so400m-patch14-384 \
    --image-encoder facebook/dinov2-with-registers-large --dtype float16 --out models/sdxl
  python -m realcustom_jax.data.prepare --source PICTURES --data-dir data/train --min-side 1024 --resize 1024
  python -m realcustom_jax.train --config configs/sdxl.py --workdir runs/sdxl
  python -m realcustom_jax.export --workdir runs/sdxl --out runs/sdxl/adapter

PICTURES are img2dataset shards, a folder of images with captions, or parquet. On Google Cloud TPUs, model and
data are in a bucket, which the scripts in launch/ mount at ~/bucket on every worker: copy them there
(gcloud storage cp -r models data gs://BUCKET), and train with

  --config.init_from=bucket/models/sdxl --config.data.path=bucket/data/train --workdir bucket/runs/sdxl

`--config configs/sdxl.py:shallow` uses the projector that also attends to shallow layers.
`configs/sdxl.py:v5e-16` sets the batch size for such a TPU slice; v5e-8, v4-32 and v5p-128 work too. Their
chips split parameters and batch (docs/tpus.md). Both together are `configs/sdxl.py:shallow,v5e-16`.
RealCustom++ has no adaptive scoring, but it can be trained here: `--config.model.realcustom.scoring=True`.
Sampling from the result defaults to DPM-Solver++ with 25 steps, the first 12 with the guidance branch, and a
guidance weight of 3.5.

Time and memory: the TPU compiler expects 1.515 s and 14.5 GiB a chip for a step on a v5e-16, 64 images
(`python benchmarks/tpu_tables.py`). The step does not fit a machine of 24 GB: `python benchmarks/real_size.py
--family sdxl` trains a smaller UNet there. Result: runs/sdxl/model, and the adapter. Only random weights were
trained so far.
"""

import runpy
from pathlib import Path

import ml_collections

from realcustom_jax.common.errors import UserError

# Config files are loaded by their path and are not part of a package, so they cannot import each other.
COMMON = runpy.run_path(str(Path(__file__).with_name("common.py")))

# {projector: hidden states of SigLIP and of DINOv2}: outputs of SigLIP's blocks 7, 13, 19 and DINOv2's 4, 10,
# 16, counted from 0 as in the published code, and the second-to-last state of each.
LAYERS = {"deep": ((-2,), (-2,)), "shallow": ((8, 14, 20, -2), (5, 11, 17, -2))}

# {slice: (chips, images per chip)}
SLICES = {"v5e-8": (8, 2), "v5e-16": (16, 4), "v4-32": (16, 4), "v5p-128": (64, 8)}


def get_config(choices: str = "deep") -> ml_collections.ConfigDict:
    """The config for a projector and a TPU slice, separated by a comma."""
    given = choices.split(",")
    for choice in given:
        if choice not in LAYERS and choice not in SLICES:
            raise UserError(
                f"configs/sdxl.py knows the projectors {', '.join(LAYERS)} and the slices "
                f"{', '.join(SLICES)}, not {choice!r}"
            )
    projector = next((choice for choice in given if choice in LAYERS), "deep")
    chips, images = next((SLICES[choice] for choice in given if choice in SLICES), (1, 64))
    config = COMMON["get_config"]()
    config.init_from = "models/sdxl"  # a model folder with image_encoder/ and image_encoder_2/; see above
    config.batch_size = chips * images
    config.mesh = {"data": 1, "fsdp": -1, "tensor": 1}  # all devices split the parameters, not only the batch

    config.model = {**base_shapes(), **tower_shapes(), "realcustom": realcustom_shapes(projector)}
    return config


def base_shapes() -> dict:
    """Shapes of the published base.

    The ahead-of-time compiler needs these and the towers'; `init_from` must have the same ones.
    """
    return {
        "unet": {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 2,
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "transformer_layers_per_block": (1, 2, 10),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "scaling_factor": 0.13025},
        "text_encoder": COMMON["CLIP_L"],
        "text_encoder_2": {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 20,
            "hidden_act": "gelu",
            "projection_dim": 1280,
            "with_projection": True,
        },
    }


def tower_shapes() -> dict:
    """Shapes of the published image towers."""
    tower = {"pre_norm": False, "patch_bias": True, "projection_dim": None, "layer_norm_eps": 1e-6}
    return {
        "image_encoder": {  # SigLIP-so400m/14 at 384
            "image_size": 384,
            "patch_size": 14,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "hidden_act": "gelu_pytorch_tanh",
            "class_token": False,
            **tower,
        },
        "image_encoder_2": {  # DINOv2-L/14 with registers, run at the same size
            "image_size": 384,
            "patch_size": 14,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "hidden_act": "gelu",
            "registers": 4,
            "layer_scale": True,
            **tower,
        },
    }


def realcustom_shapes(projector: str) -> dict:
    """Shapes of what RealCustom++ adds, with the projector "deep" or "shallow"."""
    return {
        "token_dim": 2048,  # channels of the visual tokens
        "projector": projector,
        "projector_head_dim": 64,
        "feature_layers": LAYERS[projector],
        "scoring": False,
        "scoring_dim": 256,
    }
