"""`python -m realcustom_jax.convert`: every form reads back bit-exactly, and user errors."""

import dataclasses
import sys

import jax
import numpy as np
import pytest

from realcustom_jax import convert, pipeline
from realcustom_jax.common.errors import UserError
from realcustom_jax.weights.keys import split_added
from realcustom_jax.weights.tensors import open_tensors


@pytest.fixture(scope="module")
def folder(micro_pipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("convert") / "model"
    pipeline.save(micro_pipe, path)
    return path


def run(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
    convert.main()


def assert_same(path, micro_pipe) -> None:
    loaded = pipeline.load_on_host(path)
    assert loaded.models == micro_pipe.models
    jax.tree.map(np.testing.assert_array_equal, loaded.params, micro_pipe.params)


def test_folder_is_assembled_from_parts(micro_pipe, folder, tmp_path, monkeypatch):
    """RealCustom's weights go to a file and from there over the base; the result equals the first folder."""
    part, out = tmp_path / "added.safetensors", tmp_path / "out"
    run(monkeypatch, "--model", folder, "--to", "realcustom", "--out", part)
    assert all("vision" in key or key.startswith("scoring") for key in open_tensors(part).shapes)
    tower = folder / "image_encoder"
    run(monkeypatch, "--model", folder, "--realcustom", part, "--image-encoder", tower, "--out", out)
    assert_same(out, micro_pipe)


def test_flax_weights_with_realcustom_folder_load_as_same_model(micro_pipe, folder, tmp_path, monkeypatch):
    run(monkeypatch, "--model", folder, "--to", "flax", "--out", tmp_path / "flax")
    for name in ("tokenizer", "scheduler", "realcustom"):
        (tmp_path / "flax" / name).symlink_to(folder / name)
    assert_same(tmp_path / "flax", micro_pipe)


def test_unet_file_contains_whole_unet(micro_pipe, folder, tmp_path, monkeypatch):
    path = tmp_path / "unet.safetensors"
    run(monkeypatch, "--model", folder, "--to", "unet", "--out", path, "--dtype", "bfloat16")
    tensors = open_tensors(path)
    assert len(tensors.shapes) == len(jax.tree.leaves(micro_pipe.params["unet"]))
    kernel = micro_pipe.params["unet"]["conv_in"]["kernel"].transpose(3, 2, 0, 1)
    read = tensors.read("conv_in.weight")
    np.testing.assert_array_equal(read, kernel.astype(read.dtype))
    assert read.dtype.name == "bfloat16"


def test_average_is_the_mean_of_all_weights(micro_pipe, folder, tmp_path, monkeypatch):
    """Of three models; the towers and the VAE, which do not differ, keep their bits."""
    rng = np.random.default_rng(0)
    unets = [micro_pipe.params["unet"]]
    for name in ("second", "third"):
        unets.append(jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype(x.dtype), unets[0]))
        other = micro_pipe.replace(params={**micro_pipe.params, "unet": unets[-1]})
        pipeline.save(other, tmp_path / name)
    others = ("--average", tmp_path / "second", "--average", tmp_path / "third")
    run(monkeypatch, "--model", folder, *others, "--out", tmp_path / "mean")
    loaded = pipeline.load_on_host(tmp_path / "mean")
    assert loaded.models == micro_pipe.models
    mean = jax.tree.map(lambda *leaves: np.mean(np.float64(leaves), axis=0), *unets)
    # The sum is rounded to float32 once: half a unit in the last place, a share of 6e-8.
    jax.tree.map(
        lambda ours, exact: np.testing.assert_allclose(ours, exact, 6e-8), loaded.params["unet"], mean
    )
    kept = {name: value for name, value in micro_pipe.params.items() if name != "unet"}
    jax.tree.map(np.testing.assert_array_equal, {name: loaded.params[name] for name in kept}, kept)


def test_models_of_other_shapes_are_not_averaged(micro_pipe, folder, tmp_path, monkeypatch):
    models = dataclasses.replace(micro_pipe.models, realcustom=None, image_configs=())
    params = {name: value for name, value in micro_pipe.params.items() if not name.startswith("image_")}
    base = micro_pipe.replace(models=models, params={**params, "unet": split_added(params["unet"])[0]})
    pipeline.save(base, tmp_path / "base")
    with pytest.raises(UserError, match=r"cannot be averaged: they differ in image_encoder, .*realcustom$"):
        run(monkeypatch, "--model", folder, "--average", tmp_path / "base", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "unet"), "the following arguments are required: --out, see --help"),
        (("--to", "unet", "--out", "folder"), "must end in .safetensors or .pth for --to unet"),
        (("--out", "file"), "is a file, but --to folder writes a folder"),
        (("--out", "full"), "is not empty"),
        (("--out", "gs://b/model"), "is an address, not a folder"),
        (("--to", "timm", "--out", "new"), "image_encoder is a CLIP tower"),
        (("--out", "new", *("--image-encoder", "a") * 3), "there can be 2 image encoders, not 3"),
        (("--out", "new", "--realcustom", "absent.pth"), "'absent.pth' does not exist"),
    ],
)
def test_invalid_arguments_raise(folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(UserError) as error:
        run(monkeypatch, "--model", folder, *arguments)
    assert message in str(error.value)
