"""Hostile configs of a run, made by rules: each is answered by one sentence that names the key.

None may end in another exception or be taken, and all before a program is compiled.
"""

import itertools
import math
import re
import runpy
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from realcustom_jax import pipeline
from realcustom_jax.common.errors import UserError
from realcustom_jax.data.image_text import write
from realcustom_jax.toybox.dataset import make_example
from realcustom_jax.training import run
from realcustom_jax.training.config import read_config
from realcustom_jax.training.losses import STAGES
from realcustom_jax.training.step import Plan

TINY = Path(__file__).resolve().parents[2] / "configs" / "tiny.py"
get_config = runpy.run_path(str(TINY))["get_config"]

NOT_FINITE = (math.nan, math.inf, -math.inf)
HUGE = 10**400
# Wrong values for each key: other types, and numbers outside of its range.
COUNTS = ("steps", "batch_size", "log_every", "checkpoint_every", "checkpoints_kept", "accumulate",
          "optimizer.most_skipped", "data.toybox_examples", "data.bucket_step")  # fmt: skip
COUNTS_OR_0 = ("seed", "checkpoints_kept_every", "optimizer.warmup", "data.workers", "data.prefetch",
               "samples.every", "curriculum.begin", "curriculum.finish")  # fmt: skip
SHARES = ("optimizer.end_fraction", "optimizer.b2", "optimizer.ema_decay", "data.drop_text",
          "data.drop_image", "data.drop_both", "data.text_only", "curriculum.start", "curriculum.end",
          "loss.grey_share", "loss.gamma_num_min", "loss.gamma_num_max")  # fmt: skip
NUMBERS = ("optimizer.learning_rate", "optimizer.weight_decay", "optimizer.max_norm", "loss.kl_weight",
           "loss.edge_weight", "loss.temperature", "loss.min_snr_gamma", "loss.timestep_shift",
           "loss.subject_weight", "data.bucket_max_aspect")  # fmt: skip
FLAGS = ("scan", "data.buckets", "data.encoded", "data.encoded_text", "data.by_word")
TEXTS = ("stage", "init_from", "fresh", "export_dtype", "compute_dtype", "frozen_dtype", "remat",
         "optimizer.name", "data.path", "data.split", "data.reference")  # fmt: skip
LISTS = ("trainable", "frozen", "sharding")
MODEL = ("unet.block_out_channels", "unet.attention_head_dim", "unet.norm_num_groups", "vae.scaling_factor",
         "vae.latent_channels", "text_encoder.num_hidden_layers", "image_encoder.patch_size",
         "realcustom.token_dim", "realcustom.scoring_dim", "scheduler.beta_end",
         "scheduler.num_train_timesteps")  # fmt: skip


def by_rules() -> list[tuple[str, object]]:
    """(key, value), every one wrong."""
    found = [*itertools.product(COUNTS, (0, -5, 0.5, True, "3", None, (1,), HUGE, *NOT_FINITE))]
    found += itertools.product(COUNTS_OR_0, (-1, 0.5, True, "x", None, HUGE, *NOT_FINITE))
    found += itertools.product(SHARES, (-0.01, 1.01, 2, -HUGE, "0.5", None, True, *NOT_FINITE))
    found += itertools.product(NUMBERS, (-1, -1e-9, 1e39, HUGE, "1", None, True, (1.0,), *NOT_FINITE))
    found += itertools.product(FLAGS, (1, 0.0, "True", None, math.nan))
    found += itertools.product(TEXTS, (1, None, True, ("a",), math.nan, "a\0b"))
    found += itertools.product(LISTS, ("a", 1, None, True, ((1,),), ("(",), (None,)))
    found += itertools.product([f"model.{key}" for key in MODEL], (-3, HUGE, *NOT_FINITE, (-1, math.nan)))
    found += [("mesh.data", value) for value in (-2, 0.5, "a", None, True, HUGE, math.nan)]
    found += [("optimizer.b2", 1.0), ("optimizer.max_norm", 0.0), ("loss.gamma_num_max", 0.0)]
    found += [("samples.requests", value) for value in (3, "a", None)]
    found += [("curriculum.begin", 601), ("loss.gamma_num_max", 0.2)]
    return found


def changed(key: str, value: object, stage: str = "customize") -> ConfigDict:
    """The stage's config with a value that a flag would refuse, but a file may have."""
    values = get_config(stage).to_dict()
    node = values
    *sections, last = key.split(".")
    for section in sections:
        node = node[section]
    node[last] = value
    return ConfigDict(values)


def judge(config: ConfigDict, key: str, act) -> str:
    """ "" for one short sentence that names the key, else what is wrong."""
    try:
        act(config)
    except UserError as error:
        text = str(error)
        if not re.search(rf"\b{re.escape(key)}\b", text) or "\n" in text or len(text) > 400:
            return f"a sentence that does not tell: {text[:400]}"
        return ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "taken"


def test_every_wrong_value_is_refused_by_name():
    cases = by_rules()
    assert len(cases) >= 400
    stage = {"loss.temperature": "instance", "loss.grey_share": "instance", "loss.kl_weight": "vae"}
    wrong = {
        (key, repr(value)[:30]): found
        for key, value in cases
        if (found := judge(changed(key, value, stage.get(key, "customize")), key.split(".")[-1], read_config))
    }
    assert not wrong


@pytest.mark.parametrize("stage", STAGES)
def test_shares_that_add_up_to_more_than_all(stage):
    config = get_config(stage)
    config.data.update({"drop_text": 0.4, "drop_image": 0.4, "drop_both": 0.3})
    with pytest.raises(
        UserError, match=r"data\.drop_image, config\.data\.drop_both are shares .* add up to 1\.1"
    ):
        read_config(config)
    config.data.drop_both = 0.2
    read_config(config)


def test_the_ends_of_the_ranges_are_taken():
    """What a rule must not refuse."""
    for key, value in (
        ("seed", 2**32 - 1), ("optimizer.learning_rate", 0), ("optimizer.learning_rate", 1e38),
        ("optimizer.ema_decay", 1), ("optimizer.b2", 0.0), ("data.drop_text", 0), ("loss.gamma_num_min", 1.0),
        ("curriculum.begin", 600), ("mesh.fsdp", -1), ("optimizer.end_fraction", 1), ("data.workers", 0),
        ("model.realcustom.feature_layers", ((-3,), (2,))), ("model.text_encoder.vocab_size", 0),
    ):  # fmt: skip
        read_config(changed(key, value))


# ---------------------------------------------------------------- what only data and model can tell


@pytest.fixture(scope="module")
def world(tmp_path_factory, micro_pipe) -> Path:
    """A model folder, a data set, and odd files beside them."""
    root = tmp_path_factory.mktemp("world")
    pipeline.save(micro_pipe, root / "model")
    write(root / "data", {"train": (make_example(seed, held_out=False) for seed in range(8))})
    (root / "file").write_text("{}")
    (root / "empty").mkdir()
    return root


def compiled(*_):
    raise AssertionError("it would be compiled and run")


LATER = [
    ("init_from", "models/sdxl"),
    ("init_from", "stabilityai/stable-diffusion-xl-base-1.0"),
    ("init_from", "a" * 300),
    ("init_from", "{world}/file"),
    ("init_from", "{world}/empty"),
    ("init_from", "{world}/data"),
    ("init_from", "gs://bucket/model"),
    ("data.path", "{world}/empty"),
    ("data.path", "{world}/file"),
    ("data.path", "{world}/model"),
    ("data.path", "a" * 300),
    ("data.path", "gs://bucket/data"),
    ("data.path", ""),
    ("data.split", "trian"),
    ("data.split", ""),
    ("data.split", "../train"),
    ("batch_size", 9),
    ("trainable", ("nothing",)),
    ("frozen", ("nothing",)),
    ("fresh", "nothing"),
    ("sharding", (("nothing", ()),)),
    ("mesh.data", 3),
    ("mesh.data", 0),
    ("mesh.tensor", 2**31 - 1),
    ("model.unet.block_out_channels", (8, 16)),
    ("model.unet.cross_attention_dim", 2**20),
    ("model.realcustom.feature_layers", ((-900,),)),
    ("model.realcustom.feature_layers", ()),
    ("model.realcustom.projector", "none"),
    ("model.realcustom.token_dim", 2**24),
    ("model.scheduler.beta_schedule", "none"),
    ("model.scheduler.prediction_type", "none"),
    ("data.encoded", True),
    ("data.buckets", True),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), LATER, ids=[f"{key}={str(value)[:30]}" for key, value in LATER])
def test_what_data_or_model_do_not_fit_is_one_sentence(
    world, tmp_path, monkeypatch, micro_configs, key, value
):
    """Nothing is compiled: the step of a run that comes so far is never made."""

    monkeypatch.setattr(Plan, "create", compiled)
    config = get_config("customize")
    config.update({"init_from": str(world / "model"), "batch_size": 8, "fresh": "", "steps": 1})
    config.model = {"realcustom": micro_configs["realcustom"], "unet": {}, "scheduler": {}}
    config.data.update({"path": str(world / "data"), "reference": "image"})
    config.loss.subject_weight = 1.0
    if isinstance(value, str):
        value = value.format(world=world)
    config.unlock()
    *sections, last = key.split(".")
    node = config
    for section in sections:
        node = node[section]
    node[last] = value
    with pytest.raises(UserError) as error:
        run.train(config, tmp_path / "run", tmp_path / "cache")
    assert "\n" not in str(error.value) and len(str(error.value)) < 4000  # some name 20 parameters


FRESH = [
    ("model.unet.norm_num_groups", 7),
    ("model.unet.attention_head_dim", 5),
    ("model.unet.attention_head_dim", ()),
    ("model.unet.block_out_channels", ()),
    ("model.unet.block_out_channels", 64),
    ("model.unet.block_out_channels", (2**24, 2**24, 2**24)),
    ("model.unet.block_out_channels", "abc"),
    ("model.unet.down_block_types", ("x", "y", "z")),
    ("model.vae.norm_num_groups", 5),
    ("model.vae.block_out_channels", ("a",)),
    ("model.text_encoder.num_attention_heads", 7),
    ("model.text_encoder.hidden_size", 64),
    ("model.text_encoder.hidden_size", "many"),
    ("model.text_encoder.intermediate_size", 2**24),
    ("model.image_encoder.patch_size", 200),
    ("model.image_encoder.image_size", 2**23),
    ("model.image_encoder.hidden_act", "none"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), FRESH, ids=[f"{key}={str(value)[:30]}" for key, value in FRESH])
def test_a_fresh_model_that_is_no_network_is_one_sentence(world, tmp_path, monkeypatch, key, value):
    monkeypatch.setattr(Plan, "create", compiled)
    config = changed(key, value, "vae")
    config.batch_size, config.data.path = 8, str(world / "data")
    with pytest.raises(UserError) as error:
        run.train(config, tmp_path / "run", tmp_path / "cache")
    assert "\n" not in str(error.value) and len(str(error.value)) < 4000  # some name 20 parameters
