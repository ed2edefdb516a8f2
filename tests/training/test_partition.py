"""The mesh, sharding by rules, and the division into trainable and frozen parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from realcustom_jax.aot.collectives import by_part, total
from realcustom_jax.common.errors import UserError
from realcustom_jax.models.conditioning import encode_text
from realcustom_jax.training import partition
from realcustom_jax.weights.keys import flatten


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (8, 1, 1)),
        ({"fsdp": 4}, (2, 4, 1)),
        ({"data": 1, "fsdp": -1, "tensor": 2}, (1, 4, 2)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2, 2)),
    ],
)
def test_mesh_has_requested_shape(sizes, shape):
    mesh = partition.make_mesh(**sizes)
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == shape
    assert set(mesh.devices.flat) == set(jax.devices())


def test_mesh_can_use_some_devices():
    mesh = partition.make_mesh(fsdp=2, devices=jax.devices()[2:6])
    assert mesh.devices.shape == (2, 2, 1) and set(mesh.devices.flat) == set(jax.devices()[2:6])


@pytest.mark.parametrize(
    "sizes", [{"data": 3}, {"fsdp": 3}, {"fsdp": 16}, {"data": -1, "fsdp": -1}, {"tensor": 0}]
)
def test_mesh_not_matching_device_count_raises(sizes):
    with pytest.raises(UserError, match=r"a mesh of .* does not fit 8 devices") as error:
        partition.make_mesh(**sizes)
    assert all(f"'{name}': {size}" in str(error.value) for name, size in sizes.items())


TREE = {
    "unet": {
        "to_q": {"kernel": np.zeros((16, 32)), "bias": np.zeros(32)},
        "conv": {"kernel": np.zeros((3, 3, 6, 8))},
    },
    "step": np.zeros(()),
}
RULES = (
    ("to_q/kernel", ("fsdp", "tensor")),
    ("kernel", ("fsdp", None)),
    ("bias", ("data", "fsdp")),
    (".*", ()),
)


def test_first_matching_rule_shards_last_dimensions():
    mesh = partition.make_mesh(data=1, fsdp=4, tensor=2)
    structs = flatten(partition.with_shardings(TREE, RULES, mesh))
    assert {path: x.shape for path, x in structs.items()} == {p: x.shape for p, x in flatten(TREE).items()}
    specs = {path: struct.sharding.spec for path, struct in structs.items()}
    assert specs == {
        "unet/to_q/kernel": P("fsdp", "tensor"),
        "unet/to_q/bias": P("fsdp"),  # of a longer rule the last axes
        "unet/conv/kernel": P(None, None, None, None),  # 4 does not divide 6
        "step": P(),
    }


def test_host_arrays_are_sharded_cast_and_read_back():
    """Trainable parameters are float32, the rest bfloat16, whose 8 bits give a relative error of 2⁻⁸."""
    mesh = partition.make_mesh(data=1, fsdp=4, tensor=2)
    rng = np.random.default_rng(0)
    tree = flatten(jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), TREE))
    place = partition.placer(["to_q/"], jnp.bfloat16, RULES, mesh)
    placed = {path: place(path, value) for path, value in tree.items()}
    for path, struct in flatten(partition.with_shardings(TREE, RULES, mesh)).items():
        assert placed[path].sharding == struct.sharding
    assert {s.data.shape for s in placed["unet/to_q/kernel"].addressable_shards} == {(4, 16)}
    assert {s.data.shape for s in placed["unet/conv/kernel"].addressable_shards} == {(3, 3, 6, 8)}
    for path, value in partition.to_host(placed).items():
        trains = "to_q" in path
        assert value.dtype == (np.float32 if trains else jnp.bfloat16)
        np.testing.assert_allclose(value.astype(np.float32), tree[path], rtol=0 if trains else 2**-8)


@dataclasses.dataclass(frozen=True)
class Chip:
    """The attributes of a device that the mesh's layout reads."""

    id: int
    slice_index: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


@pytest.mark.parametrize(
    ("sizes", "shape"), [({"fsdp": 4}, (2, 4, 1)), ({"fsdp": 2, "tensor": 2}, (2, 2, 2))]
)
def test_tpu_slices_divide_the_data_axis(monkeypatch, sizes, shape):
    """Two slices of four chips: fsdp and tensor stay within a slice."""
    monkeypatch.setattr(partition, "Mesh", lambda devices, axes: devices)
    chips = [Chip(i, slice_index=i % 2, process_index=i // 4) for i in range(8)]
    devices = partition.make_mesh(**sizes, devices=chips)
    assert devices.shape == shape and set(devices.flat) == set(chips)
    per_data = [{chip.slice_index for chip in row.flat} for row in devices]
    assert per_data == [{0}, {1}]
    with pytest.raises(UserError, match="2 slices do not divide the mesh's data axis of 1"):
        partition.make_mesh(data=1, fsdp=8, devices=chips)


def test_parameter_without_sharding_rule_raises():
    with pytest.raises(UserError, match="no sharding rule matches parameter unet/conv/kernel"):
        partition.with_shardings(TREE, [("to_q|step", ())], partition.make_mesh())


def test_split_trainable_and_merge_round_trip():
    trained, held = partition.split_trainable(TREE, ["to_q/"], [".*"])
    assert set(flatten(trained)) == {
        "unet/to_q/kernel",
        "unet/to_q/bias",
    }  # both regexes match: trainable wins
    assert set(flatten(held)) == {"unet/conv/kernel", "step"}
    merged = flatten(partition.merge(trained, held))
    assert merged.keys() == flatten(TREE).keys()
    assert all(merged[path] is value for path, value in flatten(TREE).items())


def test_unmatched_parameter_raises():
    with pytest.raises(UserError, match="parameter unet/conv/kernel is matched by neither"):
        partition.split_trainable(TREE, ["to_q"], ["step"])


@pytest.mark.parametrize(("trainable", "frozen"), [(["to_q", "to_kk"], [".*"]), (["to_q"], ["to_kk", ".*"])])
def test_regex_without_match_raises(trainable, frozen):
    with pytest.raises(UserError, match="the parameter regex 'to_kk' matches no parameter"):
        partition.split_trainable(TREE, trainable, frozen)


def test_gathered_tables_avoid_all_reduce_in_text_encoder(micro_models, micro_params):
    """Without gathered embedding tables there is an all-reduce after each layer.

    The features are equal to 1e-5: sums in another order.
    """
    mesh = partition.make_mesh(data=1, fsdp=8)
    rules = (("(kernel|embedding)$", ("fsdp",)), (".*", ()))
    params = {"text_encoder": micro_params["text_encoder"]}
    sharded = jax.tree.map(
        lambda leaf, target: jax.device_put(leaf, target.sharding),
        params,
        partition.with_shardings(params, rules, mesh),
    )
    ids = np.random.default_rng(0).integers(0, 50, (8, micro_models.text_tokens), np.int32)
    ids = jax.device_put(ids, jax.sharding.NamedSharding(mesh, partition.BATCH))
    counts, features = [], []
    for prepare in (lambda params: params, lambda params: partition.gather_tables(params, mesh)):
        run = jax.jit(lambda params, ids, p=prepare: encode_text(micro_models, p(params), [ids])[0])
        counts.append(total(by_part(run.lower(sharded, ids).compile().as_text())))
        features.append(run(sharded, ids))
    assert counts[0]["all-reduce"][0] > 2 and "all-reduce" not in counts[1]
    assert features[1].sharding.is_equivalent_to(ids.sharding, 3)
    np.testing.assert_allclose(features[1], features[0], rtol=1e-5, atol=1e-5)
