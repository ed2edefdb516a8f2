"""The toybox's training chain: its commands, and a run of all stages that is stopped and continued."""

import itertools
import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax.common.errors import UserError
from realcustom_jax.models.family import Models
from realcustom_jax.toybox.train import SIZES, Task, finish, run, tasks

SMALL, LARGE = SIZES["small"], SIZES["large"]


def option(task: Task, name: str) -> str | None:
    found = [part.split("=", 1)[1] for part in task.command if part.startswith(f"--{name}=")]
    return found[0] if found else None


def test_each_stage_starts_from_the_one_before(tmp_path):
    made = tasks(tmp_path, SMALL, 1000)
    assert [task.name for task in made] == [
        "scenes", "vae", "clip", "instance", "instance2", "latents", "base", "customize", "customize2",
        "customize3", "customize4", "mean", "recogniser",
    ]  # fmt: skip
    stages = [task for task in made if task.command[0] == "realcustom_jax.train"]
    assert option(stages[0], "config.init_from") is None
    for before, stage in itertools.pairwise(stages):
        assert option(stage, "config.init_from") == str(before.result.parent)
        assert before.result == Path(option(before, "workdir")) / "model" / "model_index.json"
    encode = made[5]
    assert option(encode, "model") == str(tmp_path / "instance2" / "model")
    stored = {task.name for task in stages if option(task, "config.data.encoded") == "True"}
    assert stored == {"base", "customize", "customize2", "customize3", "customize4"}
    assert {option(task, "config.data.path") for task in stages} == {option(encode, "data-dir")}
    assert option(stages[-1], "config.data.subjects") == "2"
    assert option(stages[-1], "config.fresh") == "" and option(stages[5], "config.fresh") is None


def test_small_model_is_the_mean_of_its_last_two_stages(tmp_path):
    mean = {task.name: task for task in tasks(tmp_path, SMALL, 1000)}["mean"]
    assert option(mean, "model") == str(tmp_path / "customize3" / "model")
    assert option(mean, "average") == str(tmp_path / "customize4" / "model")
    assert mean.result.parent == Path(option(mean, "out"))
    assert "mean" not in [task.name for task in tasks(tmp_path, LARGE, 1000)]


def test_number_of_steps_and_flags_reach_each_stage(tmp_path):
    made = [
        task
        for task in tasks(tmp_path, LARGE, 10, 3, ["--config.batch_size=8"])
        if "train" in task.command[0]
    ]
    assert {option(task, "config.steps") or option(task, "steps") for task in made} == {"3"}
    assert all("--config.batch_size=8" in task.command for task in made[:-1])


def test_large_model_is_small_enough_to_ship():
    """All weights take at most 60 MB in float16, with the recogniser and vocabulary of the small model."""
    root = Path(__file__).resolve().parents[2]
    shipped = root / "realcustom_jax/toybox/model"
    config = runpy.run_path(str(root / "configs" / LARGE.config))["get_config"]("customize").model.to_dict()
    vocabulary = json.loads((shipped / "text_encoder/config.json").read_text())
    config["text_encoder"].update(vocab_size=vocabulary["vocab_size"])
    models = Models.from_configs({name: config[name] for name in config if name != "scheduler"})
    shapes = models.param_shapes()
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    unet = sum(leaf.size for leaf in jax.tree.leaves(shapes["unet"]))
    recogniser = (shipped / "matcher/model.safetensors").stat().st_size
    assert 2 * count + recogniser <= 60e6 and unet >= 20e6
    size, grid = config["vae"]["sample_size"], config["unet"]["sample_size"]
    assert (size, grid, models.vae_config.downscale) == (128, 16, 8)


def test_task_ends_fails_or_is_stopped(tmp_path):
    result = tmp_path / "done"
    assert run(Task("fine", ("timeit", "-n1", "pass"), result), None) and result.exists()
    late = Task("late", ("timeit", "-n1", "-r1", "import time; time.sleep(60)"), tmp_path / "late")
    begin = time.monotonic()
    assert not run(late, begin + 1) and time.monotonic() - begin < 30 and not late.result.exists()
    with pytest.raises(UserError, match="wrong ended with status"):
        run(Task("wrong", ("timeit", "-n1", "1 / 0"), tmp_path / "wrong"), None)


@pytest.mark.parametrize(("size", "source"), [(SMALL, "mean"), (LARGE, "customize/model")])
def test_finished_model_has_recogniser_and_sampling_options(tmp_path, size, source):
    """Both are files that training does not write, or leaves empty."""
    made = {
        "customize4/model/model_index.json": "a stage",
        f"{source}/realcustom/sampling.json": "{}",
        f"{source}/model_index.json": "the model",
        "recogniser/config.json": "recogniser",
        "recogniser/model.safetensors": "weights",
    }
    for name, text in made.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    model = finish(tmp_path, size)
    options = json.loads((model / "realcustom" / "sampling.json").read_text())
    assert rc.SamplingOptions(**options) == rc.load("toybox").defaults != rc.SamplingOptions()
    assert (model / "matcher" / "config.json").read_text() == "recogniser"
    assert (model / "model_index.json").read_text() == "the model" and finish(tmp_path, size) == model


def chain(out: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "realcustom_jax.toybox.train", f"--out={out}", *arguments]
    # one device, which compiles faster than the eight that the tests simulate
    flags = os.environ.get("XLA_FLAGS", "").replace("--xla_force_host_platform_device_count=8", "")
    environment = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_all_stages_run_stopped_and_continued(tmp_path):
    """20 steps a stage, on few scenes; stopped after a minute, and continued to the end."""
    few = ("--steps=20", "--examples=600")
    flags = ("--", "--config.batch_size=4", "--config.optimizer.name=adamw")
    first = chain(tmp_path, *few, "--minutes=1", *flags)
    assert first.splitlines()[-1].startswith("stopped: run the same command again")
    second = chain(tmp_path, *few, *flags)
    begun = [line.split(":")[0] for line in (first + second).splitlines() if ": python -m" in line]
    assert list(dict.fromkeys(begun)) == [task.name for task in tasks(tmp_path, SMALL, 600)]
    assert len(begun) <= len(set(begun)) + 1, "only the stage that was stopped runs twice"
    subject = rc.Subject(rc.example("bird"), "bird")
    pipe = rc.load(tmp_path / "model")
    parts = [rc.load(tmp_path / stage / "model").params for stage in SMALL.averaged]
    for ours, one, other in zip(*map(jax.tree.leaves, (pipe.params, *parts)), strict=True):
        np.testing.assert_allclose(ours, (one + other) / 2, rtol=2e-3, atol=1e-6)  # stored in float16
    out = rc.sample(pipe, "a bird on the beach", [subject], steps=2, mask_steps=1, progress=False)
    assert out.images.shape == (1, 64, 64, 3)
    assert chain(tmp_path, *few, *flags).startswith("the model is")
