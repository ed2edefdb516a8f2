"""What the config of a run must hold, and what of it may change when the run is resumed."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.errors import UserError
from realcustom_jax.models.clip_text import CLIPTextConfig
from realcustom_jax.models.config import RealCustomConfig, UNetConfig
from realcustom_jax.models.projector import FEATURES
from realcustom_jax.models.remat import POLICIES
from realcustom_jax.models.vae import VAEConfig
from realcustom_jax.models.vit import ViTConfig
from realcustom_jax.training.config_values import KEYS, LIST, check_values
from realcustom_jax.training.losses import STAGES
from realcustom_jax.training.optimizer import OPTIMIZERS
from realcustom_jax.training.partition import AXES
from realcustom_jax.weights.components import WEIGHT_DTYPES

# Optional keys: absent from older configs, and from those that do not use them. The same holds for those of
# `loss` that the stage does not read.
_OPTIONAL = {
    "scan",
    "optimizer.name",
    "loss.subject_weight",
    "data.buckets",
    "data.bucket_step",
    "data.bucket_max_aspect",
    "data.encoded",
    "data.encoded_text",
    "data.reference",
    "data.by_word",
    "samples.every",
    "samples.requests",
}
_MODEL = {
    "unet": UNetConfig,
    "vae": VAEConfig,
    "text_encoder": CLIPTextConfig,
    "text_encoder_2": CLIPTextConfig,
    "image_encoder": ViTConfig,
    "image_encoder_2": ViTConfig,
    "scheduler": ScheduleConfig,
    "realcustom": RealCustomConfig,
}

# Of computation and of frozen parameters.
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_CHOICES = {
    "export_dtype": WEIGHT_DTYPES,
    "compute_dtype": DTYPES,
    "frozen_dtype": DTYPES,
    "remat": POLICIES,
    "optimizer.name": OPTIMIZERS,
    "model.realcustom.projector": FEATURES,
    # Of a training example: the training image itself, or a subject that is marked in it.
    "data.reference": ("image", "subject"),
}

# A resumed run with another value of these would be neither the old run nor a new one.
_FIXED = re.compile(r"(stage|init_from|model|trainable|fresh|seed|batch_size|optimizer\.name)(\.|$)")
# What the runs of before such a key did.
_BEFORE = {"optimizer.name": "adamw"}
# These change nothing of what is learned.
_FREE = re.compile(
    r"(log_every|checkpoint_every|checkpoints_kept|checkpoints_kept_every|optimizer\.most_skipped|export_dtype|data\.workers|data\.prefetch|samples|mesh|sharding|remat|scan)(\.|$)"
)


def check_config(config: ConfigDict) -> None:
    """Look at all of a config that can be judged without its data and its model.

    Raises:
      UserError: that names the keys that are missing or unknown, or the first with an impossible value.
    """
    values = dict(_flat(config.to_dict()))
    stage = values.get("stage")
    if not isinstance(stage, str) or stage not in STAGES:
        raise UserError(f"stage {stage!r} is unknown; known: {', '.join(STAGES)}")
    _check_keys(values, stage)
    check_values(values)
    for key, choices in _CHOICES.items():
        if key in values and values[key] not in choices:
            known = ", ".join(choices)
            raise UserError(f"config.{key} {values[key]!r} is unknown; known: {known}")
    if stage in ("clip", "instance") and values["accumulate"] > 1:
        raise UserError(f"config.accumulate must be 1 for {stage}, whose loss joins all examples of a batch")
    if values.get("data.by_word") and stage != "instance":
        raise UserError(f"config.data.by_word is for the stage instance, not for {stage}")
    if values.get("data.encoded_text") and not values.get("data.encoded"):
        raise UserError("config.data.encoded_text needs config.data.encoded: text is stored with latents")
    if values.get("loss.subject_weight", 1) != 1:
        _check_subject_weight(values, stage)
    for key in ("data.buckets", "data.encoded", "data.encoded_text", "samples.every"):
        if values.get(key) and stage not in ("base", "customize"):
            raise UserError(f"config.{key} is for the stages base and customize, not for {stage}")
    for key in ("trainable", "frozen"):
        for regex in values[key]:
            _check_regex(key, regex)
    _check_regex("fresh", values["fresh"])
    if values.get("samples.every"):
        _check_requests(values.get("samples.requests"))
    for rule in values["sharding"]:
        _check_rule(rule)


def _check_subject_weight(values: Mapping[str, Any], stage: str) -> None:
    """Of a weight other than 1."""
    key = "config.loss.subject_weight"
    if stage != "customize":
        raise UserError(f"{key} is for the stage customize, not for {stage}")
    if values["loss.subject_weight"] == 0:
        raise UserError(f"{key} must be above 0: of an image full of its subject 0 would leave nothing")
    if values.get("data.reference", "image") != "subject":
        raise UserError(f"{key} needs config.data.reference='subject', which marks the subjects")


def _check_keys(values: Mapping[str, Any], stage: str) -> None:
    given = values.keys()
    read = {f"loss.{name}" for name in STAGES[stage]}
    unread = {key for key in KEYS if key.startswith("loss.")} - read
    missing = KEYS.keys() - given - _OPTIONAL - unread
    if values.get("data.path") != "toybox":
        missing -= {"data.toybox_examples"}
    if not values.get("init_from"):  # a fresh model: all its parts must have a shape
        parts = {f"model.{part}" for part in _MODEL if part != "realcustom" and not part.endswith("_2")}
        missing |= {part for part in parts if not any(key.startswith(f"{part}.") for key in given)}
    known = {*KEYS}
    for part, cls in _MODEL.items():
        known |= {f"model.{part}.{field.name}" for field in dataclasses.fields(cls)}
    unknown = given - known
    parts = [f"lacks {', '.join(sorted(missing))}"] if missing else []
    parts += [f"has unknown keys: {', '.join(sorted(unknown))}"] if unknown else []
    if parts:
        raise UserError(f"the config {' and '.join(parts)}")


def _check_regex(key: str, regex: Any) -> None:
    try:
        re.compile(regex)
    except (re.error, TypeError) as error:
        raise UserError(f"config.{key}: {regex!r} is not a regular expression: {error}") from None


def _check_requests(requests: Any) -> None:
    if not requests:
        raise UserError("config.samples.every is set, but config.samples.requests is empty")
    for request in requests:
        texts = isinstance(request, LIST) and all(isinstance(part, str) for part in request)
        if not texts or len(request) != 3:
            raise UserError(
                f"config.samples.requests: {request!r} is not a prompt, the words of its subject and the "
                "path of its reference image"
            )


def _check_rule(rule: Any) -> None:
    if not (isinstance(rule, LIST) and len(rule) == 2 and isinstance(rule[1], LIST)):
        raise UserError(f"config.sharding: {rule!r} is not a pair of a regular expression and a list of axes")
    regex, axes = rule
    _check_regex("sharding", regex)
    named = [axis for axis in axes if axis is not None]
    for axis in named:
        if axis not in AXES:
            raise UserError(
                f"config.sharding: {axis!r} is not an axis of the mesh; those are {', '.join(AXES)}"
            )
    if len(set(named)) < len(named):
        raise UserError(f"config.sharding: the rule {regex!r} names an axis twice")


def check_resume(config: ConfigDict, saved: Mapping[str, Any], step: int) -> str:
    """Compare a run's config with the one that its checkpoint was written with.

    Args:
      config: of the run.
      saved: the checkpoint's, as it was read from JSON.
      step: the checkpoint's.

    Returns:
      what differs and may matter, in one line; "" for nothing.

    Raises:
      UserError: when the checkpoint is beyond the last step, or a key differs without which it is not the
        same run: that key, its old and its new value.
    """
    if step > config.steps:
        raise UserError(f"the newest checkpoint is of step {step}, beyond the last step, {config.steps}")
    new, old = (_BEFORE | dict(_flat(x)) for x in (json.loads(json.dumps(config.to_dict())), saved))
    notes = []
    for key in sorted(old.keys() | new.keys()):
        was, now = (json.dumps(x[key]) if key in x else "nothing" for x in (old, new))
        if was == now or _FREE.match(key):
            continue
        if _FIXED.match(key):
            raise UserError(
                f"the run cannot be resumed: config.{key} was {was} and is now {now}; "
                "use the old value, or another workdir"
            )
        rates = ", which the learning rate's schedule follows" if key == "steps" else ""
        notes.append(f"{key} (was {was}, is now {now}{rates})")
    return ", ".join(notes)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """{"a": {"b": 1}} → ("a.b", 1)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
