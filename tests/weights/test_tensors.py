"""Tensor files: every format gives back the same bits; damaged files raise."""

import json
import os
from pathlib import Path

import flax.serialization
import ml_dtypes
import msgpack
import numpy as np
import pytest
import safetensors.numpy

from realcustom_jax.common.errors import UserError
from realcustom_jax.weights.components import find_weights
from realcustom_jax.weights.keys import flatten, unflatten
from realcustom_jax.weights.lazy import LazyArray
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
def test_written_tensors_are_read_bit_exactly(tmp_path, name):
    write_tensors(tmp_path / name, VALUES)
    assert_same(open_tensors(tmp_path / name), VALUES)


def test_safetensors_and_flax_read_our_files(tmp_path):
    write_tensors(tmp_path / "m.safetensors", VALUES)
    theirs = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    write_tensors(tmp_path / "m.msgpack", VALUES)
    tree = flax.serialization.msgpack_restore((tmp_path / "m.msgpack").read_bytes())
    np.testing.assert_array_equal(theirs["a/kernel"], VALUES["a/kernel"])
    np.testing.assert_array_equal(tree["b"]["c"]["scale"], VALUES["b/c/scale"])


def test_msgpack_written_by_flax_is_read(tmp_path):
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(flax.serialization.to_bytes(unflatten(VALUES)))
    assert_same(open_tensors(path), VALUES)


@pytest.fixture
def small_chunks(monkeypatch):
    """Flax splits arrays of more than 16 bytes instead of 2**30."""
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 16)


def test_msgpack_with_chunked_arrays_is_read(tmp_path, small_chunks):
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(flax.serialization.to_bytes(unflatten(VALUES)))
    assert path.read_bytes().count(b"__msgpack_chunked_array__") == 2  # of 48 and of 20 bytes
    assert_same(open_tensors(path), VALUES)


def test_large_arrays_are_written_in_flax_chunks(tmp_path, small_chunks):
    path = tmp_path / "m.msgpack"
    write_tensors(path, VALUES)
    assert b"__msgpack_chunked_array__" in path.read_bytes()
    tree = flatten(flax.serialization.msgpack_restore(path.read_bytes()))
    assert tree.keys() == VALUES.keys()
    for key, value in VALUES.items():
        np.testing.assert_array_equal(tree[key], value)


def packed(shape=(2, 3), dtype="float32", size=24, name="a"):
    """A tree with one array, as Flax packs it."""
    record = msgpack.packb((shape, dtype, bytes(size)))
    return {name: msgpack.ExtType(1, record)}


def chunked(**changes) -> dict:
    parts = {
        "shape": {"0": 2, "1": 3},
        "chunks": packed((3,), size=12, name="0") | packed((3,), size=12, name="1"),
    }
    return {"a": {"__msgpack_chunked_array__": True, **parts, **changes}}


DAMAGED_TREES = {
    "too few bytes": packed(size=20),
    "too many bytes": packed(size=28),
    "a negative size": packed((-2, -3)),
    "no shape": packed("x"),
    "sizes that are no numbers": packed(("2", 3)),
    "sizes that are not whole": packed((2.0, 3)),
    "an unknown dtype": packed(dtype="float33"),
    "a class as dtype": packed(dtype="finfo"),
    "a number as dtype": packed(dtype=5),
    "objects": packed(dtype="object", size=48),
    "a number": {"a": 5},
    "a list": {"a": [1, 2]},
    "no text as a name": {5: packed()},
    "a list at the top": [1],
    "no map": 5,
    "another extension": {"a": msgpack.ExtType(3, b"x")},
    "a chunk that is missing": chunked(chunks=packed((3,), size=12, name="0")),
    "chunks with a gap": chunked(chunks=packed((3,), size=12, name="0") | packed((3,), size=12, name="2")),
    "no chunks": chunked(chunks={}),
    "chunks of two dtypes": chunked(
        chunks=packed((3,), size=12, name="0") | packed((3,), "int32", size=12, name="1")
    ),
    "chunks of another shape": chunked(shape={"0": 2, "1": 4}),
    "chunks of a shape that is not whole": chunked(shape={"0": 2.0, "1": 3}),
    "chunks without a shape": chunked(shape={}),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED_TREES)
def test_damaged_msgpack_tree_raises(tmp_path, damage):
    path = tmp_path / "m.msgpack"
    path.write_bytes(msgpack.packb(DAMAGED_TREES[damage], strict_types=True))
    with pytest.raises(UserError, match=r"m\.msgpack is not a complete Flax msgpack file") as error:
        open_tensors(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"\x81\xa1a" * 100_000, b"\x81\xa1a\xdd\x7f\xff\xff\xff", b"\xdf\xff\xff\xff\xff"]
)
def test_deep_or_oversized_msgpack_raises(tmp_path, content):
    """100,000 nested maps; a list that announces 2**31 values; a map that announces 2**32."""
    path = tmp_path / "m.msgpack"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"m\.msgpack is not a complete Flax msgpack file"):
        open_tensors(path)


def test_large_files_are_split_into_shards(tmp_path):
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


def test_overwriting_in_other_form_leaves_no_old_file(tmp_path):
    """One file replaced by shards, and the reverse; `find_weights` looks for both."""
    path = tmp_path / "model.safetensors"
    for number, shard_bytes in enumerate((1000, 100, 200, 1000, 100)):
        values = {f"layer.{i}": np.full(25, number, np.float32) for i in range(3)}
        write_tensors(path, values, shard_bytes)
        assert_same(open_tensors(find_weights(tmp_path)), values)
        assert path.exists() == (shard_bytes == 1000)
        assert (tmp_path / "model.safetensors.index.json").exists() == (shard_bytes < 1000)


def test_shards_not_matching_index_raise(tmp_path):
    values = {f"layer.{i}": np.zeros(25, np.float32) for i in range(3)}
    write_tensors(tmp_path / "m.safetensors", values, shard_bytes=100)
    index = tmp_path / "m.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["layer.9"] = content["weight_map"].pop("layer.0")
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"does not list what its shards hold: layer\.0, layer\.9"):
        open_tensors(index)
    (tmp_path / "m-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"m-00002-of-00003\.safetensors' does not exist"):
        open_tensors(index)


@pytest.mark.parametrize("name", ["m.safetensors", "m.msgpack", "m.pth"])
def test_write_to_full_disk_raises_and_leaves_no_file(tmp_path, small_disk, name):
    if name.endswith(".pth"):
        pytest.importorskip("torch", reason="the extra `convert` is not installed")
    with pytest.raises(UserError, match=rf"{name} cannot be written: File too large"):
        write_tensors(tmp_path / name, {"a": np.zeros(10_000, np.float32)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["m.safetensors", "m.msgpack", "m.pth"])
@pytest.mark.parametrize("read", [np.zeros((3, 2), np.float32), np.zeros((2, 3), np.float16), np.zeros(())])
def test_lazy_tensor_with_other_shape_or_dtype_raises(tmp_path, name, read):
    if name.endswith(".pth"):
        pytest.importorskip("torch", reason="the extra `convert` is not installed")
    tensors = {"a": VALUES["a/bias"], "b": LazyArray((2, 3), lambda: read, np.dtype(np.float32))}
    with pytest.raises(UserError) as error:
        write_tensors(tmp_path / name, tensors)
    reason = f"b was announced as float32 (2, 3) and is read as {read.dtype} {read.shape}"
    assert str(error.value) == f"{tmp_path / name} cannot be written: {reason}"
    assert not list(tmp_path.iterdir())


def test_dtype_unsupported_by_safetensors_raises(tmp_path):
    with pytest.raises(UserError, match=r"m\.safetensors cannot be written: a is complex64, which"):
        write_tensors(tmp_path / "m.safetensors", {"a": np.zeros(3, np.complex64)})


def test_select_returns_tensors_below_prefix(tmp_path):
    write_tensors(tmp_path / "m.safetensors", VALUES)
    part = open_tensors(tmp_path / "m.safetensors").select("a/")
    assert_same(part, {"kernel": VALUES["a/kernel"], "bias": VALUES["a/bias"]})


@pytest.mark.parametrize("name", ["m.safetensors", "m.msgpack"])
def test_file_changed_while_open_raises(tmp_path, name):
    """With the same names and size, but other offsets, wrong numbers would be read without an error."""
    path = tmp_path / name
    write_tensors(path, {"a": np.zeros(4, np.float32), "b": np.ones(4, np.float32)})
    os.utime(path, (1, 1))  # timestamps of file systems are coarse
    tensors, size = open_tensors(path), path.stat().st_size
    np.testing.assert_array_equal(tensors.read("a"), np.zeros(4))
    write_tensors(path, {"a": np.ones(4, np.float32), "b": np.zeros(4, np.float32)})
    assert path.stat().st_size == size
    with pytest.raises(UserError, match=rf"{name} has changed since it was opened, so a cannot be read"):
        tensors.read("a")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{name} has changed since it was opened"):
        tensors.read("b")
    path.unlink()
    with pytest.raises(UserError, match=rf"{name} cannot be read: No such file or directory"):
        tensors.read("b")
    lazy = LazyArray((4,), lambda: tensors.read("a"), np.dtype(np.float32))
    with pytest.raises(UserError, match=rf"{name} cannot be read: No such file"):
        write_tensors(tmp_path / "copy.safetensors", {"a": lazy})


@pytest.mark.parametrize("name", ["m.safetensors", "m.msgpack"])
def test_relative_path_stays_valid_after_chdir(tmp_path, monkeypatch, name):
    write_tensors(tmp_path / name, VALUES)
    monkeypatch.chdir(tmp_path)
    tensors = open_tensors(Path(name))
    monkeypatch.chdir("/")
    assert_same(tensors, VALUES)


@pytest.mark.parametrize("name", ["m.safetensors", "m.msgpack"])
@pytest.mark.parametrize("keep", [0, 40, 0.9])
def test_damaged_file_raises(tmp_path, name, keep):
    path = tmp_path / name
    write_tensors(path, {"a": RNG.standard_normal(100)})
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
    with pytest.raises(UserError, match=f"{name} is not a complete"):
        open_tensors(path)


def test_unknown_file_type_raises(tmp_path):
    (tmp_path / "m.h5").write_bytes(b"")
    with pytest.raises(UserError, match=r"m\.h5 is not a known kind of weights file; known: \.safetensors"):
        open_tensors(tmp_path / "m.h5")
    with pytest.raises(UserError, match=r"weights cannot be written as m\.h5"):
        write_tensors(tmp_path / "m.h5", VALUES)


def test_pickle_without_pytorch_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)  # as if it were not installed
    (tmp_path / "m.pth").write_bytes(b"x")
    with pytest.raises(UserError, match=r"needs PyTorch: install realcustom_jax\[convert\]"):
        open_tensors(tmp_path / "m.pth")


def test_pickles_round_trip_with_pytorch(tmp_path):
    torch = pytest.importorskip("torch", reason="the extra `convert` is not installed")
    values = {key.replace("/", "."): value for key, value in VALUES.items()}
    write_tensors(tmp_path / "m.pth", values)
    assert_same(open_tensors(tmp_path / "m.pth"), values)
    state = torch.load(tmp_path / "m.pth", weights_only=True)
    assert state["b.c.scale"].dtype == torch.bfloat16
    torch.save({"state_dict": state}, tmp_path / "nested.bin")
    assert_same(open_tensors(tmp_path / "nested.bin"), values)


def test_pickle_with_code_raises(tmp_path):
    torch = pytest.importorskip("torch", reason="the extra `convert` is not installed")
    torch.save({"weight": print}, tmp_path / "m.pth")
    with pytest.raises(UserError, match=r"m\.pth holds more than plain PyTorch weights"):
        open_tensors(tmp_path / "m.pth")
