"""Whole training runs of the micro model: every stage, other device counts, resumed runs, wrong configs."""

import functools
import io
import json
import re
import runpy
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

import realcustom_jax as rc
from realcustom_jax import pipeline
from realcustom_jax.common.errors import UserError
from realcustom_jax.data.encode import encode_data_set, make_encoding
from realcustom_jax.data.image_text import open_split, write
from realcustom_jax.data.prepare.__main__ import prepare
from realcustom_jax.data.prepare.recipe import Recipe
from realcustom_jax.toybox.dataset import make_example
from realcustom_jax.training import partition
from realcustom_jax.training.config import read_config
from realcustom_jax.training.start import starting_pipeline
from realcustom_jax.weights.keys import flatten

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("run_helpers.py"))))
STAGES, train, losses = common.STAGES, common.train, common.losses


@pytest.mark.parametrize("stage", STAGES)
def test_stage_changes_only_trainable_parameters(runs, data, stage):
    """The exported model (averaged weights, float32) against the initial model of the stage."""
    config, workdir, _ = runs[stage]
    before = flatten(starting_pipeline(read_config(config), open_split(data, "train")).params)
    after = flatten(pipeline.load(workdir / "model").params)
    assert before.keys() == after.keys()
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    trainable = {path for path in before if any(re.search(regex, path) for regex in config.trainable)}
    assert changed <= trainable
    kernels = {path for path in trainable if path.endswith("/kernel")}
    assert len(kernels) >= 8 and kernels <= changed  # every kernel, also of zeros
    assert all(np.isfinite(value).all() for value in after.values())


def test_only_customization_adds_realcustom(runs):
    added = {stage: (runs[stage][1] / "model" / "realcustom").is_dir() for stage in STAGES}
    assert added == {"vae": False, "clip": False, "instance": False, "base": False, "customize": True}


def test_vae_stage_measures_latent_scale(runs, data):
    """Scaled latents of the data have unit variance. 1 %: it is measured on 64 images, to five digits."""
    pipe = pipeline.load(runs["vae"][1] / "model")
    images = np.stack([open_split(data, "train")[i]["image"] for i in range(64)])
    images = images.reshape(64, 16, 4, 16, 4, 3).mean(axis=(2, 4)) / 127.5 - 1.0  # 64 → 16 pixels
    latents = pipe.models.vae.apply({"params": pipe.params["vae"]}, images, method="encode")
    assert pipe.models.vae_config.scaling_factor != 1.0
    assert float(latents.std()) == pytest.approx(1.0, rel=0.01)


def test_metrics_have_one_line_per_step_and_hash(runs):
    _, workdir, digest = runs["customize"]
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 4]
    assert {"loss", "mse", "gradient_norm", "learning_rate", "images_per_second"} <= records[0].keys()
    assert records[0]["learning_rate"] > records[3]["learning_rate"] > 0.0
    assert records[-1] == {"step": 4, "sha256": digest} and re.fullmatch("[0-9a-f]{64}", digest)


def test_run_logs_sample_images_of_its_model(runs):
    """After its last step: the image in TensorBoard is that of the exported model, up to rounding."""
    config, workdir, _ = runs["base"]
    (board,) = (workdir / "tensorboard").iterdir()
    shown = {
        event.step: v.image for event in events(board) for v in event.summary.value if v.tag == "samples"
    }
    assert list(shown) == [2]
    picture = np.asarray(Image.open(io.BytesIO(shown[2].encoded_image_string)))
    prompts = [prompt for prompt, _, _ in config.samples.requests]
    made = rc.sample(pipeline.load(workdir / "model"), prompts, seed=config.seed).images
    assert np.abs(picture.astype(int) - np.concatenate(made).astype(int)).max() <= 1


def events(path: Path):
    """Events of a TensorBoard file, whose records are length (8 bytes), checksum (4), event, checksum (4)."""
    data, start = path.read_bytes(), 0
    while start < len(data):
        (length,) = struct.unpack_from("<Q", data, start)
        yield event_pb2.Event.FromString(data[start + 12 : start + 12 + length])
        start += 12 + length + 4


@pytest.mark.parametrize(
    ("stage", "mesh", "devices"),
    [("customize", {"data": 1}, 1), ("customize", {"data": 2, "fsdp": 4}, 8), ("instance", {"data": 1}, 1)],
    ids=["one device", "fsdp", "instance"],
)
def test_losses_do_not_depend_on_device_count(runs, tmp_path, monkeypatch, stage, mesh, devices):
    """8 devices of data parallelism against one, and against 2×4 with sharded parameters.

    Also for the stage instance, whose loss depends on all examples of the batch together. Tolerance 1e-4:
    float32 sums in another order, amplified over 4 steps of the optimizer.
    """
    config, workdir, _ = runs[stage]
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
    assert list(theirs) == list(ours) == list(range(1, config.steps + 1))
    assert len(set(ours.values())) == config.steps
    np.testing.assert_allclose(list(theirs.values()), list(ours.values()), rtol=1e-4)


def test_resumed_run_is_bit_identical(runs, tmp_path, capsys):
    """From the checkpoint of step 2, written while step 3 was running, against the uninterrupted run."""
    config, workdir, digest = runs["customize"]
    shutil.copytree(workdir / "checkpoints" / "2", tmp_path / "checkpoints" / "2")
    assert train(config, tmp_path) == digest
    out = capsys.readouterr().out
    assert "resuming from step 2" in out and "differs" not in out
    resumed = losses(tmp_path)
    assert resumed == {step: loss for step, loss in losses(workdir).items() if step > 2}
    ours, theirs = (flatten(pipeline.load(folder / "model").params) for folder in (workdir, tmp_path))
    for path, value in ours.items():  # the checkpoint also has the averaged weights
        np.testing.assert_array_equal(theirs[path], value)


def test_finished_run_is_not_trained_again(runs, tmp_path):
    config, workdir, digest = runs["customize"]
    copy = shutil.copytree(workdir, tmp_path / "copy")
    assert train(config, copy) == digest
    ours, theirs = ((folder / "metrics.jsonl").read_text() for folder in (workdir, copy))
    assert theirs == ours  # the hash is written once


def test_resume_after_damaged_checkpoint_reports_config_changes(runs, tmp_path, capsys):
    """The checkpoint of step 4 is incomplete: the run resumes from step 2, with another curriculum."""
    config, workdir, digest = runs["customize"]
    copy = Path(shutil.copytree(workdir, tmp_path / "copy"))
    shutil.rmtree(copy / "checkpoints" / "4" / "data")
    config = config.copy_and_resolve_references()
    config.curriculum.finish = 8
    assert train(config, copy) != digest
    out = capsys.readouterr().out
    assert "set aside as 4.corrupt" in out and "resuming from step 2" in out
    assert "config differs from the checkpoint's: curriculum.finish (was 4, is now 8)" in out
    records = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 4]  # no step twice
    assert {folder.name for folder in (copy / "checkpoints").iterdir()} == {"2", "4", "4.corrupt"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.realcustom.scoring_dim": 12}, "config.model.realcustom.scoring_dim was 8 and is now 12"),
        ({"seed": 1}, "config.seed was 0 and is now 1"),
        ({"steps": 3}, "newest checkpoint is of step 4, beyond the last step, 3"),
        ({"data.path": "more"}, "cannot resume: it was saved with examples=64 and is now examples=72"),
    ],
)
def test_workdir_of_other_run_raises(runs, tmp_path, monkeypatch, change, message):
    config, workdir, _ = runs["customize"]
    copy = Path(shutil.copytree(workdir, tmp_path / "copy"))
    write(tmp_path / "more", {"train": (make_example(seed, held_out=False) for seed in range(72))})
    monkeypatch.chdir(tmp_path)
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=message):
        train(config, copy)
    ours, theirs = ((folder / "metrics.jsonl").read_text() for folder in (workdir, copy))
    assert theirs == ours


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
        ({"model.unet.sample_size": 16}, "config.model.unet.sample_size is 16, but the model in .* has 8"),
    ],
)
def test_config_mistake_raises(runs, tmp_path, change, message):
    config = runs["customize"][0].copy_and_resolve_references()
    config.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path)


@pytest.mark.slow
def test_run_on_buckets_and_stored_latents_equals_pixels(runs, make_config, tmp_path):
    """Wide and tall pictures, 12 of each: in three epochs both have batches, of the two shapes' latents.

    The losses equal those of the same run from pixels and captions up to float16, 5e-4 of each number: 1e-2.
    The text encoder cannot be trained, because its stored output would not change.
    """
    images = [Image.fromarray(np.full((24, 40, 3), 10 * i, np.uint8)) for i in range(12)]
    for i, image in enumerate([*images, *(image.transpose(Image.Transpose.ROTATE_90) for image in images)]):
        (tmp_path / "source").mkdir(exist_ok=True)
        image.save(tmp_path / "source" / f"{i}.png")
        (tmp_path / "source" / f"{i}.txt").write_text("a cat on the beach")
    prepare([str(tmp_path / "source")], tmp_path / "data", Recipe())
    model = runs["clip"][1] / "model"
    encode_data_set(tmp_path / "data", make_encoding(str(model), 1, buckets=True, step=4, text=True))
    found = []
    for encoded in (True, False):
        config = make_config("base", model, steps=3)
        config.data.update({"path": str(tmp_path / "data"), "buckets": True, "bucket_step": 4})
        config.data.update({"encoded": encoded, "encoded_text": encoded})
        workdir = tmp_path / str(encoded)
        train(config, workdir)
        found.append(list(losses(workdir).values()))
    assert len(found[0]) == 3 and np.isfinite(found[0]).all()
    np.testing.assert_allclose(found[0], found[1], rtol=1e-2)
    exported = [flatten(pipeline.load(tmp_path / name / "model").params) for name in ("True", "False")]
    assert exported[0].keys() == exported[1].keys()  # also of the encoders, which no device loaded
    config.data.update({"encoded": True, "encoded_text": True})
    config.trainable = ("^unet/", "^text_encoder/")
    with pytest.raises(UserError, match="trains text_encoder, but config"):
        train(config, tmp_path / "refused")
