"""Where the programs of a request run: batches over devices, offloading.

Batches of another size add float32 in another order, which may round a pixel to its neighbour.
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


def divide(path: str, shape: tuple[int, ...], over: Mesh) -> NamedSharding:
    by_inputs = path.endswith("kernel") and shape[-2] % over.shape["fsdp"] == 0
    return NamedSharding(
        over, PartitionSpec(*[None] * (len(shape) - 2), "fsdp") if by_inputs else PartitionSpec()
    )


@pytest.mark.parametrize("layout", ["one", "two", "eight", "divided"])
def test_a_batch_is_divided_among_the_devices(saved, expected, layout):
    """3 requests on 1, 2 (the last row filled up) and 3 of 8 devices, and with divided parameters."""
    over = {"one": mesh(1), "two": mesh(2), "eight": None, "divided": mesh(2, 4)}[layout]
    sharding = functools.partial(divide, over=over) if layout == "divided" else None
    pipe = rc.load(saved, mesh=over, sharding=sharding)
    assert pipe.mesh.size == {"one": 1, "two": 2, "eight": 8, "divided": 8}[layout]
    assert_same(rc.sample(pipe, PROMPTS, SUBJECTS, [1, 2, 3], **FEW), expected)


def test_only_as_many_devices_work_as_have_rows(saved, monkeypatch):
    used, restrict = [], devices_module._restrict
    monkeypatch.setattr(
        devices_module, "_restrict", lambda x, over: (used.append(over.size), restrict(x, over))[1]
    )
    pipe = rc.load(saved)
    for count, devices in ((1, 1), (6, 6), (8, 8), (9, 5)):  # 9 rows are 2 on each of 5
        images = decode.images_of(pipe, jnp.zeros((count, 8, 8, 4)))
        assert len(images) == count and used.pop() == devices


def test_an_offloaded_pipeline_gives_the_same_and_keeps_nothing(saved, expected):
    pipe = rc.load(saved, mesh=mesh(1), offload=True)
    before = len(jax.live_arrays())
    assert pipe.offloaded and set(pipe.params) == set(rc.load(saved).params)
    samples = rc.sample(pipe, PROMPTS, SUBJECTS, [1, 2, 3], **FEW)
    assert_same(samples, expected)
    # No parameter is left, only the features of the black image, and the masks that were returned.
    assert len(jax.live_arrays()) <= before + len(pipe.cache["black"]) + 1


@pytest.mark.parametrize("devices", [1, 2])
def test_a_preview_of_an_offloaded_pipeline_puts_the_unet_away(flat_pipe, tmp_path, monkeypatch, devices):
    """It never lies beside the VAE, and comes back where steps are left; the images are the same."""
    rc.save(flat_pipe, tmp_path)
    # A shape that no other array has.
    kernels = {
        "unet": ("time_embedding", "linear_1"),
        "vae": ("decoder", "mid_block", "attentions_0", "to_q"),
    }
    shapes = {name: functools.reduce(lambda x, key: x[key], path, flat_pipe.params[name])["kernel"].shape
              for name, path in kernels.items()}  # fmt: skip
    asked, seen, get = [], [], Offloaded.__getitem__

    def there() -> list[str]:
        return [name for name, shape in shapes.items() if shape in {x.shape for x in jax.live_arrays()}]

    def spy(params, name):
        if name in shapes:
            asked.append((name, *there()))
        return get(params, name)

    monkeypatch.setattr(Offloaded, "__getitem__", spy)
    request = (PROMPTS, SUBJECTS, [1, 2, 3])
    pipe = rc.load(tmp_path, mesh=mesh(devices), offload=True)
    assert there() == []
    samples = rc.sample(pipe, *request, **FEW, preview=lambda *x: seen.append((*x, there())), every=1)
    assert asked == [(name,) for name in ("unet", "vae", "unet", "vae", "vae")]
    assert [(step, names) for step, _, names in seen] == [(1, []), (2, [])]
    np.testing.assert_array_equal(seen[-1][1], samples.images)
    whole, previews = rc.load(tmp_path, mesh=mesh(devices)), []
    expected = rc.sample(whole, *request, **FEW, preview=lambda *x: previews.append(x), every=1)
    assert there() == ["unet", "vae"]
    assert_same(samples, expected)
    assert np.abs(seen[0][1].astype(int) - previews[0][1]).max() <= 1


@pytest.mark.parametrize("where", ["device", "host"])
def test_parameters_elsewhere_than_on_the_mesh_are_used_where_they_are(saved, expected, where):
    """On one of several devices, as a sharding for all asks for, or as numpy arrays."""
    device = jax.devices()[2]
    pipe = rc.load(saved, sharding=jax.sharding.SingleDeviceSharding(device))
    assert jax.tree.leaves(dict(pipe.params))[0].devices() == {device}
    if where == "host":
        pipe = pipe.replace(params=jax.device_get(dict(pipe.params)))
    assert_same(rc.sample(pipe, PROMPTS, SUBJECTS, [1, 2, 3], **FEW), expected)


def test_loading_puts_parameters_on_all_devices(micro_pipe, tmp_path):
    rc.save(micro_pipe, tmp_path)
    kernel = rc.load(tmp_path).params["unet"]["conv_in"]["kernel"]
    assert len(kernel.sharding.device_set) == 8 and kernel.sharding.is_fully_replicated
