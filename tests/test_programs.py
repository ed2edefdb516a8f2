"""Where the programs of a request run: batches over devices, offloading, decoding in tiles.

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
from realcustom_jax.inputs import encode
from realcustom_jax.models.vae_tiles import decode_in_tiles
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


@pytest.mark.parametrize(("count", "sizes"), [(7, [3, 3, 3]), (5, [3, 3]), (4, [2, 2]), (3, [3]), (1, [1])])
def test_slices_of_a_batch_share_one_program(micro_pipe, monkeypatch, count, sizes):
    """Of 3 images at most, the last filled up; each image is that of its latents decoded alone."""
    traced = []

    def spy(models, params, latents):  # called where a program is traced
        traced.append(len(latents))
        return original(models, params, latents)

    original, decode_alone = decode.decode_rows, jax.jit(decode.decode, static_argnums=0)
    latents = jax.random.normal(jax.random.key(count), (count, 8, 8, 4))
    alone = [
        np.asarray(decode_alone(micro_pipe.models, micro_pipe.params["vae"], one[None]))[0] for one in latents
    ]
    monkeypatch.setattr(decode, "decode_rows", spy)
    monkeypatch.setattr(decode, "_DECODED_AT_ONCE", 3 * 16 * 16 + 1)
    ran = []
    run = decode.run_rows
    monkeypatch.setattr(decode, "run_rows", lambda *x: (ran.append(len(x[-1])), run(*x))[1])
    images = decode.images_of(micro_pipe, latents)
    assert ran == sizes and traced == sizes[:1]
    assert images.shape == (count, 16, 16, 3) and np.abs(images.astype(int) - alone).max() <= 1
    with pytest.raises(rc.UserError, match=f"the result of request {count - 1} is not finite"):
        decode.images_of(micro_pipe, latents.at[-1].set(jnp.nan))


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


def test_black_is_encoded_once_a_pipeline(micro_pipe, monkeypatch):
    pipe, calls = micro_pipe.replace(), []
    encode_references = encode.reference_features
    monkeypatch.setattr(encode, "reference_features", lambda *x: (calls.append(1), encode_references(*x))[1])
    first, second = encode.black_features(pipe), encode.black_features(pipe)
    assert first is second and len(calls) == 1
    encode.black_features(pipe.replace())
    assert len(calls) == 2, "other parameters may lie in another pipeline"


@pytest.mark.parametrize("shape", [(16, 16), (40, 16), (37, 50)])
def test_tiles_are_the_whole_where_the_decoder_looks_only_near(shape):
    """A decoder that looks one latent around: tiles give the same but at their borders, which are blended."""
    latents = jax.random.normal(jax.random.key(0), (2, *shape, 3))

    def decode(z):
        blurred = jax.lax.conv_general_dilated(
            z, jnp.ones((3, 3, 1, 3)) / 9, (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3,
        )  # fmt: skip
        return jnp.repeat(jnp.repeat(blurred, 2, axis=1), 2, axis=2)

    whole, tiled = decode(latents), decode_in_tiles(decode, latents, 2, tile=16, overlap=4)
    assert tiled.shape == whole.shape
    difference = np.abs(np.asarray(tiled - whole))
    assert (difference > 1e-5).mean() < (0.25 if shape != (16, 16) else 1e-9)
    assert difference.max() < 0.25


def test_tiles_lie_where_their_latents_are():
    """A pointwise decoder of a ramp: every tile must be put at its own place, and none be missing."""
    ramp = jnp.arange(131.0)[:, None] + 1000 * jnp.arange(257.0)
    latents = jnp.broadcast_to(ramp[None, ..., None], (1, 131, 257, 3))

    def decode(z):
        return jnp.repeat(jnp.repeat(z, 8, axis=1), 8, axis=2)

    # Of float32 sums of at most four weights, and values up to 256,130.
    np.testing.assert_allclose(decode_in_tiles(decode, latents, 8), decode(latents), rtol=1e-5)


@pytest.mark.parametrize("parameters", ["closed over", "arguments"])
@pytest.mark.parametrize("devices", [1, 4])
def test_requests_are_encoded_inside_a_callers_jit(saved, parameters, devices):
    """And what it traced stays out of the pipeline's cache, which later calls read."""
    pipe = rc.load(saved, mesh=mesh(devices))

    def encode(params):
        own = pipe if parameters == "closed over" else pipe.replace(params=params)
        made = rc.make_conditioning(own, PROMPTS[:1], SUBJECTS[:1], [""], pipe.defaults)
        return made.text, made.features

    params = jax.device_put(dict(pipe.params), jax.devices()[0])
    traced = jax.jit(encode)(params)
    assert "black" not in pipe.cache
    expected = encode(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), traced, expected)


@pytest.mark.parametrize("where", ["device", "host"])
def test_parameters_elsewhere_than_on_the_mesh_are_used_where_they_are(saved, expected, where):
    """On one of several devices, as a sharding for all asks for, or as numpy arrays."""
    device = jax.devices()[2]
    pipe = rc.load(saved, sharding=jax.sharding.SingleDeviceSharding(device))
    assert jax.tree.leaves(dict(pipe.params))[0].devices() == {device}
    if where == "host":
        pipe = pipe.replace(params=jax.device_get(dict(pipe.params)))
    assert_same(rc.sample(pipe, PROMPTS, SUBJECTS, [1, 2, 3], **FEW), expected)
