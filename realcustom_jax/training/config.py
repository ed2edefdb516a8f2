"""The config of a run: its options, their checks, and the changes that a resumed run may make.

Every option is defined once, in the dataclass of the module that uses it. The definition gives the default,
the check, the line of `python -m realcustom_jax.train --options`, and whether a resumed run may change it.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.rules import LAST_STEP, MAX_WORKERS, Rule, choice, option, rules_of, shown
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.models.clip_text import CLIPTextConfig
from realcustom_jax.models.config import RealCustomConfig, UNetConfig
from realcustom_jax.models.config_fields import RANGES
from realcustom_jax.models.projector import FEATURES
from realcustom_jax.models.remat import POLICIES
from realcustom_jax.models.vae import VAEConfig
from realcustom_jax.models.vit import ViTConfig
from realcustom_jax.training.batches import DataConfig
from realcustom_jax.training.examples import Curriculum
from realcustom_jax.training.losses import STAGES, LossConfig
from realcustom_jax.training.optimizer import OptimizerConfig
from realcustom_jax.training.partition import AXES, MeshConfig
from realcustom_jax.training.samples import SamplesConfig
from realcustom_jax.weights.added import ADDED
from realcustom_jax.weights.components import WEIGHT_DTYPES

# For computation and for frozen parameters; trainable parameters are always float32.
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_PARTS = {
    "unet": UNetConfig,
    "vae": VAEConfig,
    "text_encoder": CLIPTextConfig,
    "text_encoder_2": CLIPTextConfig,
    "image_encoder": ViTConfig,
    "image_encoder_2": ViTConfig,
    "scheduler": ScheduleConfig,
    "realcustom": RealCustomConfig,
}
# Kernels are split along their inputs by "fsdp" and along their outputs by "tensor". Embeddings, and kernels
# with only 3 or 4 input channels, are split along their outputs. Biases and norm scales are replicated.
SHARDING = (
    ("(patch_embedding|conv_in)/kernel$", (None, "fsdp")),
    ("kernel$", ("fsdp", "tensor")),
    ("embedding$", (None, "fsdp")),
    (".*", ()),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All options of a run.

    A resumed run must not change options with `resume="same"`. It may change those with "free", which do not
    affect what is learned. A change of any other option is allowed and reported.
    """

    stage: str = choice("customize", "what is trained", STAGES, resume="same")
    init_from: str = option("", "model folder to start from; empty for a new model", str, resume="same")
    fresh: str = option(
        "", "regex of parameters to initialise again although init_from has them", str, resume="same"
    )
    seed: int = option(
        0, "seed of new parameters, data order and noise", int, resume="same", low=0, high=2**32 - 1
    )
    steps: int = option(100_000, "updates of the parameters", int, low=1, high=LAST_STEP)
    batch_size: int = option(
        64, "images per step over all devices", int, resume="same", low=1, high=LAST_STEP
    )
    accumulate: int = option(
        1, "gradient-accumulation steps per batch, to fit memory", int, low=1, high=MAX_WORKERS
    )
    trainable: tuple[str, ...] = option(
        (ADDED,),
        "regexes of trainable parameters, matched to component/module/…/kernel",
        tuple,
        resume="same",
    )
    frozen: tuple[str, ...] = option(
        (".*",), "regexes of frozen parameters; every parameter must match one of the two lists", tuple
    )
    compute_dtype: str = choice(
        "bfloat16", "dtype of computation; norms, softmax and scores are always float32", DTYPES
    )
    frozen_dtype: str = choice("bfloat16", "dtype of the frozen parameters", DTYPES)
    remat: str = choice(
        "blocks", "activations kept for the backward pass: all (none), dots, or fewest (blocks)", POLICIES,
        resume="free",
    )  # fmt: skip
    scan: bool = option(
        False, "run a transformer's blocks in a loop, which compiles faster", bool, resume="free"
    )
    sharding: tuple[Any, ...] = option(
        SHARDING, "(regex, mesh axis of each of the last dimensions); the first match counts", tuple,
        resume="free",
    )  # fmt: skip
    log_every: int = option(
        50, "steps between lines of metrics.jsonl", int, resume="free", low=1, high=LAST_STEP
    )
    checkpoint_every: int = option(
        1000, "steps between checkpoints", int, resume="free", low=1, high=LAST_STEP
    )
    checkpoints_kept: int = option(
        3, "number of newest checkpoints to keep", int, resume="free", low=1, high=LAST_STEP
    )
    checkpoints_kept_every: int = option(
        0, "also keep a checkpoint every so many steps; 0 for none", int, resume="free", low=0, high=LAST_STEP
    )
    export_dtype: str = choice(
        "float16", "dtype of the weights in WORKDIR/model", WEIGHT_DTYPES, resume="free"
    )
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    curriculum: Curriculum = dataclasses.field(default_factory=Curriculum)
    samples: SamplesConfig = dataclasses.field(default_factory=SamplesConfig, metadata={"resume": "free"})
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig, metadata={"resume": "free"})
    # {component: fields of its config}: the shapes of a new model, or the shapes that `init_from` must have.
    model: Mapping[str, Mapping[str, Any]] = dataclasses.field(
        default_factory=dict, metadata={"resume": "same"}
    )

    def replace(self, **changes: Any) -> "TrainConfig":
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The config as nested dicts, for JSON."""
        return dataclasses.asdict(self)


# {name of a section: its dataclass}
_SECTIONS = {
    field.name: field.default_factory
    for field in dataclasses.fields(TrainConfig)
    if dataclasses.is_dataclass(field.default_factory)
}


def default_config() -> ConfigDict:
    """All options with their defaults, for config files. `model` is empty."""
    return ConfigDict(TrainConfig().to_dict())


def option_rules() -> dict[str, tuple[Rule, Any]]:
    """{"section.option": (its rule, its default)}."""
    rules = {}
    for prefix, cls in ("", TrainConfig), *((f"{name}.", cls) for name, cls in _SECTIONS.items()):
        defaults = cls()
        rules |= {prefix + name: (rule, getattr(defaults, name)) for name, rule in rules_of(cls).items()}
    return rules


def describe_options() -> str:
    """Help text with one line for each option: name, meaning, range and default."""
    return "\n".join(
        f"--config.{name}: {rule.describe(default)}" for name, (rule, default) in option_rules().items()
    )


def read_config(values: ConfigDict | Mapping[str, Any]) -> TrainConfig:
    """Read and check a config, as far as possible without its data and its model.

    Args:
      values: from a config file, or from a checkpoint's JSON. Absent options get their defaults.

    Raises:
      UserError: names the missing or unknown keys, or the first key with a value that is not allowed.
    """
    values = values.to_dict() if isinstance(values, ConfigDict) else values
    _check_keys(values)
    sections = {name: _read(cls, values.get(name, {}), f"{name}.") for name, cls in _SECTIONS.items()}
    model = {part: dict(fields) for part, fields in values.get("model", {}).items()}
    config = dataclasses.replace(_read(TrainConfig, values, ""), **sections, model=model)
    _check_stage(config)
    _check_together(config)
    _check_model(config.model)
    return config


def _read(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
    given = {
        name: rule.check(f"config.{prefix}{name}", values[name])
        for name, rule in rules_of(cls).items()
        if name in values
    }
    return cls(**given)


def _check_keys(values: Mapping[str, Any]) -> None:
    known = {*option_rules()}
    for part, cls in _PARTS.items():
        known |= {f"model.{part}.{field.name}" for field in dataclasses.fields(cls)}
    given = dict(_flat(values))
    # An empty section has no leaves, so it is not unknown; a section where an option belongs is unknown.
    unknown = given.keys() - known
    missing: set[str] = set()
    if not values.get("init_from"):  # a new model: the config must describe all its parts
        parts = {part for part in _PARTS if part != "realcustom" and not part.endswith("_2")}
        missing = {f"model.{part}" for part in parts - values.get("model", {}).keys()}
    problems = [f"lacks {', '.join(sorted(missing))}"] if missing else []
    problems += [f"has unknown keys: {', '.join(sorted(unknown))}"] if unknown else []
    if problems:
        raise UserError(f"the config {' and '.join(problems)}")


def _check_stage(config: TrainConfig) -> None:
    """Reject data and sample options that the stage does not read: ignoring them would surprise the user."""
    stage, data, loss = config.stage, config.data, config.loss
    if stage in ("clip", "instance") and config.accumulate > 1:
        raise UserError(f"config.accumulate must be 1 for {stage}, whose loss joins all examples of a batch")
    if data.by_word and stage != "instance":
        raise UserError(f"config.data.by_word is for the stage instance, not for {stage}")
    if data.subjects > 1 and (stage != "customize" or data.reference != "subject"):
        raise UserError(
            "config.data.subjects above 1 needs the stage customize, and config.data.reference='subject', "
            "which marks the subjects"
        )
    if loss.subject_weight != 1:
        key = "config.loss.subject_weight"
        if stage != "customize":
            raise UserError(f"{key} is for the stage customize, not for {stage}")
        if loss.subject_weight == 0:
            raise UserError(
                f"{key} must be above 0: with 0, an image that shows only its subject has no loss"
            )
        if data.reference != "subject":
            raise UserError(f"{key} needs config.data.reference='subject', which marks the subjects")
    given = {
        "data.buckets": data.buckets,
        "data.encoded": data.encoded,
        "data.encoded_text": data.encoded_text,
        "samples.every": config.samples.every,
    }
    for key, value in given.items():
        if value and stage not in ("base", "customize"):
            raise UserError(f"config.{key} is for the stages base and customize, not for {stage}")


def _check_together(config: TrainConfig) -> None:
    """Check values that must fit each other, and the elements of lists."""
    data, loss, curriculum = config.data, config.loss, config.curriculum
    if data.encoded_text and not data.encoded:
        raise UserError("config.data.encoded_text needs config.data.encoded: text is stored with latents")
    if config.optimizer.b2 == 1:
        raise UserError("config.optimizer.b2 must be below 1: the second moment would never be learned")
    total = data.drop_text + data.drop_image + data.drop_both
    if total > 1:
        raise UserError(
            "config.data.drop_text, config.data.drop_image, config.data.drop_both are shares of all "
            f"examples, but add up to {total:g}"
        )
    if loss.gamma_num_min > loss.gamma_num_max:
        raise UserError(
            f"config.loss.gamma_num_min is {loss.gamma_num_min}, above config.loss.gamma_num_max, "
            f"{loss.gamma_num_max}"
        )
    if curriculum.begin > curriculum.finish:
        raise UserError(
            f"config.curriculum.begin is {curriculum.begin}, above config.curriculum.finish, "
            f"{curriculum.finish}"
        )
    for key in ("trainable", "frozen"):
        for regex in getattr(config, key):
            _check_regex(key, regex)
    _check_regex("fresh", config.fresh)
    if config.samples.every:  # configs may list requests and leave samples off
        _check_requests(config.samples.requests)
    for rule in config.sharding:
        _check_rule(rule)


def _check_regex(key: str, regex: Any) -> None:
    try:
        re.compile(regex)
    except (re.error, TypeError) as error:
        raise UserError(f"config.{key}: {regex!r} is not a regular expression: {error}") from None


def _check_requests(requests: Any) -> None:
    if not requests:
        raise UserError("config.samples.every is set, but config.samples.requests is empty")
    for request in requests:
        texts = isinstance(request, (list, tuple)) and all(isinstance(part, str) for part in request)
        if not texts or len(request) != 3:
            raise UserError(
                f"config.samples.requests: {request!r} is not a prompt, the words of its subject and the "
                "path of its reference image"
            )


def _check_rule(rule: Any) -> None:
    # Config files, command-line flags and JSON give lists or tuples.
    pair = isinstance(rule, (list, tuple)) and len(rule) == 2 and isinstance(rule[1], (list, tuple))
    if not pair:
        raise UserError(f"config.sharding: {rule!r} is not a pair of a regular expression and a list of axes")
    regex, axes = rule
    _check_regex("sharding", regex)
    named = [axis for axis in axes if axis is not None]  # None: this dimension is not split
    for axis in named:
        if axis not in AXES:
            raise UserError(
                f"config.sharding: {axis!r} is not an axis of the mesh; those are {', '.join(AXES)}"
            )
    if len(set(named)) < len(named):
        raise UserError(f"config.sharding: the rule {regex!r} names an axis twice")


def _check_model(model: Mapping[str, Mapping[str, Any]]) -> None:
    for part, fields in model.items():
        for name, value in fields.items():
            _check_model_value(f"model.{part}.{name}", value)
    projector = model.get("realcustom", {}).get("projector", "plain")
    if projector not in FEATURES:
        known = ", ".join(FEATURES)
        raise UserError(f"config.model.realcustom.projector {projector!r} is unknown; known: {known}")


def _check_model_value(key: str, value: Any) -> None:
    if isinstance(value, (list, tuple)):
        for part in value:
            _check_model_value(key, part)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):  # bool is a subclass of int
        low, high = next((low, high) for regex, low, high in RANGES if re.search(regex, key))
        Rule("", float, low, high).check(f"config.{key}", value)
    elif not isinstance(value, (str, bool, type(None))):
        raise UserError(f"config.{key} cannot be {shown(value)}")


def check_resume(config: TrainConfig, saved: Mapping[str, Any], step: int) -> str:
    """Compare a run's config with the config of its checkpoint.

    Args:
      config: config of the run.
      saved: config of the checkpoint, read from JSON. Absent options had their defaults.
      step: step of the checkpoint.

    Returns:
      the differences that may affect training, in one line; "" for none.

    Raises:
      UserError: the checkpoint is beyond the last step, or an option with `resume="same"` differs; it names
        the option, its old and its new value.
    """
    if step > config.steps:
        raise UserError(f"the newest checkpoint is of step {step}, beyond the last step, {config.steps}")
    defaults = {key: default for key, (_, default) in option_rules().items()}
    # Through JSON both ways, so that tuples and lists compare as equal.
    new, old = (
        dict(_flat(json.loads(json.dumps({**defaults, **dict(_flat(x))})))) for x in (config.to_dict(), saved)
    )
    notes = []
    for key in sorted(old.keys() | new.keys()):
        was, now = (json.dumps(x[key]) if key in x else "nothing" for x in (old, new))
        if key in old and key in new and old[key] == new[key]:  # 1 and 1.0 are the same
            continue
        change = _on_resume(key)
        if change == "free":
            continue
        if change == "same":
            raise UserError(
                f"the run cannot be resumed: config.{key} was {was} and is now {now}; "
                "use the old value, or another workdir"
            )
        rates = ", which the learning rate's schedule follows" if key == "steps" else ""
        notes.append(f"{key} (was {was}, is now {now}{rates})")
    return ", ".join(notes)


def _on_resume(key: str) -> str:
    """What a change of an option means: "same" (not allowed), "free", or "" (allowed and reported)."""
    name, _, rest = key.partition(".")
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    # A whole section can be marked; otherwise its options are.
    rule = fields[name].metadata.get("resume", "") if name in fields else ""
    if not rule and name in _SECTIONS:
        options = {field.name: field for field in dataclasses.fields(_SECTIONS[name])}
        rule = options[rest].metadata.get("resume", "") if rest in options else ""
    return rule


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten nested mappings: {"a": {"b": 1}} → ("a.b", 1)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
