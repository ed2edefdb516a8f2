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
from realcustom_jax.models.remat import POLICIES
from realcustom_jax.models.vae import VAEConfig
from realcustom_jax.models.vit import ViTConfig
from realcustom_jax.training.losses import STAGES
from realcustom_jax.training.optimizer import OPTIMIZERS
from realcustom_jax.training.partition import AXES
from realcustom_jax.weights.components import WEIGHT_DTYPES

_INTEGER, _NUMBER, _TEXT, _LIST, _FLAG = (int,), (int, float), (str,), (tuple, list), (bool,)
_NAMES = {
    _INTEGER: "a whole number",
    _NUMBER: "a number",
    _TEXT: "a text",
    _LIST: "a list",
    _FLAG: "True or False",
}
_SHARE = (_NUMBER, 0, 1)
# Key → type, least and greatest value. All but those of `loss`, which are the stages', and of `model`, which
# are fields of the classes below.
_KEYS: dict[str, tuple] = {
    "stage": (_TEXT,),
    "init_from": (_TEXT,),
    "fresh": (_TEXT,),
    "trainable": (_LIST,),
    "frozen": (_LIST,),
    "sharding": (_LIST,),
    "seed": (_INTEGER, 0),
    "steps": (_INTEGER, 1),
    "batch_size": (_INTEGER, 1),
    "log_every": (_INTEGER, 1),
    "checkpoint_every": (_INTEGER, 1),
    "checkpoints_kept": (_INTEGER, 1),
    "checkpoints_kept_every": (_INTEGER, 0),
    "export_dtype": (_TEXT,),
    "compute_dtype": (_TEXT,),
    "frozen_dtype": (_TEXT,),
    "remat": (_TEXT,),
    "accumulate": (_INTEGER, 1),
    "scan": (_FLAG,),
    "optimizer.name": (_TEXT,),
    "optimizer.learning_rate": (_NUMBER, 0),
    "optimizer.warmup": (_INTEGER, 0),
    "optimizer.end_fraction": _SHARE,
    "optimizer.weight_decay": (_NUMBER, 0),
    "optimizer.b2": _SHARE,
    "optimizer.max_norm": (_NUMBER, 0),
    "optimizer.ema_decay": _SHARE,
    "optimizer.most_skipped": (_INTEGER, 1),
    "loss.subject_weight": (_NUMBER, 0),
    "data.path": (_TEXT,),
    "data.split": (_TEXT,),
    "data.toybox_examples": (_INTEGER, 1),
    "data.workers": (_INTEGER, 0),
    "data.prefetch": (_INTEGER, 0),
    "data.drop_text": _SHARE,
    "data.drop_image": _SHARE,
    "data.drop_both": _SHARE,
    "data.text_only": _SHARE,
    "data.buckets": (_FLAG,),
    "data.bucket_step": (_INTEGER, 1),
    "data.bucket_max_aspect": (_NUMBER, 1),
    "data.encoded": (_FLAG,),
    "data.encoded_text": (_FLAG,),
    "data.reference": (_TEXT,),
    "data.by_word": (_FLAG,),
    "samples.every": (_INTEGER, 0),
    "samples.requests": (_LIST,),
    "curriculum.start": _SHARE,
    "curriculum.end": _SHARE,
    "curriculum.begin": (_INTEGER,),
    "curriculum.finish": (_INTEGER,),
    "mesh.data": (_INTEGER,),
    "mesh.fsdp": (_INTEGER,),
    "mesh.tensor": (_INTEGER,),
}
# What configs of before these keys, and those that don't use them, need not have.
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
    if stage not in STAGES:
        raise UserError(f"stage {stage!r} is unknown; known: {', '.join(STAGES)}")
    _check_keys(values, stage)
    for key, rule in _KEYS.items():
        if key in values:
            _check_value(key, values[key], *rule)
    for name in STAGES[stage]:
        _check_value(f"loss.{name}", values[f"loss.{name}"], _NUMBER, 0)
    if values.get("loss.timestep_shift") == 0:
        raise UserError("config.loss.timestep_shift must be above 0: 0 would leave no noise at all")
    if stage in ("clip", "instance") and values["loss.temperature"] == 0:
        raise UserError("config.loss.temperature must be above 0")
    _check_value("loss.grey_share", values.get("loss.grey_share", 0.0), *_SHARE)
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
    wanted = {*_KEYS, *(f"loss.{name}" for name in STAGES[stage])}
    missing = wanted - given - _OPTIONAL
    if values.get("data.path") != "toybox":
        missing -= {"data.toybox_examples"}
    if not values.get("init_from"):  # a fresh model: all its parts must have a shape
        parts = {f"model.{part}" for part in _MODEL if part != "realcustom" and not part.endswith("_2")}
        missing |= {part for part in parts if not any(key.startswith(f"{part}.") for key in given)}
    known = {*_KEYS, *(f"loss.{name}" for names in STAGES.values() for name in names)}
    for part, cls in _MODEL.items():
        known |= {f"model.{part}.{field.name}" for field in dataclasses.fields(cls)}
    unknown = given - known
    parts = [f"lacks {', '.join(sorted(missing))}"] if missing else []
    parts += [f"has unknown keys: {', '.join(sorted(unknown))}"] if unknown else []
    if parts:
        raise UserError(f"the config {' and '.join(parts)}")


def _check_value(
    key: str, value: Any, kind: tuple[type, ...], least: float | None = None, most: float | None = None
) -> None:
    if not isinstance(value, kind):
        raise UserError(f"config.{key} must be {_NAMES[kind]}, not {value!r}")
    if least is not None and value < least:
        raise UserError(f"config.{key} must be {least} or more, not {value}")
    if most is not None and value > most:
        raise UserError(f"config.{key} must be {most} or less, not {value}")


def _check_regex(key: str, regex: Any) -> None:
    try:
        re.compile(regex)
    except (re.error, TypeError) as error:
        raise UserError(f"config.{key}: {regex!r} is not a regular expression: {error}") from None


def _check_requests(requests: Any) -> None:
    if not requests:
        raise UserError("config.samples.every is set, but config.samples.requests is empty")
    for request in requests:
        texts = isinstance(request, _LIST) and all(isinstance(part, str) for part in request)
        if not texts or len(request) != 3:
            raise UserError(
                f"config.samples.requests: {request!r} is not a prompt, the words of its subject and the "
                "path of its reference image"
            )


def _check_rule(rule: Any) -> None:
    if not (isinstance(rule, _LIST) and len(rule) == 2 and isinstance(rule[1], _LIST)):
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
