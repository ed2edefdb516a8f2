"""RealCustom++ on Stable Diffusion XL: SigLIP and DINOv2 towers, the high-resolution projector.

Put base and image towers together and make a data set first, then train what RealCustom++ adds:

  python -m realcustom_jax.convert --model stabilityai/stable-diffusion-xl-base-1.0 \
    --image-encoder google/siglip-so400m-patch14-384 \
    --image-encoder facebook/dinov2-with-registers-large --dtype float16 --out models/sdxl
  python -m realcustom_jax.data.prepare --source PICTURES --data-dir data/train --min-side 1024 --resize 1024
  python -m realcustom_jax.train --config configs/sdxl.py --workdir runs/sdxl
  python -m realcustom_jax.export --workdir runs/sdxl --out runs/sdxl/adapter

PICTURES are img2dataset shards, a folder of images with captions, or parquet. On TPUs of Google Cloud model
and data lie in a bucket, which the scripts in launch/ mount at ~/bucket on every worker: copy them there
(gcloud storage cp -r models data gs://BUCKET), and train with

  --config.init_from=bucket/models/sdxl --config.data.path=bucket/data/train --workdir bucket/runs/sdxl

`--config configs/sdxl.py:shallow` takes the projector that also attends to shallow layers, and
`configs/sdxl.py:v5e-16` the batch that suits such a slice of TPUs, also v5e-8, v4-32 and v5p-128, whose chips
divide parameters and batch among them (docs/tpus.md); both together are `configs/sdxl.py:shallow,v5e-16`.
Adaptive scoring, which RealCustom++ leaves out, works here too: `--config.model.realcustom.scoring=True`.
Sampling from the result defaults to DPM-Solver++ with 25 steps, 12 of them guided, and a weight of 3.5.
"""

import runpy
from pathlib import Path

import ml_collections

from realcustom_jax.common.errors import UserError

# Config files are loaded by their path and belong to no package.
COMMON = runpy.run_path(str(Path(__file__).with_name("common.py")))

# Hidden states after SigLIP's blocks 7, 13, 19 and DINOv2's 4, 10, 16 (from 0), and the last but one of each.
LAYERS = {"deep": ((-2,), (-2,)), "shallow": ((8, 14, 20, -2), (5, 11, 17, -2))}


# Slice → chips, images a chip.
SLICES = {"v5e-8": (8, 2), "v5e-16": (16, 4), "v4-32": (16, 4), "v5p-128": (64, 8)}


def get_config(choices: str = "deep") -> ml_collections.ConfigDict:
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
    config.mesh = {"data": 1, "fsdp": -1, "tensor": 1}  # all devices divide the parameters, too

    # Shapes of the published base and towers, for the ahead-of-time compiler; other bases must have the same.
    tower = {"pre_norm": False, "patch_bias": True, "projection_dim": None, "layer_norm_eps": 1e-6}
    config.model = {
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
        "realcustom": {
            "token_dim": 2048,  # channels of the visual tokens
            "projector": projector,
            "projector_head_dim": 64,
            "feature_layers": LAYERS[projector],
            "scoring": False,
            "scoring_dim": 256,
        },
    }
    return config
