"""The toybox model, trained on CPU: `--config configs/tiny.py:STAGE`, with a stage of `STAGES`.

The stages run in this order, each from the model folder of the one before (`--config.init_from`). The default
is `customize`, from the base that ships with the package:

  python -m realcustom_jax.train --config configs/tiny.py --workdir runs/first

Time on two CPU cores, by the commands in docs/toybox.md: vae 71 minutes, clip 13, instance 23, base 46, and
4600 steps of customize 167. Result: MSE of pixels 0.0059 (vae), MSE of v 0.298 (base) and 0.248 (customize,
after 11,100 steps in three runs; a fourth one has two references). Memory: 4.1 GiB for customize with one
reference, 3.8 for base, 1.9 for vae, the peak of three steps with --config.steps=3
--config.data.toybox_examples=200.
"""

import ml_collections

from realcustom_jax.common.errors import UserError
from realcustom_jax.training.config import default_config
from realcustom_jax.weights.added import ADDED

STAGES = ("vae", "clip", "instance", "base", "customize")


def get_config(stage: str = "customize") -> ml_collections.ConfigDict:
    """The config of a stage."""
    if stage not in STAGES:
        raise UserError(f"configs/tiny.py knows the stages {', '.join(STAGES)}, not {stage!r}")
    config = default_config()

    config.stage = stage  # what is trained: vae, clip, instance, base or customize
    config.init_from = "toybox" if stage == "customize" else ""  # model folder; "" for a new model
    config.steps = {"vae": 3000, "clip": 500, "instance": 600, "base": 1300, "customize": 4600}[stage]
    config.batch_size = {"vae": 16, "clip": 128, "instance": 128, "base": 32, "customize": 32}[stage]
    config.log_every = 20
    config.checkpoint_every = 200
    config.checkpoints_kept = 2

    # RealCustom's added weights are initialised again even if `init_from` has them.
    config.fresh = ADDED if stage == "customize" else ""

    # Regexes over "component/module/…/kernel".
    config.trainable = {
        "vae": ("^vae/",),
        "clip": ("^text_encoder/", "^image_encoder/"),
        "instance": ("^image_encoder_2/",),  # the last tower
        "base": ("^unet/",),
        # The base continues to train: it is so small that the added weights alone cannot do all the work.
        "customize": (ADDED, "^unet/"),
    }[stage]

    # For CPUs: bfloat16 is slow there, and memory is large enough to keep all activations.
    config.compute_dtype = config.frozen_dtype = "float32"
    config.remat = "none"

    set_learning(config, stage)
    set_data(config, stage)
    config.sharding = ((".*", ()),)  # each device keeps a copy of all parameters

    config.model = toybox_model(realcustom=stage == "customize")
    return config


def set_learning(config: ml_collections.ConfigDict, stage: str) -> None:
    """Optimizer and loss of a stage."""
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
        grey_share=0.4,  # in grey batches, patterns and proportions must identify a subject
        # Noisy steps are drawn more often, because words and references matter most there.
        timestep_shift=3.0 if stage == "customize" else 1.0,
        # Weight of the reference's subject; the rest of the image has 1.
        subject_weight=2.0 if stage == "customize" else 1.0,
    )


def set_data(config: ml_collections.ConfigDict, stage: str) -> None:
    """Examples of a stage, their references, and the requests of its sample images."""
    config.data.update(
        path="toybox",
        workers=0,  # threads are enough, because small images decode fast
        bucket_step=16,
        text_only=0.15,  # examples without a reference, so that the base keeps its own skill
        # One of the marked subjects in the image, cut out and put on another background.
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


def toybox_model(realcustom: bool) -> ml_collections.ConfigDict:
    """Shapes of a new model, with the field names of a model folder's config.json files."""
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
        # At 16x16, self-attention would cost more than everything else; 8x8 is enough to place a subject.
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
    model.update(encoders())
    model.scheduler = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    if realcustom:
        model.realcustom = {
            "token_dim": 192,
            "projector": "plain",
            # The patch embeddings of the first tower, and the second-to-last state of the second tower.
            "feature_layers": ((0,), (-2,)),
            "scoring": True,
            "scoring_dim": 128,
        }
    return model


def encoders() -> dict:
    """Shapes of the text encoder and both image towers."""
    text = {
        "vocab_size": 0,  # set from the tokenizer
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
    paired = {
        **tower,
        "text_paired": True,  # the clip stage trains it together with the text encoder
        "logit_scale": 1 / 0.07,  # the inverse temperature of that loss
    }
    # Identifies subjects, which the tower trained with captions hardly does. Its role is that of DINOv2 in
    # RealCustom++.
    identity = {**tower, "class_token": False, "patch_bias": True}
    return {"text_encoder": text, "image_encoder": paired, "image_encoder_2": identity}
