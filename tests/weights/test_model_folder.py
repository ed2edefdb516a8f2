"""A model folder written and read back: the same bits, and errors that name what does not fit."""

import dataclasses
import itertools
import json
import re
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import safetensors.numpy

from realcustom_jax import pipeline
from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import write_json
from realcustom_jax.inputs.tokenize import save_tokenizer, tokenize
from realcustom_jax.weights.keys import flatten, split_added

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(micro_pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    pipeline.save(micro_pipe, folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(saved, tmp_path / "model")


def edit(path, change) -> None:
    """Rewrite a safetensors file after `change(tensors)`."""
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


def test_model_folder_round_trips_bit_exactly(micro_pipe, saved):
    loaded = pipeline.load(saved)
    assert loaded.models == micro_pipe.models
    assert loaded.schedule == micro_pipe.schedule != type(micro_pipe.schedule)()
    ours, theirs = flatten(micro_pipe.params), flatten(loaded.params)
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        assert theirs[path].dtype == np.float32
        np.testing.assert_array_equal(theirs[path], value, err_msg=path)
    prompts = ["a cat on the beach", "Ünknown words!"]
    np.testing.assert_array_equal(
        tokenize(*loaded.tokenizers, prompts), tokenize(*micro_pipe.tokenizers, prompts)
    )


def test_realcustom_folder_contains_only_added_weights(saved):
    base = set(safetensors.numpy.load_file(saved / UNET))
    added = set(safetensors.numpy.load_file(saved / "realcustom/diffusion_pytorch_model.safetensors"))
    kinds = ("to_k_vision", "to_v_vision", "encoder_hidden_states_vision_projection", "scoring")
    for kind in kinds:
        assert any(kind in key for key in added) and not any(kind in key for key in base)
    assert all(any(kind in key for kind in kinds) for key in added)
    # one pair for each cross-attention of the base
    suffixes = ("attn2.to_k.weight", "attn2.to_k_vision.weight", "attn2.to_v_vision.weight")
    counts = [sum(key.endswith(suffix) for key in base | added) for suffix in suffixes]
    assert counts[0] == counts[1] == counts[2] > 0


def test_model_index_names_each_component(saved):
    index = json.loads((saved / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "image_encoder"):
        assert index[part][1] and (saved / part).is_dir()
    assert json.loads((saved / "vae/config.json").read_text())["_class_name"] == "AutoencoderKL"
    assert json.loads((saved / "text_encoder/config.json").read_text())["model_type"] == "clip_text_model"


@pytest.mark.parametrize(
    ("with_projection", "name"), [(False, "CLIPTextModel"), (True, "CLIPTextModelWithProjection")]
)
def test_text_encoder_class_depends_on_projection(micro_pipe, tmp_path, monkeypatch, with_projection, name):
    text = dataclasses.replace(micro_pipe.models.text_configs[0], with_projection=with_projection)
    monkeypatch.setattr("realcustom_jax.weights.folder.write_params", lambda *args: None)
    pipeline.save(
        micro_pipe.replace(models=dataclasses.replace(micro_pipe.models, text_configs=(text,))),
        tmp_path / "model",
    )
    index, config = (
        json.loads((tmp_path / "model" / name).read_text())
        for name in ("model_index.json", "text_encoder/config.json")
    )
    assert index["text_encoder"] == ["transformers", name]
    assert config["architectures"] == [name]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_load_reports_bytes_read(saved, monkeypatch, dtype):
    """Bytes of the parameters in their dtypes on the device, up to the total."""
    stages, reports, shown = [], [], []

    class RecordedProgress(pipeline.Progress):
        def __init__(self, wanted):
            super().__init__(wanted)
            shown.append(wanted)

        def stage(self, text, done=0):
            stages.append(text)

        def amount(self, done, total, what):
            reports.append((done, total, what))

    monkeypatch.setattr(pipeline, "Progress", RecordedProgress)
    pipe = pipeline.load(saved, dtype, vae_dtype="float32")
    sizes = [value.nbytes for value in flatten(pipe.params).values()]
    assert stages == [f"loading {saved}", "reading the model"] and shown == [True]
    done, totals, names = zip(*reports, strict=True)
    assert done == tuple(np.cumsum(sizes)) and set(totals) == {sum(sizes)} and set(names) == {stages[1]}
    pipeline.load(saved, progress=False)
    assert shown == [True, False]
    with pytest.raises(UserError, match="progress must be True, False or None, not 1"):
        pipeline.load(saved, progress=1)


def test_only_slow_load_prints_progress(saved, monkeypatch, capfd):
    # Independent of the machine's speed: first the patience is endless, then a fake clock runs fast.
    monkeypatch.setattr("realcustom_jax.common.progress._PATIENCE", 1e6)
    pipeline.load(saved)
    assert capfd.readouterr().err == ""
    monkeypatch.undo()
    seconds = itertools.count(step=6)
    clock = SimpleNamespace(monotonic=lambda: next(seconds))
    monkeypatch.setattr("realcustom_jax.common.progress.time", clock)
    pipeline.load(saved)
    lines = capfd.readouterr().err.splitlines()
    line = re.compile(r"reading the model: 0.0 of 0.0 GiB(, .* left)?")
    assert lines and all(map(line.fullmatch, lines))


def test_load_uses_devices_and_load_on_host_does_not(saved):
    on_host = flatten(pipeline.load_on_host(saved).params)
    on_device = flatten(pipeline.load(saved).params)
    assert on_host.keys() == on_device.keys()
    for path, value in on_host.items():
        assert type(value) is np.ndarray
        assert isinstance(on_device[path], jax.Array) and on_device[path].devices() == set(jax.devices())
        np.testing.assert_array_equal(on_device[path], value)


def test_unknown_dtype_raises_before_writing(micro_pipe, tmp_path):
    with pytest.raises(UserError, match="cannot be written as 'int7'; known: float32, float16, bfloat16"):
        pipeline.save(micro_pipe, tmp_path / "model", "int7")
    assert not (tmp_path / "model").exists()


def test_saving_over_folder_with_extra_components_raises(micro_pipe, folder):
    """`load` would read them too: SDXL's second text encoder, RealCustom's weights, an image tower."""
    unet, _ = pipeline.split_added(micro_pipe.params["unet"])
    models = dataclasses.replace(micro_pipe.models, realcustom=None)
    base = micro_pipe.replace(models=models, params={**micro_pipe.params, "unet": unet})
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"model' has a realcustom/, which this model lacks"):
        pipeline.save(base, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    shutil.rmtree(folder / "realcustom")
    pipeline.save(base, folder)
    assert pipeline.load_on_host(folder).models.realcustom is None
    for name in ("text_encoder_2", "tokenizer_2", "image_encoder_2"):
        (folder / name).mkdir()
        with pytest.raises(UserError, match=f"has a {name}/, which this model lacks"):
            pipeline.save(base, folder)
        (folder / name).rmdir()


def test_saving_over_earlier_model_replaces_it(micro_pipe, folder):
    params = jax.tree.map(lambda x: x + 1, micro_pipe.params)
    pipeline.save(micro_pipe.replace(params=params), folder)
    jax.tree.map(np.testing.assert_array_equal, pipeline.load_on_host(folder).params, params)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (None, "a model is saved to a folder, not to None"),
        (b"x", "a model is saved to a folder, not to b'x'"),
        ("file", "the model folder 'file' is a file, it must be a folder"),
        ("file/x", "the model folder 'file/x' cannot be written to: Not a directory"),
        ("gs://bucket/x", "the model folder 'gs:/bucket/x' is an address"),
        ("~/x", "the model folder '~/x' begins with a ~"),
    ],
)
def test_invalid_save_path_raises(micro_pipe, tmp_path, monkeypatch, path, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        pipeline.save(micro_pipe, path)
    assert str(error.value).startswith(reason)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_full_disk_gives_one_line_error(micro_pipe, tmp_path, small_disk):
    for write in (
        lambda: pipeline.save(micro_pipe, tmp_path),
        lambda: save_tokenizer(micro_pipe.tokenizers[0], tmp_path / "tokenizer"),
        lambda: write_json(tmp_path / "config.json", {"a": "x" * 2000}),
    ):
        with pytest.raises(UserError, match=rf"{tmp_path}.*: .*File too large") as error:
            write()
        assert "\n" not in str(error.value)


def test_half_precision_is_rounded_and_read_as_float32(micro_pipe, tmp_path):
    """float16 keeps 11 bits: relative error up to 2^-11, and 6e-8 below its normal range."""
    pipeline.save(micro_pipe, tmp_path / "half", "float16")
    loaded, ours = flatten(pipeline.load(tmp_path / "half").params), flatten(micro_pipe.params)
    for path, value in ours.items():
        assert loaded[path].dtype == np.float32
        np.testing.assert_allclose(loaded[path], value, rtol=2**-11, atol=6e-8)
    assert any(not np.array_equal(loaded[path], value) for path, value in ours.items())


def test_base_without_realcustom_is_saved_and_loaded(micro_pipe, tmp_path):
    base, _ = split_added(micro_pipe.params["unet"])
    models = dataclasses.replace(micro_pipe.models, realcustom=None)
    pipeline.save(
        micro_pipe.replace(models=models, params={**micro_pipe.params, "unet": base}), tmp_path / "base"
    )
    assert not (tmp_path / "base/realcustom").exists()
    loaded = pipeline.load(tmp_path / "base")
    assert loaded.models.realcustom is None
    assert flatten(loaded.params["unet"]).keys() == flatten(base).keys()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (UNET, lambda t: t.pop("conv_in.bias"), "1 missing: conv_in.bias"),
        (UNET, lambda t: t.update({"extra.weight": np.zeros(3)}), "1 unexpected: extra.weight"),
        (
            UNET,
            lambda t: t.update({"conv_out.bias": np.zeros(5, np.float32)}),
            "1 mis-shaped: conv_out.bias (model (4,), file (5,))",
        ),
        (
            "realcustom/diffusion_pytorch_model.safetensors",
            lambda t: t.pop("scoring.text_attention.weight"),
            "1 missing: scoring.text_attention.weight",
        ),
        (
            "text_encoder/model.safetensors",
            lambda t: t.pop("text_model.final_layer_norm.weight"),
            "1 missing: text_model.final_layer_norm.weight",
        ),
    ],
    ids=["missing", "unexpected", "mis-shaped", "realcustom", "text"],
)
def test_mismatched_weights_are_named(folder, file, change, message):
    edit(folder / file, change)
    with pytest.raises(UserError) as error:
        pipeline.load(folder)
    assert str(folder / file) in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("vae", "vae/config.json does not exist"),
        ("unet/config.json", "unet/config.json does not exist"),
        (UNET, "unet has no weights: expected diffusion_pytorch_model.safetensors"),
        ("realcustom/config.json", "realcustom/config.json does not exist"),
        ("scheduler/scheduler_config.json", "scheduler/scheduler_config.json does not exist"),
        ("tokenizer", "tokenizer' does not exist"),
    ],
)
def test_missing_component_raises(folder, path, message):
    shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()
    with pytest.raises(UserError) as error:
        pipeline.load(folder)
    assert message in str(error.value)


def test_missing_folder_raises(tmp_path):
    with pytest.raises(UserError, match=r"there is no model folder .*nowhere"):
        pipeline.load(tmp_path / "nowhere")


@pytest.mark.parametrize("file", ["vae/config.json", "scheduler/scheduler_config.json"])
def test_broken_json_error_names_file(folder, file):
    (folder / file).write_text("{")
    with pytest.raises(UserError) as error:
        pipeline.load(folder)
    assert f"{folder / file} is not valid JSON" in str(error.value)


@pytest.mark.parametrize("file", [UNET, "text_encoder/model.safetensors"])
def test_damaged_weights_error_names_file(folder, file):
    (folder / file).write_bytes((folder / file).read_bytes()[:100])
    with pytest.raises(UserError) as error:
        pipeline.load(folder)
    assert str(folder / file) in str(error.value)


def test_read_models_builds_modules_from_folder(saved, micro_models):
    assert pipeline.read_models(saved) == micro_models
