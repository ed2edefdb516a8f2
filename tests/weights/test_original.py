"""Original one-file checkpoints: bit-exact round trips, and errors that name what is wrong.

tests/parity/test_original.py compares the names with diffusers.
"""

import dataclasses
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from realcustom_jax import convert, pipeline
from realcustom_jax.common.errors import UserError
from realcustom_jax.inputs.tokenize import save_tokenizer
from realcustom_jax.weights.exports import export_original
from realcustom_jax.weights.keys import flatten
from realcustom_jax.weights.tensors import open_tensors

make = runpy.run_path(str(Path(__file__).with_name("original_models.py")))["make"]


@pytest.fixture(scope="module")
def tokenizer(micro_tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(micro_tokenizer, folder)
    return folder


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def pipe(request, micro_tokenizer):
    return make(request.param, micro_tokenizer)


@pytest.fixture(scope="module")
def file(pipe, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("original") / "model.safetensors"
    export_original(pipe, path, "float32")
    return path


def changed(file: Path, path: Path, change) -> Path:
    """The file after `change(tensors)`."""
    tensors = safetensors.numpy.load_file(file)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)
    return path


def assert_same(loaded, expected) -> None:
    for name, config in expected.models.configs.items():
        read = loaded.models.configs[name]
        if name == "unet":  # its values per level may be written as one number
            assert (read.heads, read.depths) == (config.heads, config.depths)
            same = {"attention_head_dim": 0, "transformer_layers_per_block": 0}
            read, config = (dataclasses.replace(c, **same) for c in (read, config))
        assert read == config
    assert (loaded.schedule, loaded.defaults) == (expected.schedule, expected.defaults)
    ours, theirs = flatten(loaded.params), flatten(expected.params)
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        np.testing.assert_array_equal(ours[path], value, err_msg=path)


def test_original_file_round_trips_bit_exactly(pipe, file, tokenizer):
    count = len(pipe.models.text_configs)
    assert_same(pipeline.load(file, tokenizers=[tokenizer] * count), pipe)


def test_training_leftovers_in_file_are_ignored(pipe, file, tokenizer, tmp_path):
    """Averaged weights and noise-schedule tables are ignored; a tensor of an unknown part raises."""
    left = ("model_ema.decay", "betas", "sqrt_alphas_cumprod", "posterior_variance", "denoiser.sigmas")
    path = changed(
        file, tmp_path / "a.safetensors", lambda t: t.update({name: np.ones(2, np.float32) for name in left})
    )
    tokenizers = [tokenizer] * len(pipe.models.text_configs)
    assert_same(pipeline.load_on_host(path, tokenizers=tokenizers), pipe)
    path = changed(file, tmp_path / "b.safetensors", lambda t: t.update(control_model=np.ones(2)))
    with pytest.raises(UserError, match=r"b\.safetensors has tensors of unknown parts: control_model"):
        pipeline.load_on_host(path, tokenizers=tokenizers)


def test_missing_tensor_is_named_by_its_original_key(pipe, file, tokenizer, tmp_path):
    name = "input_blocks.1.0.in_layers.2.weight"
    path = changed(file, tmp_path / "x.safetensors", lambda t: t.pop(f"model.diffusion_model.{name}"))
    with pytest.raises(UserError, match=f"named as the original UNet does.*1 missing: {name}"):
        pipeline.load_on_host(path, tokenizers=[tokenizer] * len(pipe.models.text_configs))


def test_stable_diffusion_2_raises(pipe, file, tokenizer, tmp_path):
    def change(tensors):
        for key in [k for k in tensors if k.startswith(("cond_stage_model.", "conditioner."))]:
            tensors["cond_stage_model.model." + key] = tensors.pop(key)

    path = changed(file, tmp_path / "v2.safetensors", change)
    with pytest.raises(UserError, match=r"is not an original checkpoint of SD1\.5 or SDXL: it has"):
        pipeline.load(path, tokenizers=[tokenizer])


def test_sdxl_second_tokenizer_pads_with_exclamation_mark(pipe, file, tokenizer):
    """With "!", id 0 of CLIP's vocabulary, though its own file may say otherwise."""
    count = len(pipe.models.text_configs)
    loaded = pipeline.load_on_host(file, tokenizers=[tokenizer] * count)
    assert [one.pad_token for one in loaded.tokenizers] == [pipe.tokenizers[0].pad_token, "!"][:count]


def test_inpainting_model_raises(pipe, file, tokenizer, tmp_path):
    name = "model.diffusion_model.input_blocks.0.0.weight"
    path = changed(file, tmp_path / "x.safetensors", lambda t: t.update({name: np.ones((32, 9, 3, 3))}))
    with pytest.raises(UserError, match="its UNet takes 9 channels and its VAE gives 4: inpainting"):
        pipeline.load(path, tokenizers=[tokenizer] * len(pipe.models.text_configs))


def test_old_eos_token_id_can_be_exported(micro_tokenizer, tmp_path):
    """SD1.5's own text config says 2."""
    pipe = make("sd15", micro_tokenizer)
    texts = (dataclasses.replace(pipe.models.text_configs[0], eos_token_id=2),)
    pipe = pipe.replace(models=dataclasses.replace(pipe.models, text_configs=texts))
    export_original(pipe, tmp_path / "x.safetensors", "float16")
    weights = open_tensors(tmp_path / "x.safetensors")
    assert any(key.startswith("cond_stage_model.") for key in weights.shapes)


def test_wrong_number_of_tokenizers_raises(pipe, file, tokenizer):
    count = len(pipe.models.text_configs)
    with pytest.raises(UserError, match=f"needs {count} tokenizers, not 3"):
        pipeline.load(file, tokenizers=[tokenizer] * 3)


def test_file_that_is_no_model_raises(tmp_path):
    safetensors.numpy.save_file({"x": np.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="is neither a model folder nor an original checkpoint"):
        pipeline.load(tmp_path / "x.safetensors")


def test_tokenizers_for_model_folder_raise(tokenizer):
    with pytest.raises(UserError, match="has its own tokenizers"):
        pipeline.load("toybox", tokenizers=[tokenizer])


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("unet", {"attention_head_dim": 4}, r"unet\.attention_head_dim is \(4, 4, 4\): it is read as \(8,"),
        ("unet", {"norm_num_groups": 16}, r"unet\.norm_num_groups is 16: it is read as 32"),
        ("vae", {"scaling_factor": 0.5}, r"vae\.scaling_factor is 0\.5: it is read as 0\.18215"),
    ],
)  # fmt: skip
def test_config_that_original_file_cannot_store_raises(micro_tokenizer, tmp_path, part, change, message):
    pipe = make("sd15", micro_tokenizer)
    config = dataclasses.replace(pipe.models.configs[part], **change)
    pipe = pipe.replace(models=dataclasses.replace(pipe.models, **{f"{part}_config": config}))
    with pytest.raises(UserError, match=message):
        export_original(pipe, tmp_path / "x.safetensors", "float32")
    assert not list(tmp_path.iterdir())


def test_convert_writes_and_reads_original_file(micro_tokenizer, tokenizer, tmp_path, monkeypatch):
    pipe = make("sdxl", micro_tokenizer)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
        convert.main()

    pipeline.save(pipe, tmp_path / "folder")
    run("--model", tmp_path / "folder", "--to", "original", "--out", tmp_path / "one.safetensors")
    tokenizers = ["--tokenizer", tokenizer] * len(pipe.models.text_configs)
    run("--model", tmp_path / "one.safetensors", *tokenizers, "--out", tmp_path / "again")
    assert_same(pipeline.load_on_host(tmp_path / "again"), pipe)
