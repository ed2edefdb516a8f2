"""Exporting trained parameters from checkpoints: exact bits, also while the run is still training."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

import realcustom_jax as rc
from realcustom_jax import export, pipeline
from realcustom_jax.common.errors import UserError
from realcustom_jax.data.image_text import open_split, write
from realcustom_jax.toybox.dataset import make_example
from realcustom_jax.training import partition, saved
from realcustom_jax.training.checkpoint import Checkpoints
from realcustom_jax.training.export import Choice, export_checkpoint
from realcustom_jax.training.saved import finished_steps, read_saved
from realcustom_jax.training.start import starting_pipeline
from realcustom_jax.training.step import create_state
from realcustom_jax.weights.added import ADDED
from realcustom_jax.weights.keys import flatten

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(micro_pipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "start"
    pipeline.save(micro_pipe.replace(defaults=micro_pipe.defaults.changed({"steps": 7})), folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data set of a few captions, on which a run without `init_from` trains its tokenizer."""
    folder = tmp_path_factory.mktemp("data")
    write(folder, {"train": (make_example(seed, held_out=False) for seed in range(4))})
    return folder


@pytest.fixture(scope="module")
def make_run(model, micro_pipe, micro_configs, data, tmp_path_factory):
    """A function that writes checkpoints of steps 1 and 2, with different parameters."""

    def make(**changes) -> tuple[Path, dict, dict]:
        config = runpy.run_path(str(ROOT / "configs" / "tiny.py"))["get_config"]("customize")
        config.init_from, config.trainable = str(model), (ADDED,)
        config.model = {"realcustom": micro_configs["realcustom"]}
        config.update(changes)
        workdir, pipe = tmp_path_factory.mktemp("run"), micro_pipe
        if not config.init_from:
            config.model = {**micro_configs, "scheduler": {"prediction_type": "v_prediction"}}
            config.data.path = str(data)
            pipe = starting_pipeline(config, open_split(data, "train"))
        trained, _ = partition.split_trainable(pipe.params, config.trainable, config.frozen)
        state = create_state(jax.tree.map(jnp.asarray, trained), optax.adam(1e-3))
        checkpoints = Checkpoints(workdir, keep=3)
        for step in (1, 2):
            params, ema = (jax.tree.map(lambda x, s=s: x * s, state.params) for s in (step + 0.1, step + 0.3))
            checkpoints.save(step, state.replace(params=params, ema=ema), {"step": step}, config.to_dict())
        checkpoints.close()
        return workdir, flatten(jax.device_get(params)), flatten(jax.device_get(ema))

    return make


@pytest.fixture(scope="module")
def run(make_run):
    """(workdir, parameters and their average at step 2) of a run that trains what RealCustom adds."""
    return make_run()


def written(workdir: Path, out: Path, form: str = "realcustom", choice: Choice | None = None) -> Path:
    out.mkdir()
    export_checkpoint(workdir, choice or Choice(), form, out, "float32")
    return out


def assert_loads(pipe, micro_pipe, trained: dict) -> None:
    """The initial model, except for the trained parameters."""
    found, start = flatten(pipe.params), flatten(micro_pipe.params)
    assert found.keys() == start.keys() and len(trained) > 10
    for path, value in start.items():
        np.testing.assert_array_equal(found[path], trained.get(path, value), err_msg=path)


def test_exported_adapter_loads_bit_exactly(run, model, micro_pipe, tmp_path):
    workdir, params, ema = run
    out = written(workdir, tmp_path / "average")
    assert {path.name for path in out.iterdir()} == {
        "README.md", "config.json", "diffusion_pytorch_model.safetensors", "sampling.json",
    }  # fmt: skip
    pipe = rc.load(model, realcustom=out)
    assert_loads(pipe, micro_pipe, ema)
    assert pipe.defaults.steps == 7  # as in the initial model
    raw = written(workdir, tmp_path / "raw", choice=Choice(averaged=False))
    assert_loads(rc.load(model, realcustom=raw), micro_pipe, params)
    first = written(workdir, tmp_path / "first", choice=Choice(step=1))
    values = rc.load(model, realcustom=first).params["unet"]["scoring"]["text_score"]["linear_1"]["kernel"]
    start = micro_pipe.params["unet"]["scoring"]["text_score"]["linear_1"]["kernel"]
    np.testing.assert_array_equal(values, np.asarray(start, np.float32) * np.float32(1.3))


def test_published_form_uses_pytorch_names_and_axes(run, model, micro_pipe, tmp_path):
    """Names and axes of PyTorch's: a linear layer's are (out, in)."""
    workdir, _, ema = run
    file = written(workdir, tmp_path / "out", "published") / "realcustom.safetensors"
    tensors = load_file(file)
    block = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k_vision.weight"
    path = "unet/down_blocks_0/attentions_0/transformer_blocks_0/attn2/to_k_vision/kernel"
    np.testing.assert_array_equal(tensors[block], ema[path].T)
    assert len(tensors) == len(ema) and all(value.dtype == np.float32 for value in tensors.values())
    assert_loads(rc.load(model, realcustom=file), micro_pipe, ema)


def test_published_form_keeps_feature_layers(make_run, model, micro_configs, tmp_path):
    """Shapes do not tell which layer of the tower the features come from."""
    own = {**micro_configs["realcustom"], "feature_layers": ((-3,),)}
    workdir, _, _ = make_run(model={"realcustom": own})
    file = written(workdir, tmp_path / "out", "published") / "realcustom.safetensors"
    assert rc.load(model, realcustom=file).models.realcustom.feature_layers == ((-3,),)


def test_diffusers_form_exports_whole_model(run, micro_pipe, tmp_path):
    workdir, _, ema = run
    assert_loads(rc.load(written(workdir, tmp_path / "out", "diffusers")), micro_pipe, ema)


def test_trained_base_is_exported_or_reported_as_left_out(make_run, model, micro_pipe, tmp_path):
    workdir, _, ema = make_run(trainable=("^unet/",))
    added = {path: value for path, value in ema.items() if re.search(ADDED, path)}
    step, left = export_checkpoint(workdir, Choice(), "realcustom", tmp_path, "float32")
    assert step == 2 and f"also trained {len(ema) - len(added)} parameters" in left
    assert left in (tmp_path / "README.md").read_text()
    assert_loads(rc.load(model, realcustom=tmp_path), micro_pipe, added)
    tensors = load_file(written(workdir, tmp_path / "one", "published") / "realcustom.safetensors")
    assert len(tensors) == len(ema)
    np.testing.assert_array_equal(tensors["conv_in.bias"], ema["unet/conv_in/bias"])
    assert_loads(rc.load(written(workdir, tmp_path / "all", "diffusers")), micro_pipe, ema)


def test_run_without_adapter_raises(make_run, tmp_path):
    workdir, _, ema = make_run(trainable=("^vae/encoder/",), stage="base", loss={"subject_weight": 1.0})
    for form in ("realcustom", "published"):
        with pytest.raises(UserError, match=r"trains nothing that RealCustom adds .* --form diffusers"):
            written(workdir, tmp_path / form, form)
    found = flatten(rc.load(written(workdir, tmp_path / "all", "diffusers")).params)
    assert all(np.array_equal(found[path], value) for path, value in ema.items())


def test_partial_adapter_raises(make_run, tmp_path):
    workdir, _, _ = make_run(trainable=("^unet/scoring/",))
    with pytest.raises(UserError, match=r"only a part of what RealCustom adds, not .*to_k_vision"):
        written(workdir, tmp_path / "out")


def test_adapter_export_works_without_initial_model(make_run, model, tmp_path):
    away = Path(shutil.copytree(model, tmp_path / "start"))
    workdir, _, ema = make_run(init_from=str(away))
    shutil.rmtree(away)
    for form in ("realcustom", "published"):
        (file,) = written(workdir, tmp_path / form, form).glob("*.safetensors")
        assert len(load_file(file)) == len(ema)
    with pytest.raises(UserError, match="start"):
        written(workdir, tmp_path / "whole", "diffusers")


def test_export_of_run_from_scratch_loads_over_its_base(make_run, tmp_path, monkeypatch):
    """Its adapter loads over the base that it trained; `init_from` "" must not mean the current folder."""
    (tmp_path / "realcustom").mkdir()
    (tmp_path / "realcustom" / "sampling.json").write_text('{"steps": 3}')
    monkeypatch.chdir(tmp_path)
    workdir, _, ema = make_run(init_from="", trainable=(".*",), fresh="")
    whole = written(workdir, tmp_path / "whole", "diffusers")
    found = flatten(rc.load(whole).params)
    assert found.keys() == ema.keys()
    for form in ("realcustom", "published"):
        out = written(workdir, tmp_path / f"as {form}", form)
        file = out / "realcustom.safetensors" if form == "published" else out
        pipe = rc.load(whole, realcustom=file)
        assert pipe.defaults.steps == 50
        for path, value in flatten(pipe.params).items():
            np.testing.assert_array_equal(value, ema[path], err_msg=path)
        card = (out / "README.md").read_text()
        assert 'rc.load("BASE", realcustom="FOLDER' in card
        assert (
            "| base | the run's own, which `python -m realcustom_jax.export --form diffusers` exports" in card
        )
    assert "| base | none: trained from scratch |" in (whole / "README.md").read_text()


def test_model_card_describes_the_run(run, model, tmp_path):
    card = (written(run[0], tmp_path / "out") / "README.md").read_text()
    front, _ = card.removeprefix("---\n").split("\n---\n", 1)
    assert "license: other" in front.splitlines()
    for fact in (str(model), "`toybox`, split `train`", "2 of 4,600, 32 images each", "decay 0.998",
                 "rc.load", "load_state_dict", "Licence"):  # fmt: skip
        assert fact in card
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(code) == 2
    for block in code:
        compile(block, "card", "exec")
    published = (written(run[0], tmp_path / "one", "published") / "README.md").read_text()
    assert f'rc.load("{model}", realcustom="FOLDER/realcustom.safetensors")' in published


# ---------------------------------------------------------------- while the run is still training


def any_path(path: str) -> bool:
    return True


def test_unfinished_checkpoints_are_ignored(run, tmp_path):
    workdir = Path(shutil.copytree(run[0], tmp_path / "run"))
    steps = workdir / "checkpoints"
    shutil.copytree(steps / "2", steps / "3.orbax-checkpoint-tmp-7")
    shutil.copytree(steps / "2", steps / "4")
    (steps / "4" / "_CHECKPOINT_METADATA").unlink()
    before = sorted(path.name for path in steps.iterdir())
    assert finished_steps(workdir) == [1, 2] and read_saved(workdir, None, True, any_path).step == 2
    assert sorted(path.name for path in steps.iterdir()) == before


def test_checkpoint_deleted_during_read_falls_back_to_previous(run, tmp_path, monkeypatch):
    workdir = Path(shutil.copytree(run[0], tmp_path / "run"))
    read = saved._read

    def read_and_delete(folder, *rest):
        found = read(folder, *rest)
        if folder.name == "2":
            shutil.rmtree(folder)
        return found

    monkeypatch.setattr(saved, "_read", read_and_delete)
    assert read_saved(workdir, None, True, any_path).step == 1
    with pytest.raises(UserError, match=r"no checkpoint of step 2 .* available steps: 1$"):
        read_saved(workdir, 2, True, any_path)


WRITER = """
import sys
from pathlib import Path
import jax.numpy as jnp
from realcustom_jax.training.checkpoint import Checkpoints

checkpoints = Checkpoints(Path(sys.argv[1]), keep=1)
for step in range(1, 10**6):
    tree = {"unet": {f"scoring_{i}": jnp.full((64, 64), float(step)) for i in range(20)}}
    checkpoints.save(step, {"ema": tree, "params": tree}, {}, {"init_from": "toybox"})
"""


def test_export_during_training_reads_one_consistent_step(tmp_path):
    """All values that are read come from one step."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], env=environment)
    try:
        seen = set()
        while len(seen) < 8:
            assert writer.poll() is None
            try:
                found = read_saved(tmp_path, None, True, any_path)
            except UserError as error:  # the run has only begun
                assert not seen and re.search(
                    "does not exist|not a training workdir|no finished checkpoint", str(error)
                )
                continue
            assert len(found.params) == 20
            assert {float(x) for value in found.params.values() for x in np.unique(value)} == {found.step}
            seen.add(found.step)
    finally:
        writer.kill()
        writer.wait()


def test_damaged_checkpoint_falls_back_to_previous(run, tmp_path, capsys):
    workdir = Path(shutil.copytree(run[0], tmp_path / "run"))
    for path in (workdir / "checkpoints" / "2" / "state").glob("**/d/*"):
        path.write_bytes(path.read_bytes()[:-20])
    assert read_saved(workdir, None, True, any_path).step == 1
    assert "checkpoints/2 cannot be read" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"can be read .step 2: "):
        read_saved(workdir, 2, True, any_path)
    shutil.rmtree(workdir / "checkpoints" / "1" / "state")
    with pytest.raises(UserError, match=r"can be read .step 2: .*; step 1: "):
        read_saved(workdir, None, True, any_path)


def test_changed_value_fails_checksum(run, tmp_path, monkeypatch):
    restore = saved.ocp.PyTreeCheckpointHandler.restore

    def changed(handler, folder, args):
        tree = restore(handler, folder, args=args)
        if folder.parent.name == "2":
            kernel = tree["ema"]["unet"]["scoring"]["text_score"]["linear_1"]["kernel"]
            kernel.view(np.uint32)[0, 0] ^= 1
        return tree

    monkeypatch.setattr(saved.ocp.PyTreeCheckpointHandler, "restore", changed)
    assert read_saved(run[0], None, True, any_path).step == 1
    with pytest.raises(
        UserError, match="the checksum of ema/unet/scoring/text_score/linear_1/kernel is wrong"
    ):
        read_saved(run[0], 2, True, any_path)


MEASURE = """
import resource, sys
from pathlib import Path
from realcustom_jax.training.export import Choice, export_checkpoint
from realcustom_jax.training.saved import read_saved

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

read_saved(Path(sys.argv[1]), 1, True, lambda path: "scoring_0" in path)  # a first call allocates more
before = peak()
read_saved(Path(sys.argv[1]), 1, True, lambda path: "scoring" in path)
print(peak() - before)
"""


def test_unrequested_parameters_use_no_memory(tmp_path):
    """8 MB of 328 are read; the rest is optimizer state, unaveraged and other trained parameters."""
    rng = np.random.default_rng(0)

    def tree(size: int) -> dict:
        scores = {f"scoring_{i}": jnp.asarray(rng.random((2**18), np.float32)) for i in range(8)}
        return {"unet": {**scores, "rest": jnp.asarray(rng.random(size, np.float32))}}

    checkpoints = Checkpoints(tmp_path, keep=1)
    state = {"ema": tree(20_000_000), "params": tree(20_000_000), "opt_state": tree(40_000_000)}
    checkpoints.save(1, state, {}, {"init_from": "toybox"})
    checkpoints.close()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert int(result.stdout) < 60


# ---------------------------------------------------------------- the command


def command(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
    export.main()


def test_export_command_writes_adapter(run, model, micro_pipe, tmp_path, monkeypatch, capsys):
    command(monkeypatch, "--workdir", run[0], "--out", tmp_path / "out", "--step", 2)
    assert capsys.readouterr().out == f"wrote {tmp_path / 'out'}, of step 2\n"
    assert_loads(rc.load(model, realcustom=tmp_path / "out"), micro_pipe, run[2])
    with pytest.raises(UserError, match="is not empty"):
        command(monkeypatch, "--workdir", run[0], "--out", tmp_path / "out")


def test_relative_workdir_is_exported(run, model, micro_pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(run[0].parent)
    out = written(Path(run[0].name), tmp_path / "out")
    assert_loads(rc.load(model, realcustom=out), micro_pipe, run[2])


DAMAGED_JSON = {
    "binary": b"\xff\xfe\x00\x80", "cut off": b'{"stage": [1, 2', "deep": b"[" * 100_000, "empty": b"",
    "list": b"[1]", "number": b"7", "null": b"null", "NaN": b"NaN", "nothing": b"{}",
}  # fmt: skip
WRONG_VALUES = (None, "x", -1, float("nan"), [[1]], {"x": 1})


def test_damaged_checkpoint_metadata_gives_one_line_error(run, tmp_path):
    """Config and data as a whole, and each of their keys; keys that the export does not read may be wrong."""
    workdir = Path(shutil.copytree(run[0], tmp_path / "run"))
    shutil.rmtree(workdir / "checkpoints" / "1")
    found = Counter()
    for item in ("config", "data"):
        path = workdir / "checkpoints" / "2" / item / "metadata"
        whole = path.read_bytes()
        values = json.loads(whole)
        contents = [*DAMAGED_JSON.values()]
        contents += [json.dumps({**values, key: wrong}).encode() for key in values for wrong in WRONG_VALUES]
        contents += [json.dumps({k: v for k, v in values.items() if k != key}).encode() for key in values]
        for i, content in enumerate(contents):
            path.write_bytes(content)
            out = tmp_path / f"{item} {i}"
            try:
                written(workdir, out)
            except UserError as error:
                assert "\n" not in str(error) and str(workdir) in str(error), content[:200]
                found["sentences"] += 1
            else:
                assert load_file(out / "diffusion_pytorch_model.safetensors").keys()
                assert "rc.load" in (out / "README.md").read_text()
                found["right"] += 1
        path.write_bytes(whole)
    assert found["sentences"] > 120, found


def test_invalid_export_arguments_leave_no_files(run, tmp_path, monkeypatch):
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    for workdir, message, *more in (
        (tmp_path / "nowhere", "does not exist"),
        (run[0] / "checkpoints", "has no checkpoints/: it is not a training workdir"),
        (tmp_path / "empty", "no finished checkpoint"),
        (run[0], "no checkpoint of step 5 .* available steps: 1, 2", "--step", 5),
        (run[0], "invalid int value", "--step", "x"),
        (run[0], "invalid choice", "--form", "x"),
        ("gs://bucket/run", "is an address"),
    ):
        with pytest.raises(UserError, match=message):
            command(monkeypatch, "--workdir", workdir, "--out", tmp_path / "out", *more)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    broken = Path(shutil.copytree(run[0], tmp_path / "run"))
    path = broken / "checkpoints" / "2" / "config" / "metadata"
    path.write_text(json.dumps([1]))
    command(monkeypatch, "--workdir", broken, "--out", tmp_path / "out")
    assert "2 of" not in (tmp_path / "out" / "README.md").read_text()
