"""RealCustom on Stable Diffusion 1.5, as in the paper: CLIP ViT-L/14, adaptive scoring, a plain projector.

Put base and image tower together first, then train what RealCustom adds:

  python -m realcustom_jax.convert --model stable-diffusion-v1-5/stable-diffusion-v1-5 \
    --image-encoder openai/clip-vit-large-patch14 --out models/sd15
  python -m realcustom_jax.train --config configs/sd15.py --workdir runs/sd15 --config.data.path=DATA

Sampling from the result defaults to DDIM with 50 steps and weights of 7.5 (text) and 12.5 (image).
"""

import ml_collections

from realcustom_jax.weights.added import ADDED


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    config.stage = "customize"
    config.init_from = "models/sd15"  # a model folder with image_encoder/; see above
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
        "gamma_num_min": 0.3,  # range of the share of visual tokens that are kept (eq. 10)
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
            "token_dim": 768,  # channels of the visual tokens
            "projector": "plain",
            "feature_layers": ((-2,),),  # the last layer but one of CLIP
            "scoring": True,
            "scoring_dim": 256,
        }
    }
    return config
