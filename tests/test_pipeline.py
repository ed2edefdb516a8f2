"""The devices of a pipeline: batches sharded over devices, and offloading.

Another batch size adds float32 numbers in another order, which may change a pixel by one level.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import realcustom_jax as rc
from realcustom_jax.common import devices as devices_module
from realcustom_jax.outputs import decode
from realcustom_jax.pipeline import Offloaded

FEW = {"steps": 2}
PHOTO = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)
PROMPTS = ["a cat on the beach", "a robot in the snow", "a cup at sunset"]
SUBJECTS = [[rc.Subject(PHOTO, "cat")], [], [rc.Subject(PHOTO[::-1].copy(), "cup")]]


@pytest.fixture(scope="module")
def saved(micro_pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    rc.save(micro_pipe, folder)
    return folder


@pytest.fixture(scope="module")
def expected(micro_pipe):
    return rc.sample(micro_pipe, PROMPTS, SUBJECTS, [1, 2, 3], **FEW)


def assert_same(samples, expected):
    assert np.abs(samples.images.astype(int) - expected.images).max() <= 1
    np.testing.assert_allclose(samples.masks, expected.masks, atol=1e-3)


def mesh(*sizes: int, names=("data", "fsdp")) -> Mesh:
    count = int(np.prod(sizes))
    return Mesh(np.asarray(jax.devices()[:count]).reshape(sizes), names[: len(sizes)])


def shard_kernels(path: str, shape: tuple[int, ...], over: Mesh) -> NamedSharding:
    by_inputs = path.endswith("kernel") and shape[-2] % over.shape["fsdp"] == 0
    return NamedSharding(
        over, PartitionSpec(*[None] * (len(shape) - 2), "fsdp") if by_inputs else PartitionSpec()
    )


@pytest.mark.parametrize("layout", ["one", "two", "eight", "divided"])
def test_batch_is_sharded_over_devices(saved, expected, layout):
    """3 requests on 1, 2 (with padding) and 3 of 8 devices, and with sharded parameters."""
    over = {"one": mesh(1), "two": mesh(2), "eight": None, "divided": mesh(2, 4)}[layout]
    sharding = functools.partial(shard_kernels, over=over) if layout == "divided" else None
    pipe = rc.load(saved, mesh=over, sharding=sharding)
    assert pipe.mesh.size == {"one": 1, "two": 2, "eight": 8, "divided": 8}[layout]
    assert_same(rc.sample(pipe, PROMPTS, SUBJECTS, [1, 2, 3], **FEW), expected)


def test_only_devices_with_rows_are_used(saved, monkeypatch):
    used, restrict = [], devices_module._restrict
    monkeypatch.setattr(
        devices_module, "_restrict", lambda x, over: (used.append(over.size), restrict(x, over))[1]
    )
    pipe = rc.load(saved)
    for count, devices in ((1, 1), (6, 6), (8, 8), (9, 5)):  # 9 rows are 2 on each of 5
        images = decode.images_of(pipe, jnp.zeros((count, 8, 8, 4)))
        assert len(images) == count and used.pop() == devices


def test_offloaded_pipeline_gives_same_images_and_frees_parameters(saved, expected):
    pipe = rc.load(saved, mesh=mesh(1), offload=True)
    before = len(jax.live_arrays())
    assert pipe.offloaded and set(pipe.params) == set(rc.load(saved).params)
    samples = rc.sample(pipe, PROMPTS, SUBJECTS, [1, 2, 3], **FEW)
    assert_same(samples, expected)
    # No parameter is left; only the features of the black image and the references, and the returned masks.
    assert len(jax.live_arrays()) <= before + len(jax.tree.leaves(dict(pipe.cache))) + 1


@pytest.mark.parametrize("devices", [1, 2])
def test_offloaded_preview_unloads_unet_before_vae(flat_pipe, tmp_path, monkeypatch, devices):
    """UNet and VAE are never loaded together; the UNet is loaded again for later steps; equal images."""
    rc.save(flat_pipe, tmp_path)
    # Kernels with shapes that no other array has.
    kernels = {
        "unet": ("time_embedding", "linear_1"),
        "vae": ("decoder", "mid_block", "attentions_0", "to_q"),
    }
    shapes = {name: functools.reduce(lambda x, key: x[key], path, flat_pipe.params[name])["kernel"].shape
              for name, path in kernels.items()}  # fmt: skip
    asked, seen, get = [], [], Offloaded.__getitem__

    def on_devices() -> list[str]:
        return [name for name, shape in shapes.items() if shape in {x.shape for x in jax.live_arrays()}]

    def spy(params, name):
        if name in shapes:
            asked.append((name, *on_devices()))
        return get(params, name)

    monkeypatch.setattr(Offloaded, "__getitem__", spy)
    request = (PROMPTS, SUBJECTS, [1, 2, 3])
    pipe = rc.load(tmp_path, mesh=mesh(devices), offload=True)
    assert on_devices() == []
    samples = rc.sample(pipe, *request, **FEW, preview=lambda *x: seen.append((*x, on_devices())), every=1)
    assert asked == [(name,) for name in ("unet", "vae", "unet", "vae", "vae")]
    assert [(step, names) for step, _, names in seen] == [(1, []), (2, [])]
    np.testing.assert_array_equal(seen[-1][1], samples.images)
    whole, previews = rc.load(tmp_path, mesh=mesh(devices)), []
    expected = rc.sample(whole, *request, **FEW, preview=lambda *x: previews.append(x), every=1)
    assert on_devices() == ["unet", "vae"]
    assert_same(samples, expected)
    assert np.abs(seen[0][1].astype(int) - previews[0][1]).max() <= 1


@pytest.mark.parametrize("where", ["device", "host"])
def test_parameters_outside_the_mesh_are_used_in_place(saved, expected, where):
    """On one of several devices, as given by a sharding, or as numpy arrays."""
    device = jax.devices()[2]
    pipe = rc.load(saved, sharding=jax.sharding.SingleDeviceSharding(device))
    assert jax.tree.leaves(dict(pipe.params))[0].devices() == {device}
    if where == "host":
        pipe = pipe.replace(params=jax.device_get(dict(pipe.params)))
    assert_same(rc.sample(pipe, PROMPTS, SUBJECTS, [1, 2, 3], **FEW), expected)


def test_load_replicates_parameters_on_all_devices(micro_pipe, tmp_path):
    rc.save(micro_pipe, tmp_path)
    kernel = rc.load(tmp_path).params["unet"]["conv_in"]["kernel"]
    assert len(kernel.sharding.device_set) == 8 and kernel.sharding.is_fully_replicated
