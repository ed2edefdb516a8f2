"""Checks of configs, and of the changes that are allowed when a run resumes."""

import json
import runpy
from pathlib import Path

import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from realcustom_jax.common.errors import UserError
from realcustom_jax.training.batches import DataConfig
from realcustom_jax.training.config import check_resume, default_config, describe_options, read_config
from realcustom_jax.training.optimizer import OptimizerConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TINY = CONFIGS / "tiny.py"
get_config = runpy.run_path(str(TINY))["get_config"]


@pytest.mark.parametrize("stage", ["vae", "clip", "instance", "base", "customize"])
def test_toybox_configs_are_valid(stage):
    for name in ("tiny", "large"):
        config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](stage)
        assert read_config(config).stage == stage


@pytest.mark.parametrize(
    ("name", "arguments", "batch"),
    [
        ("sd15", (), 64), ("sd15", ("v5e-1",), 8), ("sd15", ("v5p-128",), 1024), ("sdxl", (), 64),
        ("sdxl", ("shallow",), 64), ("sdxl", ("v5e-8",), 16), ("sdxl", ("v5p-128,shallow",), 512),
    ],
)  # fmt: skip
def test_sd15_and_sdxl_configs_are_valid(name, arguments, batch):
    config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](*arguments)
    read_config(config)
    assert config.batch_size == batch
    if name == "sdxl":
        shallow = any("shallow" in argument for argument in arguments)
        assert config.model.realcustom.projector == ("shallow" if shallow else "deep")


def test_omitted_options_have_defaults():
    """The defaults of the dataclasses; the shapes of a fresh model have none."""
    config = read_config({"stage": "customize", "init_from": "models/sd15", "optimizer": {"warmup": 7}})
    assert config.optimizer == OptimizerConfig(warmup=7) and config.data == DataConfig()
    with pytest.raises(UserError, match=r"the config lacks model\.image_encoder, model\.scheduler"):
        read_config({"stage": "base"})


def test_describe_options_lists_each_option_once():
    lines = describe_options().splitlines()
    names = [line.split(":")[0].removeprefix("--config.") for line in lines]
    defaults = flatten_dict(default_config().to_dict(), sep=".", is_leaf=lambda _, v: not isinstance(v, dict))
    assert sorted(names) == sorted(defaults.keys() - {"model"})
    assert "--config.optimizer.b2: decay of AdamW's second moment: 0 to 1 (0.999)" in lines


@pytest.mark.parametrize(
    "key",
    [
        "buckets",
        "bucket_step",
        "bucket_max_aspect",
        "encoded",
        "encoded_text",
        "reference",
        "subjects",
        "by_word",
    ],
)
def test_older_configs_without_new_keys_are_valid(key):
    config = get_config("base")
    del config.data[key]
    assert getattr(read_config(config).data, key) == getattr(DataConfig(), key)


@pytest.mark.parametrize("change", [{"stage": "base"}, {"data.reference": "image"}])
def test_several_subjects_need_marks_and_the_stage_customize(change):
    config = get_config("customize")
    config.data.subjects = 2
    assert read_config(config).data.subjects == 2
    config.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=r"config\.data\.subjects above 1 needs the stage customize"):
        read_config(config)


@pytest.mark.parametrize(("name", "value"), [("temperature", 0.0), ("grey_share", 1.5), ("grey_share", -0.1)])
def test_instance_loss_values_out_of_range_raise(name, value):
    config = get_config("instance")
    config.loss[name] = value
    with pytest.raises(UserError, match=rf"config\.loss\.{name} must be"):
        read_config(config)


def test_unknown_reference_or_unsupported_by_word_raises():
    config = get_config("customize")
    config.data.reference = "photo"
    with pytest.raises(UserError, match=r"config\.data\.reference 'photo' is unknown; known: image, subject"):
        read_config(config)
    config = get_config("customize")
    config.data.by_word = True
    with pytest.raises(
        UserError, match=r"config\.data\.by_word is for the stage instance, not for customize"
    ):
        read_config(config)


def test_subject_weight_needs_subject_reference():
    config = get_config("customize")
    config.loss.subject_weight = 4.0
    read_config(config)
    config.data.reference = "image"
    with pytest.raises(UserError, match=r"subject_weight needs config\.data\.reference='subject'"):
        read_config(config)
    config.loss.subject_weight = 0.0
    with pytest.raises(UserError, match=r"subject_weight must be above 0"):
        read_config(config)
    config.loss.subject_weight = 1.0
    read_config(config)
    del config.loss.subject_weight
    read_config(config)
    config = get_config("base")
    config.loss.subject_weight = 4.0
    with pytest.raises(UserError, match="subject_weight is for the stage customize, not for base"):
        read_config(config)


@pytest.mark.parametrize("key", ["buckets", "encoded"])
@pytest.mark.parametrize("stage", ["vae", "clip"])
def test_buckets_and_latents_outside_diffusion_stages_raise(stage, key):
    config = get_config(stage)
    config.data[key] = True
    with pytest.raises(
        UserError, match=rf"config.data.{key} is for the stages base and customize, not for {stage}"
    ):
        read_config(config)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "sdxl",
            "knows the projectors deep, shallow and the slices v5e-8, v5e-16, v4-32, v5p-128, not 'flat'",
        ),
        ("sd15", "knows the slices v5e-1, v5e-8, v5e-16, v4-32, v5p-128, not 'flat'"),
    ],
)
def test_unknown_config_argument_raises(name, message):
    with pytest.raises(UserError, match=message):
        runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]("flat")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("stage", "bogus", "stage 'bogus' is unknown; known: vae, clip, instance, base, customize"),
        ("seed", -1, "config.seed must be 0 or more, not -1"),
        ("steps", 0, "config.steps must be 1 or more, not 0"),
        ("batch_size", 0, "config.batch_size must be 1 or more, not 0"),
        ("log_every", 0, "config.log_every must be 1 or more, not 0"),
        ("checkpoint_every", -5, "config.checkpoint_every must be 1 or more, not -5"),
        ("export_dtype", "int7", "config.export_dtype 'int7' is unknown; known: float32, float16"),
        ("optimizer.name", "sgd", "config.optimizer.name 'sgd' is unknown; known: adamw, muon"),
        ("sharding", ((".*", ("fsdq",)),), "'fsdq' is not an axis of the mesh; those are data, fsdp, tensor"),
        ("sharding", (("a", ("fsdp", "fsdp")),), "the rule 'a' names an axis twice"),
        ("sharding", (".*",), "'.*' is not a pair of a regular expression and a list of axes"),
        ("sharding", (("(", ()),), "config.sharding: '(' is not a regular expression"),
        ("trainable", ("(",), "config.trainable: '(' is not a regular expression"),
        ("fresh", "(", "config.fresh: '(' is not a regular expression"),
        ("data.drop_text", 1.5, "config.data.drop_text must be from 0 to 1, not 1.5"),
        ("loss.timestep_shift", 0.0, "config.loss.timestep_shift must be above 0"),
        ("loss.gamma_num_min", -0.1, "config.loss.gamma_num_min must be from 0 to 1, not -0.1"),
        (
            "data.encoded_text",
            True,
            "config.data.encoded_text needs config.data.encoded: text is stored with",
        ),
    ],
)
def test_invalid_value_error_names_key(key, value, message):
    config = get_config("customize")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as error:
        read_config(config)
    assert message in str(error.value)


@pytest.mark.parametrize(("key", "value", "name"), [("steps", "9", "whole number"), ("data.path", 1, "text")])
def test_value_of_wrong_type_raises(key, value, name):
    """Only a config file can hold one: a flag is parsed as the type of the file's value."""
    values = get_config("customize").to_dict()
    *sections, last = key.split(".")
    node = values
    for section in sections:
        node = node[section]
    node[last] = value
    with pytest.raises(UserError, match=f"config.{key} must be a {name}, not {value!r}"):
        read_config(ConfigDict(values))


def test_missing_and_unknown_keys_are_all_listed():
    config = get_config("base")
    del config.model.vae, config.model.scheduler
    config.optimizer.b3 = config.model.unet.chanels = 1
    with pytest.raises(UserError) as error:
        read_config(config)
    assert str(error.value) == (
        "the config lacks model.scheduler, model.vae and has unknown keys: model.unet.chanels, optimizer.b3"
    )
    del config.optimizer.b3, config.model.unet.chanels
    config.init_from = "folder"
    read_config(config)


@pytest.fixture
def config() -> ConfigDict:
    """The customize config, with values that the tests expect."""
    config = get_config("customize")
    config.steps, config.batch_size, config.optimizer.learning_rate = 800, 64, 0.002
    config.loss.subject_weight = 1.0  # valid in the stage base too
    config.optimizer.name = "adamw"
    return config


@pytest.fixture
def saved(config) -> dict:
    """The same config as a checkpoint stores it."""
    return json.loads(json.dumps(config.to_dict()))


def test_same_config_resumes_without_message(config, saved):
    assert check_resume(read_config(config), saved, 5) == ""


def test_older_checkpoint_without_optimizer_name_resumes(config, saved):
    del saved["optimizer"]["name"]
    assert check_resume(read_config(config), saved, 5) == ""
    config.optimizer.name = "muon"
    with pytest.raises(UserError, match='was "adamw" and is now "muon"'):
        check_resume(read_config(config), saved, 5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("stage", "base", 'config.stage was "customize" and is now "base"'),
        ("init_from", "other", 'config.init_from was "toybox" and is now "other"'),
        ("seed", 1, "config.seed was 0 and is now 1"),
        ("batch_size", 32, "config.batch_size was 64 and is now 32"),
        ("optimizer.name", "muon", 'config.optimizer.name was "adamw" and is now "muon"'),
        ("fresh", "", 'is now ""'),
        ("trainable", ("^unet/",), 'is now ["^unet/"]'),
        ("model.unet.block_out_channels", (8,), "was [64, 128, 160] and is now [8]"),
        (
            "model.realcustom.projector_head_dim",
            8,
            "config.model.realcustom.projector_head_dim was nothing and is now 8",
        ),
    ],
)
def test_resume_with_incompatible_change_raises(config, saved, key, value, message):
    with config.unlocked():
        config.update_from_flattened_dict({key: value})
        if key.endswith("projector_head_dim"):
            config.model.realcustom.projector_head_dim = value
    with pytest.raises(UserError, match="the run cannot be resumed: config") as error:
        check_resume(read_config(config), saved, 5)
    assert message in str(error.value) and key in str(error.value)


def test_resume_reports_only_relevant_changes(config, saved):
    changes = {"optimizer.learning_rate": 0.5, "data.path": "elsewhere", "steps": 900}
    free = {"log_every": 7, "checkpoint_every": 7, "export_dtype": "float32", "data.workers": 1}
    free |= {"data.prefetch": 1, "mesh.fsdp": 2, "sharding": (("a", ()), (".*", ())), "checkpoints_kept": 9}
    config.update_from_flattened_dict(changes | free)
    assert check_resume(read_config(config), saved, 5) == (
        'data.path (was "toybox", is now "elsewhere"), optimizer.learning_rate (was 0.002, is now 0.5), '
        "steps (was 800, is now 900, which the learning rate's schedule follows)"
    )


def test_checkpoint_beyond_last_step_raises(config, saved):
    config.steps = 4
    check_resume(read_config(config), saved, 4)
    with pytest.raises(UserError, match="newest checkpoint is of step 5, beyond the last step, 4"):
        check_resume(read_config(config), saved, 5)
