"""Files of tensors: every kind gives back the same bits; damage is named."""

import json

import flax.serialization
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from realcustom_jax.common.errors import UserError
from realcustom_jax.weights.keys import unflatten
from realcustom_jax.weights.tensors import Tensors, open_tensors, write_tensors

RNG = np.random.default_rng(0)
VALUES = {
    "a/kernel": RNG.standard_normal((3, 4)).astype(np.float32),
    "a/bias": RNG.standard_normal(4).astype(np.float16),
    "b/c/scale": RNG.standard_normal((2, 1, 5)).astype(ml_dtypes.bfloat16),
    "b/d": np.full((), 3.5, np.float32),
}


def assert_same(tensors: Tensors, values: dict) -> None:
    assert tensors.shapes == {key: value.shape for key, value in values.items()}
    for key in reversed(values):  # in any order
        read = tensors.read(key)
        assert read.dtype == values[key].dtype
        assert read.tobytes() == values[key].tobytes()


@pytest.mark.parametrize("name", ["model.safetensors", "model.msgpack"])
def test_what_is_written_is_read_to_the_bit(tmp_path, name):
    write_tensors(tmp_path / name, VALUES)
    assert_same(open_tensors(tmp_path / name), VALUES)


def test_the_libraries_read_what_is_written(tmp_path):
    write_tensors(tmp_path / "m.safetensors", VALUES)
    theirs = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    write_tensors(tmp_path / "m.msgpack", VALUES)
    tree = flax.serialization.msgpack_restore((tmp_path / "m.msgpack").read_bytes())
    np.testing.assert_array_equal(theirs["a/kernel"], VALUES["a/kernel"])
    np.testing.assert_array_equal(tree["b"]["c"]["scale"], VALUES["b/c/scale"])


def test_msgpack_of_flax_itself_is_read(tmp_path):
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(flax.serialization.to_bytes(unflatten(VALUES)))
    assert_same(open_tensors(path), VALUES)


def test_large_files_are_written_in_shards_of_at_most_the_size_asked_for(tmp_path):
    values = {f"layer.{i}": np.full(25, i, np.float32) for i in range(7)}  # 100 bytes each
    write_tensors(tmp_path / "model.safetensors", values, shard_bytes=250)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        *(f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)),
        "model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / names[-1]).read_text())
    assert index["metadata"]["total_size"] == 700
    assert len(safetensors.numpy.load_file(tmp_path / names[0])) == 2
    assert_same(open_tensors(tmp_path / names[-1]), values)


def test_shards_that_do_not_hold_what_the_index_names_are_refused(tmp_path):
    values = {f"layer.{i}": np.zeros(25, np.float32) for i in range(3)}
    write_tensors(tmp_path / "m.safetensors", values, shard_bytes=100)
    index = tmp_path / "m.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["layer.9"] = content["weight_map"].pop("layer.0")
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"does not name what its shards hold: layer\.0, layer\.9"):
        open_tensors(index)
    (tmp_path / "m-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"m-00002-of-00003\.safetensors' does not exist"):
        open_tensors(index)


def test_select_takes_the_tensors_below_a_prefix(tmp_path):
    write_tensors(tmp_path / "m.safetensors", VALUES)
    part = open_tensors(tmp_path / "m.safetensors").select("a/")
    assert_same(part, {"kernel": VALUES["a/kernel"], "bias": VALUES["a/bias"]})


@pytest.mark.parametrize("name", ["m.safetensors", "m.msgpack"])
@pytest.mark.parametrize("keep", [0, 40, 0.9])
def test_a_damaged_file_is_named(tmp_path, name, keep):
    path = tmp_path / name
    write_tensors(path, {"a": RNG.standard_normal(100)})
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
    with pytest.raises(UserError, match=f"{name} is not a whole"):
        open_tensors(path)


def test_an_unknown_kind_of_file_is_refused(tmp_path):
    (tmp_path / "m.h5").write_bytes(b"")
    with pytest.raises(UserError, match=r"m\.h5 is no kind of weights file that is known: \.safetensors"):
        open_tensors(tmp_path / "m.h5")
    with pytest.raises(UserError, match=r"weights cannot be written as m\.h5"):
        write_tensors(tmp_path / "m.h5", VALUES)


def test_a_pickle_without_pytorch_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)  # as if it were not installed
    (tmp_path / "m.pth").write_bytes(b"x")
    with pytest.raises(UserError, match=r"needs PyTorch: install realcustom_jax\[convert\]"):
        open_tensors(tmp_path / "m.pth")


def test_pickles_are_read_and_written_with_pytorch(tmp_path):
    torch = pytest.importorskip("torch", reason="the extra `convert` is not installed")
    values = {key.replace("/", "."): value for key, value in VALUES.items()}
    write_tensors(tmp_path / "m.pth", values)
    assert_same(open_tensors(tmp_path / "m.pth"), values)
    state = torch.load(tmp_path / "m.pth", weights_only=True)
    assert state["b.c.scale"].dtype == torch.bfloat16
    torch.save({"state_dict": state}, tmp_path / "nested.bin")
    assert_same(open_tensors(tmp_path / "nested.bin"), values)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    torch = pytest.importorskip("torch", reason="the extra `convert` is not installed")
    torch.save({"weight": print}, tmp_path / "m.pth")
    with pytest.raises(UserError, match=r"m\.pth holds more than plain PyTorch weights"):
        open_tensors(tmp_path / "m.pth")
