"""RealCustom on Stable Diffusion 1.5, as in the paper: CLIP ViT-L/14, adaptive scoring, a plain projector.

First combine base and image tower and make a data set, then train RealCustom's added weights:

  python -m realcustom_jax.convert --model stable-diffusion-v1-5/stable-diffusion-v1-5 \
    --image-encoder openai/clip-vit-large-patch14 --dtype float16 --out models/sd15
  python -m realcustom_jax.data.prepare --source PICTURES --data-dir data/train --min-side 512 --resize 512
  python -m realcustom_jax.train --config configs/sd15.py --workdir runs/sd15
  python -m realcustom_jax.export --workdir runs/sd15 --out runs/sd15/adapter

PICTURES are img2dataset shards, a folder of images with captions, or parquet. On Google Cloud TPUs, model and
data are in a bucket, which the scripts in launch/ mount at ~/bucket on every worker: copy them there
(gcloud storage cp -r models data gs://BUCKET), and train with

  --config.init_from=bucket/models/sd15 --config.data.path=bucket/data/train --workdir bucket/runs/sd15

`--config configs/sd15.py:v5e-16` sets the batch size for such a TPU slice; v5e-1, v5e-8, v4-32 and v5p-128
work too. docs/tpus.md lists the memory that they need. Each chip holds all parameters, so chips only split
the batch. Sampling from the result defaults to DDIM with 50 steps and guidance weights of 7.5 (text) and 12.5
(image).

Time and memory: the TPU compiler expects 0.571 s and 8.0 GiB a chip for a step on a v5e-16, 256 images
(`python benchmarks/tpu_tables.py`). Three steps of one image with checkpoints took 254 s and 11.6 GiB on two
CPU cores (`python benchmarks/real_size.py --family sd15`). Result: runs/sd15/model, and the adapter. Only
random weights were trained so far.
"""

import runpy
from pathlib import Path

import ml_collections

from realcustom_jax.common.errors import UserError

# Config files are loaded by their path and are not part of a package, so they cannot import each other.
COMMON = runpy.run_path(str(Path(__file__).with_name("common.py")))

# {slice: (chips, images per chip)}. 8 images already keep a chip fully busy.
SLICES = {"v5e-1": (1, 8), "v5e-8": (8, 16), "v5e-16": (16, 16), "v4-32": (16, 16), "v5p-128": (64, 16)}


def get_config(tpu: str = "") -> ml_collections.ConfigDict:
    """The config for a TPU slice, or for one machine."""
    if tpu and tpu not in SLICES:
        raise UserError(f"configs/sd15.py knows the slices {', '.join(SLICES)}, not {tpu!r}")
    chips, images = SLICES.get(tpu, (1, 64))
    config = COMMON["get_config"]()
    config.init_from = "models/sd15"  # a model folder with image_encoder/; see above
    config.batch_size = chips * images

    config.model = model_shapes()
    return config


def model_shapes() -> dict:
    """Shapes of the published base and tower.

    The ahead-of-time compiler needs them; `init_from` must have the same ones.
    """
    return {
        "unet": {
            "sample_size": 64,
            "block_out_channels": (320, 640, 1280, 1280),
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            "layers_per_block": 2,
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
        },
        "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4},
        "text_encoder": COMMON["CLIP_L"],
        "image_encoder": {  # CLIP ViT-L/14
            "image_size": 224,
            "patch_size": 14,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        },
        "realcustom": {
            "token_dim": 768,  # channels of the visual tokens
            "projector": "plain",
            "feature_layers": ((-2,),),  # the second-to-last layer of CLIP
            "scoring": True,
            "scoring_dim": 256,
        },
    }
