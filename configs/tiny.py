"""The toybox model, trained on CPU: `--config configs/tiny.py:STAGE`, STAGE one of `STAGES`.

The stages run in this order, each from the model folder that the one before wrote (`--config.init_from`).
Without a stage it is `customize`, from the base that ships with the package. docs/training.md tells how the
shipped model came to be, and how long that took.
"""

import ml_collections

from realcustom_jax.common.errors import UserError
from realcustom_jax.weights.added import ADDED

STAGES = ("vae", "clip", "instance", "base", "customize")


def get_config(stage: str = "customize") -> ml_collections.ConfigDict:
    if stage not in STAGES:
        raise UserError(f"configs/tiny.py knows the stages {', '.join(STAGES)}, not {stage!r}")
    config = ml_collections.ConfigDict()

    config.stage = stage  # what is trained: vae, clip, instance, base or customize
    config.init_from = {"vae": "", "customize": "toybox"}.get(stage, "")  # model folder; "" starts afresh
    config.seed = 0  # of fresh parameters, data order, noise
    config.steps = {"vae": 3000, "clip": 500, "instance": 600, "base": 1300, "customize": 4600}[stage]
    # Over all devices.
    config.batch_size = {"vae": 16, "clip": 128, "instance": 128, "base": 32, "customize": 32}[stage]
    config.log_every = 20  # steps between lines of metrics.jsonl
    config.checkpoint_every = 200  # steps between checkpoints
    config.checkpoints_kept = 2  # the newest
    config.checkpoints_kept_every = 0  # and those of every so many steps; 0: none
    config.export_dtype = "float16"  # of the weights in WORKDIR/model

    # What RealCustom adds starts afresh even where `init_from` has it: this stage trains it from the base.
    config.fresh = "" if stage != "customize" else ADDED

    # Regexes over "component/module/…/kernel"; every parameter must be found by one of them.
    config.trainable = {
        "vae": ("^vae/",),
        "clip": ("^text_encoder/", "^image_encoder/"),
        "instance": ("^image_encoder_2/",),  # the last tower
        "base": ("^unet/",),
        # The base learns on: it is so small and young that what is added to it cannot do all the work alone.
        "customize": (ADDED, "^unet/"),
    }[stage]
    config.frozen = (".*",)  # all that `trainable` does not match

    config.compute_dtype = "float32"  # bfloat16 on TPU; norms, softmax and scores are float32 always
    config.frozen_dtype = "float32"  # of parameters that do not train
    config.remat = "none"  # what a step keeps of the forward pass: none (all), dots, blocks (least)
    config.accumulate = 1  # parts that a batch is worked off in, to fit memory
    config.scan = (
        False  # make a loop of a transformer's blocks: compiles faster, but aot then knows no time of a step
    )

    config.optimizer = {
        "name": "muon",  # orthogonalises the steps of kernels; or adamw
        "learning_rate": {"vae": 2e-3, "instance": 1.5e-3}.get(stage, 1e-3),
        "warmup": {"base": 200, "customize": 100}.get(stage, 50),  # steps
        "end_fraction": 0.02,  # of the learning rate, at the last step
        "weight_decay": 0.01,
        "b2": 0.99,
        "max_norm": 1.0,  # of the gradient
        "ema_decay": 0.998 if stage in ("base", "customize") else 0.99,
        "most_skipped": 10,  # updates in a row whose loss or gradient is not finite
    }
    config.loss = {
        "kl_weight": 1e-4,  # vae
        "edge_weight": 0.5,  # vae
        "temperature": 0.1 if stage == "instance" else 0.07,  # clip, instance
        "grey_share": 0.4,  # instance: of the batches; those have no colours to tell subjects apart by
        # Base, customize; 0 is the plain loss, which weighs noisy steps more: there words and references tell
        # most.
        "min_snr_gamma": 0.0,
        # Base, customize; above 1 noisy steps are drawn more often: half of all above s / (1 + s) of the way.
        "timestep_shift": 3.0 if stage == "customize" else 1.0,
        "gamma_num_min": 0.3,  # customize: range of the share of visual tokens that are kept
        "gamma_num_max": 1.0,
        # Customize: of the reference's subject; the rest of the image weighs 1.
        "subject_weight": 2.0 if stage == "customize" else 1.0,
    }
    config.data = {
        "path": "toybox",  # a data set written by data.prepare, or "toybox", drawn when first needed
        "split": "train",
        "toybox_examples": 100000,
        "workers": 0,  # processes that load; 0 loads in threads
        "prefetch": 4,  # batches
        "buckets": False,  # batches of like proportions, not of squares; of data that data.prepare wrote
        "bucket_step": 16,  # of the buckets' sides, in pixels
        "bucket_max_aspect": 2.0,  # long side by short side
        "encoded": False,  # take the latents that data.encode stored; the VAE's encoder does not run
        "encoded_text": False,  # and the text features of --encode-text; the text encoders do not run
        "drop_text": 0.05,  # empty caption
        "drop_image": 0.05,  # black reference
        "drop_both": 0.05,
        "text_only": 0.15,  # no reference at all: there the base learns on
        # What the reference is: "image", the training image itself, or "subject", one of the subjects that
        # the data set marks in it, cut out and put on a ground of its own.
        "reference": "subject",
        "by_word": stage == "instance",  # instance: batches of one word's subjects only
    }
    # Augmentation of the reference: linear from `start` to `end` between the steps `begin` and `finish`.
    config.curriculum = {"start": 0.0, "end": 1.0, "begin": 200, "finish": 600}

    # A picture of these in TensorBoard, from the averaged weights: reference, text only, customized.
    config.samples = {
        "every": 0,  # steps; 0: none
        # (prompt, the subject's words, its reference image: a path or "toybox:WORD:SEED")
        "requests": (
            ("a bird in the snow", "bird", "toybox:bird:29"),
            ("a boat at sunset", "boat", "toybox:boat:69"),
            ("a cup on the beach", "cup", "toybox:cup:9"),
            ("a robot in the forest", "robot", "toybox:robot:19"),
        ),
    }

    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}  # -1: all devices that the others leave
    config.sharding = ((".*", ()),)  # (regex, axis of each of the last dimensions); () keeps a copy on each

    config.model = toybox_model(realcustom=stage == "customize")
    return config


def toybox_model(realcustom: bool) -> ml_collections.ConfigDict:
    """Shapes of a fresh model, in the field names of a model folder's config.json files."""
    model = ml_collections.ConfigDict()
    model.unet = {
        "sample_size": 16,
        "in_channels": 8,
        "out_channels": 8,
        "block_out_channels": (64, 128, 160),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3,
        "up_block_types": ("CrossAttnUpBlock2D",) * 3,
        "cross_attention_dim": 128,
        "attention_head_dim": (2, 4, 5),
        "use_linear_projection": True,
        "norm_num_groups": 1,
        # At 16x16 self-attention costs more than all else; 8x8 and below suffice to place a subject.
        "self_attention": (False, True, True),
    }
    model.vae = {
        "latent_channels": 8,
        "block_out_channels": (16, 32, 64),
        "layers_per_block": 1,
        "norm_num_groups": 1,
        "scaling_factor": 1.0,  # the vae stage measures it
        "sample_size": 64,
    }
    model.text_encoder = {
        "vocab_size": 0,  # the tokenizer's
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": 128,
    }
    tower = {
        "image_size": 64,
        "patch_size": 8,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "projection_dim": 128,
    }
    model.image_encoder = {
        **tower,
        "text_paired": True,  # the clip stage trains it together with the text encoder
        "logit_scale": 1 / 0.07,  # of its loss
    }
    # Tells subjects apart where the tower that is paired with captions hardly does: RealCustom++'s DINO.
    model.image_encoder_2 = {**tower, "class_token": False, "patch_bias": True}
    model.scheduler = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    if realcustom:
        model.realcustom = {
            "token_dim": 192,
            "projector": "plain",
            # The patches as they are, and what the second tower knows of them.
            "feature_layers": ((0,), (-2,)),
            "scoring": True,
            "scoring_dim": 128,
        }
    return model
