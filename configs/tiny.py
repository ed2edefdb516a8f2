"""The toybox model, trained on CPU: `--config configs/tiny.py:STAGE`, STAGE one of `STAGES`.

The stages run in this order, each from the model folder that the one before wrote (`--config.init_from`).
Without a stage it is `customize`, from the base that ships with the package. docs/toybox.md tells how the
shipped model came to be, and how long that took.
"""

import ml_collections

from realcustom_jax.common.errors import UserError
from realcustom_jax.training.config import default_config
from realcustom_jax.weights.added import ADDED

STAGES = ("vae", "clip", "instance", "base", "customize")


def get_config(stage: str = "customize") -> ml_collections.ConfigDict:
    if stage not in STAGES:
        raise UserError(f"configs/tiny.py knows the stages {', '.join(STAGES)}, not {stage!r}")
    config = default_config()

    config.stage = stage  # what is trained: vae, clip, instance, base or customize
    config.init_from = "toybox" if stage == "customize" else ""  # model folder; "" starts afresh
    config.steps = {"vae": 3000, "clip": 500, "instance": 600, "base": 1300, "customize": 4600}[stage]
    config.batch_size = {"vae": 16, "clip": 128, "instance": 128, "base": 32, "customize": 32}[stage]
    config.log_every = 20
    config.checkpoint_every = 200
    config.checkpoints_kept = 2

    # What RealCustom adds starts afresh even where `init_from` has it: this stage trains it from the base.
    config.fresh = ADDED if stage == "customize" else ""

    # Regexes over "component/module/…/kernel".
    config.trainable = {
        "vae": ("^vae/",),
        "clip": ("^text_encoder/", "^image_encoder/"),
        "instance": ("^image_encoder_2/",),  # the last tower
        "base": ("^unet/",),
        # The base learns on: it is so small and young that what is added to it cannot do all the work alone.
        "customize": (ADDED, "^unet/"),
    }[stage]

    # For CPUs, whose bfloat16 is slow; there is memory enough to keep the whole forward pass.
    config.compute_dtype = config.frozen_dtype = "float32"
    config.remat = "none"

    config.optimizer.update(
        name="muon",
        learning_rate={"vae": 2e-3, "instance": 1.5e-3}.get(stage, 1e-3),
        warmup={"base": 200, "customize": 100}.get(stage, 50),
        end_fraction=0.02,
        b2=0.99,
        ema_decay=0.998 if stage in ("base", "customize") else 0.99,
    )
    config.loss.update(
        temperature=0.1 if stage == "instance" else 0.07,
        grey_share=0.4,  # grey batches have no colours to tell subjects apart by
        # Noisy steps are drawn more often: there words and references tell most.
        timestep_shift=3.0 if stage == "customize" else 1.0,
        # Of the reference's subject; the rest of the image weighs 1.
        subject_weight=2.0 if stage == "customize" else 1.0,
    )
    config.data.update(
        path="toybox",
        workers=0,  # threads: drawing is done, and decoding small images is quick
        bucket_step=16,
        text_only=0.15,  # no reference at all: there the base learns on
        # One of the subjects that the data set marks in the image, cut out and put on a ground of its own.
        reference="subject",
        by_word=stage == "instance",
    )
    config.curriculum.update(begin=200, finish=600)
    config.samples.requests = (
        ("a bird in the snow", "bird", "toybox:bird:29"),
        ("a boat at sunset", "boat", "toybox:boat:69"),
        ("a cup on the beach", "cup", "toybox:cup:9"),
        ("a robot in the forest", "robot", "toybox:robot:19"),
    )
    config.sharding = ((".*", ()),)  # each device keeps a copy of all parameters

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
