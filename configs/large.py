"""The large toybox model, for one GPU: `--config configs/large.py:STAGE`, with the stages of configs/tiny.py.

Images of 128×128 on the same 16×16 latents. All weights take 59 MB in float16, the small model's 25 MB.
`python -m realcustom_jax.toybox.train --size large` runs all stages. It was not trained yet.
"""

import runpy
from pathlib import Path

import ml_collections

# Config files are loaded by their path and are not part of a package, so they cannot import each other.
TINY = runpy.run_path(str(Path(__file__).with_name("tiny.py")))
IMAGE = 128


def get_config(stage: str = "customize") -> ml_collections.ConfigDict:
    """The config of a stage."""
    config = TINY["get_config"](stage)
    config.init_from = ""
    # Cutting out references takes longer than the GPU's part: instance and customize have small batches.
    config.steps = {"vae": 10_000, "clip": 2000, "instance": 1500, "base": 6000, "customize": 20_000}[stage]
    config.batch_size = {"vae": 64, "clip": 512, "instance": 256, "base": 256, "customize": 64}[stage]
    config.log_every, config.checkpoint_every = 100, 1000
    config.compute_dtype = "bfloat16"
    config.optimizer.warmup = 500
    config.optimizer.ema_decay = 0.9995 if stage in ("base", "customize") else 0.998
    config.curriculum.update(begin=2000, finish=6000)
    config.data.workers = 12
    # python -m realcustom_jax.toybox --size 128 --data-dir data/toybox128
    config.data.path = "data/toybox128"
    if stage == "customize":
        config.data.subjects = 2
    config.model = model(realcustom=stage == "customize")
    return config


def model(realcustom: bool) -> ml_collections.ConfigDict:
    """Shapes of a new model."""
    result = TINY["toybox_model"](realcustom)
    result.unet.update(
        in_channels=16,
        out_channels=16,
        block_out_channels=(112, 192, 240),
        cross_attention_dim=192,
        attention_head_dim=(2, 4, 4),
    )
    result.vae.update(latent_channels=16, block_out_channels=(24, 48, 64, 96), sample_size=IMAGE)
    wider = {"hidden_size": 192, "intermediate_size": 576, "projection_dim": 192}
    result.text_encoder.update(num_hidden_layers=3, **wider)
    for tower in (result.image_encoder, result.image_encoder_2):
        tower.update(image_size=IMAGE, patch_size=16, num_hidden_layers=5, **wider)
    if realcustom:
        result.realcustom.update(token_dim=256)
    return result
