"""RealCustom++ on Stable Diffusion XL: SigLIP and DINOv2 towers, the high-resolution projector.

Put base and image towers together first, then train what RealCustom++ adds:

  python -m realcustom_jax.convert --model stabilityai/stable-diffusion-xl-base-1.0 \
    --image-encoder google/siglip-so400m-patch14-384 \
    --image-encoder facebook/dinov2-with-registers-large --out models/sdxl
  python -m realcustom_jax.train --config configs/sdxl.py --workdir runs/sdxl --config.data.path=DATA

`--config configs/sdxl.py:shallow` takes the projector that also attends to shallow layers. Adaptive scoring,
which RealCustom++ leaves out, works here too: `--config.model.realcustom.scoring=True`. Sampling from the
result defaults to DPM-Solver++ with 25 steps, 12 of them guided, and a weight of 3.5.
"""

import ml_collections

from realcustom_jax.errors import UserError
from realcustom_jax.weights.added import ADDED

# Hidden states after SigLIP's blocks 7, 13, 19 and DINOv2's 4, 10, 16 (from 0), and the last but one of each.
LAYERS = {"deep": ((-2,), (-2,)), "shallow": ((8, 14, 20, -2), (5, 11, 17, -2))}


def get_config(projector: str = "deep") -> ml_collections.ConfigDict:
    if projector not in LAYERS:
        raise UserError(f"configs/sdxl.py knows the projectors {', '.join(LAYERS)}, not {projector!r}")
    config = ml_collections.ConfigDict()

    config.stage = "customize"
    config.init_from = "models/sdxl"  # a model folder with image_encoder/ and image_encoder_2/; see above
    config.fresh = ""  # parameters to initialise again although `init_from` has them
    config.seed = 0  # of fresh parameters, data order, noise
    config.steps = 100_000
    config.batch_size = 64  # over all devices
    config.log_every = 50
    config.checkpoint_every = 1000
    config.checkpoints_kept = 3
    config.export_dtype = "float16"  # of the weights in WORKDIR/model

    config.trainable = (ADDED,)  # visual K and V, projector, scoring
    config.frozen = (".*",)  # the base and the towers

    config.optimizer = {
        "learning_rate": 1e-4,
        "warmup": 500,  # steps
        "end_fraction": 0.1,  # of the learning rate, at the last step
        "weight_decay": 0.01,
        "b2": 0.999,
        "max_norm": 1.0,  # of the gradient
        "ema_decay": 0.9999,
    }
    config.loss = {
        "min_snr_gamma": 0.0,  # eq. 1 itself
        "gamma_num_min": 0.3,  # range of the share of visual tokens that scoring keeps (eq. 10)
        "gamma_num_max": 1.0,
    }
    config.data = {
        "path": "data/train",  # a data set written by data.prepare
        "split": "train",
        "workers": 8,  # processes that load
        "prefetch": 4,  # batches
        "buckets": False,  # batches of like proportions, not of squares; of data that data.prepare wrote
        "bucket_step": 64,  # of the buckets' sides, in pixels
        "bucket_max_aspect": 2.0,  # long side by short side
        "encoded": False,  # take the latents that data.encode stored; the VAE's encoder does not run
        "drop_text": 0.05,  # empty caption
        "drop_image": 0.05,  # black reference
        "drop_both": 0.05,
    }
    # Augmentation of the reference: linear from `start` to `end` between the steps `begin` and `finish`.
    config.curriculum = {"start": 0.0, "end": 1.0, "begin": 0, "finish": 20_000}

    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}  # -1: all devices that the others leave
    config.sharding = ((".*", ()),)  # (regex, axis of each of the last dimensions); () keeps a copy on each

    config.model = {
        "realcustom": {
            "token_dim": 2048,  # channels of the visual tokens
            "projector": projector,
            "projector_head_dim": 64,
            "feature_layers": LAYERS[projector],
            "scoring": False,
            "scoring_dim": 256,
        }
    }
    return config
