"""Types and ranges of the values in a run's config."""

import math
import re
from collections.abc import Mapping
from typing import Any

from realcustom_jax.errors import UserError
from realcustom_jax.models.config_fields import RANGES

_INTEGER, _NUMBER, _TEXT, LIST, _FLAG = (int,), (int, float), (str,), (tuple, list), (bool,)
_NAMES = {
    _INTEGER: "a whole number",
    _NUMBER: "a number",
    _TEXT: "a text",
    LIST: "a list",
    _FLAG: "True or False",
}
_SHARE = (_NUMBER, 0, 1)
_STEP = 2**31 - 1  # steps are counted in int32
_FLOAT = 3.4e38  # the greatest number of float32
_MANY = 4096  # processes, threads, parts: more would only bring the machine down
# Key → type, least and greatest value. All but those of `model`, which are fields of the classes below.
KEYS: dict[str, tuple] = {
    "stage": (_TEXT,),
    "init_from": (_TEXT,),
    "fresh": (_TEXT,),
    "trainable": (LIST,),
    "frozen": (LIST,),
    "sharding": (LIST,),
    "seed": (_INTEGER, 0, 2**32 - 1),
    "steps": (_INTEGER, 1, _STEP),
    "batch_size": (_INTEGER, 1, _STEP),
    "log_every": (_INTEGER, 1, _STEP),
    "checkpoint_every": (_INTEGER, 1, _STEP),
    "checkpoints_kept": (_INTEGER, 1, _STEP),
    "checkpoints_kept_every": (_INTEGER, 0, _STEP),
    "export_dtype": (_TEXT,),
    "compute_dtype": (_TEXT,),
    "frozen_dtype": (_TEXT,),
    "remat": (_TEXT,),
    "accumulate": (_INTEGER, 1, _MANY),
    "scan": (_FLAG,),
    "optimizer.name": (_TEXT,),
    "optimizer.learning_rate": (_NUMBER, 0, _FLOAT),
    "optimizer.warmup": (_INTEGER, 0, _STEP),
    "optimizer.end_fraction": _SHARE,
    "optimizer.weight_decay": (_NUMBER, 0, _FLOAT),
    "optimizer.b2": _SHARE,
    "optimizer.max_norm": (_NUMBER, 0, _FLOAT),
    "optimizer.ema_decay": _SHARE,
    "optimizer.most_skipped": (_INTEGER, 1, _STEP),
    "loss.subject_weight": (_NUMBER, 0, _FLOAT),
    "loss.kl_weight": (_NUMBER, 0, _FLOAT),
    "loss.edge_weight": (_NUMBER, 0, _FLOAT),
    "loss.temperature": (_NUMBER, 0, _FLOAT),
    "loss.grey_share": _SHARE,
    "loss.min_snr_gamma": (_NUMBER, 0, _FLOAT),
    "loss.timestep_shift": (_NUMBER, 0, _FLOAT),
    "loss.gamma_num_min": _SHARE,
    "loss.gamma_num_max": _SHARE,
    "data.path": (_TEXT,),
    "data.split": (_TEXT,),
    "data.toybox_examples": (_INTEGER, 1, _STEP),
    "data.workers": (_INTEGER, 0, _MANY),
    "data.prefetch": (_INTEGER, 0, _MANY),
    "data.drop_text": _SHARE,
    "data.drop_image": _SHARE,
    "data.drop_both": _SHARE,
    "data.text_only": _SHARE,
    "data.buckets": (_FLAG,),
    "data.bucket_step": (_INTEGER, 1, 2**16),
    "data.bucket_max_aspect": (_NUMBER, 1, 1000),
    "data.encoded": (_FLAG,),
    "data.encoded_text": (_FLAG,),
    "data.reference": (_TEXT,),
    "data.by_word": (_FLAG,),
    "samples.every": (_INTEGER, 0, _STEP),
    "samples.requests": (LIST,),
    "curriculum.start": _SHARE,
    "curriculum.end": _SHARE,
    "curriculum.begin": (_INTEGER, 0, _STEP),
    "curriculum.finish": (_INTEGER, 0, _STEP),
    "mesh.data": (_INTEGER, -1, _STEP),
    "mesh.fsdp": (_INTEGER, -1, _STEP),
    "mesh.tensor": (_INTEGER, -1, _STEP),
}
# Numbers that must not be 0, and why; each is read by some stages alone.
_POSITIVE = {
    "optimizer.max_norm": "no gradient would be left",
    "loss.temperature": "similarities are divided by it",
    "loss.timestep_shift": "0 would leave no noise at all",
    "loss.gamma_num_max": "no visual token would be left",
}


def check_values(values: Mapping[str, Any]) -> None:
    """Look at every value on its own, and at those that must fit each other.

    Args:
      values: of a config, by keys such as "optimizer.learning_rate".

    Raises:
      UserError: that names the first key with an impossible value.
    """
    for key, rule in KEYS.items():
        if key in values:
            _check_value(key, values[key], *rule)
    for key, why in _POSITIVE.items():
        if values.get(key) == 0:
            raise UserError(f"config.{key} must be above 0: {why}")
    if values["optimizer.b2"] == 1:
        raise UserError("config.optimizer.b2 must be below 1: the second moment would never be learned")
    _check_together(values)
    for key in values:
        if key.startswith("model."):
            _check_model_value(key, values[key])


def _check_together(values: Mapping[str, Any]) -> None:
    """Values that must fit each other."""
    dropped = ("data.drop_text", "data.drop_image", "data.drop_both")
    total = sum(values[key] for key in dropped)
    if total > 1:
        raise UserError(
            f"config.{', config.'.join(dropped)} are shares of all examples, but add up to {total:g}"
        )
    for least, most in (
        ("loss.gamma_num_min", "loss.gamma_num_max"),
        ("curriculum.begin", "curriculum.finish"),
    ):
        if least in values and most in values and values[least] > values[most]:
            raise UserError(f"config.{least} is {values[least]}, above config.{most}, {values[most]}")


def _check_value(
    key: str, value: Any, kind: tuple[type, ...], least: float | None = None, most: float | None = None
) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not _FLAG):
        raise UserError(f"config.{key} must be {_NAMES[kind]}, not {_short(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"config.{key} must be a finite number, not {value}")
    if isinstance(value, str) and "\0" in value:
        raise UserError(f"config.{key} holds a null character")
    if least is not None and value < least:
        raise UserError(f"config.{key} must be {least} or more, not {_short(value)}")
    if most is not None and value > most:
        raise UserError(f"config.{key} must be {most} or less, not {_short(value)}")


def _check_model_value(key: str, value: Any) -> None:
    if isinstance(value, LIST):
        for part in value:
            _check_model_value(key, part)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        least, most = next((low, high) for regex, low, high in RANGES if re.search(regex, key))
        _check_value(key, value, _NUMBER, least, most)
    elif not isinstance(value, (str, bool, type(None))):
        raise UserError(f"config.{key} cannot be {_short(value)}")


def _short(value: Any) -> str:
    """As an error shows it: a number of a thousand digits would hide the sentence."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else f"{'-' * (value < 0)}10^…"
    return text if len(text) < 100 else f"{text[:100]}…"
