"""RealCustom on Stable Diffusion 1.5, as in the paper: CLIP ViT-L/14, adaptive scoring, a plain projector.

Put base and image tower together and make a data set first, then train what RealCustom adds:

  python -m realcustom_jax.convert --model stable-diffusion-v1-5/stable-diffusion-v1-5 \
    --image-encoder openai/clip-vit-large-patch14 --dtype float16 --out models/sd15
  python -m realcustom_jax.data.prepare --source PICTURES --data-dir data/train --min-side 512 --resize 512
  python -m realcustom_jax.train --config configs/sd15.py --workdir runs/sd15
  python -m realcustom_jax.export --workdir runs/sd15 --out runs/sd15/adapter

PICTURES are img2dataset shards, a folder of images with captions, or parquet. On TPUs of Google Cloud model
and data lie in a bucket, which the scripts in launch/ mount at ~/bucket on every worker: copy them there
(gcloud storage cp -r models data gs://BUCKET), and train with

  --config.init_from=bucket/models/sd15 --config.data.path=bucket/data/train --workdir bucket/runs/sd15

`--config configs/sd15.py:v5e-16` takes the batch that suits such a slice of TPUs, also v5e-1, v5e-8, v4-32
and v5p-128; docs/tpus.md tells what they need. Parameters fit each chip whole: chips share the batch alone.
Sampling from the result defaults to DDIM with 50 steps and weights of 7.5 (text) and 12.5 (image).
"""

import ml_collections

from realcustom_jax.common.errors import UserError
from realcustom_jax.weights.added import ADDED

# Slice → chips, images a chip: from 8 on the chips are as busy as with more.
SLICES = {"v5e-1": (1, 8), "v5e-8": (8, 16), "v5e-16": (16, 16), "v4-32": (16, 16), "v5p-128": (64, 16)}


def get_config(tpu: str = "") -> ml_collections.ConfigDict:
    if tpu and tpu not in SLICES:
        raise UserError(f"configs/sd15.py knows the slices {', '.join(SLICES)}, not {tpu!r}")
    chips, images = SLICES.get(tpu, (1, 64))
    config = ml_collections.ConfigDict()

    config.stage = "customize"
    config.init_from = "models/sd15"  # a model folder with image_encoder/; see above
    config.fresh = ""  # parameters to initialise again although `init_from` has them
    config.seed = 0  # of fresh parameters, data order, noise
    config.steps = 100_000
    config.batch_size = chips * images  # over all devices
    config.log_every = 50
    config.checkpoint_every = 1000
    config.checkpoints_kept = 3  # the newest
    config.checkpoints_kept_every = 0  # and those of every so many steps; 0: none
    config.export_dtype = "float16"  # of the weights in WORKDIR/model

    config.trainable = (ADDED,)  # visual K and V, projector, scoring
    config.frozen = (".*",)  # the base and the towers

    config.compute_dtype = "bfloat16"  # bfloat16 on TPU; norms, softmax and scores are float32 always
    config.frozen_dtype = "bfloat16"  # of parameters that do not train
    config.remat = "blocks"  # what a step keeps of the forward pass: none (all), dots, blocks (least)
    config.accumulate = 1  # parts that a batch is worked off in, to fit memory
    config.scan = (
        False  # make a loop of a transformer's blocks: compiles faster, but aot then knows no time of a step
    )

    config.optimizer = {
        "name": "adamw",  # or muon, which orthogonalises the steps of kernels
        "learning_rate": 1e-4,
        "warmup": 500,  # steps
        "end_fraction": 0.1,  # of the learning rate, at the last step
        "weight_decay": 0.01,
        "b2": 0.999,
        "max_norm": 1.0,  # of the gradient
        "ema_decay": 0.9999,
        "most_skipped": 10,  # updates in a row whose loss or gradient is not finite
    }
    config.loss = {
        "min_snr_gamma": 0.0,  # eq. 1 itself
        "timestep_shift": 1.0,  # above 1 noisy steps are drawn more often
        "gamma_num_min": 0.3,  # range of the share of visual tokens that are kept (eq. 10)
        "gamma_num_max": 1.0,
        "subject_weight": 1.0,  # of the subject in the loss; other than 1 needs reference="subject"
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
        "encoded_text": False,  # and the text features of --encode-text; the text encoders do not run
        "drop_text": 0.05,  # empty caption
        "drop_image": 0.05,  # black reference
        "drop_both": 0.05,
        "text_only": 0.0,  # no reference at all; for a base that trains too
        "reference": "image",  # the training image itself, or "subject": one that its metadata marks, cut out
    }
    # Augmentation of the reference: linear from `start` to `end` between the steps `begin` and `finish`.
    config.curriculum = {"start": 0.0, "end": 1.0, "begin": 0, "finish": 20_000}

    # A picture of these in TensorBoard, from the averaged weights: reference, text only, customized.
    config.samples = {
        "every": 0,  # steps; 0: none
        # (prompt, the subject's words, its reference image: a path)
        "requests": (),
    }

    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}  # -1: all devices that the others leave
    # (regex, axis of each of the last dimensions): kernels are divided by their inputs, and by their outputs
    # where there is a tensor axis; those with few inputs, and embeddings, by their outputs. Biases and scales
    # are copied to each.
    config.sharding = (
        ("(patch_embedding|conv_in)/kernel$", (None, "fsdp")),
        ("kernel$", ("fsdp", "tensor")),
        ("embedding$", (None, "fsdp")),
        (".*", ()),
    )

    # Shapes of the published base and tower, for the ahead-of-time compiler; another base must have the same.
    config.model = {
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
        "text_encoder": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        },
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
            "feature_layers": ((-2,),),  # the last layer but one of CLIP
            "scoring": True,
            "scoring_dim": 256,
        },
    }
    return config
