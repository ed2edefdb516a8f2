"""Whole training runs of the micro model on 64 scenes: every stage, other device counts, stop and resume."""

import functools
import json
import re
import runpy
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from realcustom_jax import pipeline
from realcustom_jax.data.image_text import open_split, write
from realcustom_jax.errors import UserError
from realcustom_jax.toybox.dataset import make_example
from realcustom_jax.train import train
from realcustom_jax.training import partition
from realcustom_jax.training.start import starting_pipeline
from realcustom_jax.weights.keys import flatten

TINY = Path(__file__).resolve().parents[2] / "configs" / "tiny.py"
STAGES = ("vae", "clip", "base", "customize")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data")
    write(folder, {"train": (make_example(seed, held_out=False) for seed in range(64))})
    return str(folder)


@pytest.fixture(scope="module")
def make_config(data, micro_configs):
    """configs/tiny.py of a stage with the micro model: batches of 8, two steps, all eight devices."""
    get_config = runpy.run_path(str(TINY))["get_config"]

    def make(stage: str, init_from: Path | str = "", steps: int = 2):
        config = get_config(stage)
        config.init_from, config.steps, config.batch_size = str(init_from), steps, 8
        config.log_every, config.checkpoint_every, config.export_dtype = 1, 2, "float32"
        config.optimizer.warmup = 0
        config.data.path = data
        config.curriculum.finish = steps
        # One level without self-attention: what takes time here is compiling.
        small = {"block_out_channels": (16,), "attention_head_dim": 2, "self_attention": False}
        for kind in ("down", "up"):
            small[f"{kind}_block_types"] = (f"CrossAttn{kind.title()}Block2D",)
        config.model.unet = micro_configs["unet"] | small
        for name in ("vae", "image_encoder"):
            config.model[name] = micro_configs[name]
        config.model.text_encoder = {
            name: value for name, value in micro_configs["text_encoder"].items() if name != "eos_token_id"
        }
        if stage == "customize":
            config.model.realcustom = micro_configs["realcustom"]
        return config

    return make


def losses(workdir: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


@pytest.fixture(scope="module")
def runs(make_config, tmp_path_factory) -> dict[str, tuple]:
    """{stage: (config, workdir, sha256)} of the stages, each from the one before; customize has 4 steps."""
    root, done, model = tmp_path_factory.mktemp("runs"), {}, ""
    for stage in STAGES:
        config = make_config(stage, model, steps=4 if stage == "customize" else 2)
        done[stage] = config, root / stage, train(config, root / stage)
        model = root / stage / "model"
    return done


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_changes_what_it_trains_and_nothing_else(runs, data, stage):
    """The exported model (an average of the weights, float32) against the one that the stage began with."""
    config, workdir, _ = runs[stage]
    before = flatten(starting_pipeline(config, open_split(data, "train")).params)
    after = flatten(pipeline.load(workdir / "model").params)
    assert before.keys() == after.keys()
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    trainable = {path for path in before if any(re.search(regex, path) for regex in config.trainable)}
    assert changed <= trainable
    kernels = {path for path in trainable if path.endswith("/kernel")}
    assert len(kernels) > 10 and kernels <= changed  # every kernel: zeros get gradients, the others decay too
    assert all(np.isfinite(value).all() for value in after.values())


def test_only_customization_adds_realcustom(runs):
    added = {stage: (runs[stage][1] / "model" / "realcustom").is_dir() for stage in STAGES}
    assert added == {"vae": False, "clip": False, "base": False, "customize": True}


def test_the_vae_stage_measures_the_scale_of_its_latents(runs, data):
    """Latents of the data have unit variance after it. 1 %: it is measured on 64 images, in five digits."""
    pipe = pipeline.load(runs["vae"][1] / "model")
    images = np.stack([open_split(data, "train")[i]["image"] for i in range(64)])
    images = images.reshape(64, 16, 4, 16, 4, 3).mean(axis=(2, 4)) / 127.5 - 1.0  # 64 → 16 pixels
    latents = pipe.models.vae.apply({"params": pipe.params["vae"]}, images, method="encode")
    assert pipe.models.vae_config.scaling_factor != 1.0
    assert float(latents.std()) == pytest.approx(1.0, rel=0.01)


def test_metrics_have_a_line_a_step_and_the_hash(runs):
    _, workdir, digest = runs["customize"]
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 4]
    assert {"loss", "mse", "gradient_norm", "learning_rate", "images_per_second"} <= records[0].keys()
    assert records[0]["learning_rate"] > records[3]["learning_rate"] > 0.0
    assert records[-1] == {"step": 4, "sha256": digest} and re.fullmatch("[0-9a-f]{64}", digest)


@pytest.mark.parametrize(
    ("mesh", "devices"),
    [({"data": 1}, 1), ({"data": 2, "fsdp": 4}, 8)],
    ids=["one device", "fsdp"],
)
def test_losses_do_not_depend_on_the_devices(runs, tmp_path, monkeypatch, mesh, devices):
    """8 devices of data parallelism against one, and against 2×4 with sharded parameters.

    Tolerance 1e-4: float32 sums in another order, amplified over 4 steps of Adam.
    """
    config, workdir, _ = runs["customize"]
    config = config.copy_and_resolve_references()
    config.mesh.update(mesh)
    config.sharding = (("kernel$", ("fsdp", None)), (".*", ()))
    config.export_dtype = "float16"
    made = []

    def make_mesh(**sizes):
        made.append(partition_make_mesh(**sizes))
        return made[-1]

    partition_make_mesh = functools.partial(partition.make_mesh, devices=jax.devices()[:devices])
    monkeypatch.setattr(partition, "make_mesh", make_mesh)
    train(config, tmp_path)
    assert made[0].devices.size == devices and made[0].shape["fsdp"] == mesh.get("fsdp", 1)
    ours, theirs = losses(workdir), losses(tmp_path)
    assert list(theirs) == list(ours) == [1, 2, 3, 4]
    assert len(set(ours.values())) == 4
    np.testing.assert_allclose(list(theirs.values()), list(ours.values()), rtol=1e-4)


def test_a_run_stopped_and_resumed_gives_the_same_bits(runs, tmp_path, capsys):
    """From the checkpoint of step 2, written while step 3 ran already, against the run that went on."""
    config, workdir, digest = runs["customize"]
    shutil.copytree(workdir / "checkpoints" / "2", tmp_path / "checkpoints" / "2")
    assert train(config, tmp_path) == digest
    assert "resuming from step 2" in capsys.readouterr().out
    resumed = losses(tmp_path)
    assert resumed == {step: loss for step, loss in losses(workdir).items() if step > 2}
    ours, theirs = (flatten(pipeline.load(folder / "model").params) for folder in (workdir, tmp_path))
    for path, value in ours.items():  # the average of the weights is in the checkpoint too
        np.testing.assert_array_equal(theirs[path], value)


def test_a_finished_run_is_not_trained_again(runs, tmp_path):
    config, workdir, digest = runs["customize"]
    copy = shutil.copytree(workdir, tmp_path / "copy")
    assert train(config, copy) == digest
    assert losses(copy) == losses(workdir)


def test_a_checkpoint_of_another_model_is_refused_by_name(runs, tmp_path):
    """Wider score nets and a run without a scoring: mis-shaped, and unexpected keys in the sentence."""
    config, workdir, _ = runs["customize"]
    shutil.copytree(workdir / "checkpoints", tmp_path / "checkpoints")
    wider = config.copy_and_resolve_references()
    wider.model.realcustom.scoring_dim = 12
    with pytest.raises(UserError) as error:
        train(wider, tmp_path)
    text = str(error.value)
    assert "checkpoint 4 in" in text and "mis-shaped" in text and "missing" not in text
    assert "ema/unet/scoring/text_score/linear_1/bias (model (12,), file (8,))" in text

    without = config.copy_and_resolve_references()
    without.model.realcustom.scoring = False
    with pytest.raises(UserError, match="unexpected: ema/unet/scoring/text_attention/kernel"):
        train(without, tmp_path)


def test_a_checkpoint_of_another_stream_of_data_is_refused(runs, tmp_path):
    config, workdir, _ = runs["customize"]
    shutil.copytree(workdir / "checkpoints", tmp_path / "checkpoints")
    config = config.copy_and_resolve_references()
    config.seed = 1
    with pytest.raises(UserError, match="cannot resume: it was saved with seed=0 and is now seed=1"):
        train(config, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": "bogus"}, "stage 'bogus' is unknown"),
        ({"trainable": ("^unet/scorng/",)}, "'\\^unet/scorng/' matches no parameter"),
        ({"data.path": "nowhere"}, "no image_text data set in 'nowhere'"),
        ({"init_from": "nowhere"}, "no model folder 'nowhere'"),
        ({"mesh.data": 3}, "does not fit 8 devices"),
        ({"batch_size": 72}, "64 examples, fewer than one batch of 72"),
        ({"batch_size": 12}, "batch_size 12 cannot be divided among 8 devices"),
        ({"sharding": (("scoring", ()),)}, "no sharding rule matches"),
    ],
)
def test_a_mistake_in_the_config_is_named(runs, tmp_path, change, message):
    config = runs["customize"][0].copy_and_resolve_references()
    config.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path)
