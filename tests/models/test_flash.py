"""The flash attention kernel, interpreted on the CPU, against plain attention.

Tolerance 1e-5: float32 sums in another order; values are of order 1.
"""

import contextlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from realcustom_jax.common.kernel_cost import kernel_cost
from realcustom_jax.models.attention import SelfAttention, attend, attention_probabilities, pixel_attention
from realcustom_jax.models.family import Models
from realcustom_jax.models.flash import MIN_PIXELS, FlashAttention, _spec, flash_attention
from realcustom_jax.models.vae import VAE


def mesh(**axes: int) -> Mesh:
    count = int(np.prod(list(axes.values())))
    return Mesh(np.asarray(jax.devices()[:count]).reshape(*axes.values()), tuple(axes))


def plain(q, k, v):
    return attend(attention_probabilities(q, k), v)


def qkv(pixels: int, batch: int = 2, heads: int = 2, channels: int = 8):
    rng = np.random.default_rng(pixels)
    return (jnp.asarray(rng.standard_normal((batch, pixels, heads, channels)), jnp.float32) for _ in range(3))


def test_sharded_kernel_values_and_gradients_equal_plain_attention():
    """200 pixels do not fill a tile, so the padding must not be attended to."""
    flash = FlashAttention(mesh=mesh(data=2, tensor=2), interpret=True)
    q, k, v = qkv(200)
    weights = jax.random.normal(jax.random.key(0), q.shape)

    def loss(attention, *x):
        out = attention(*x)
        return (out * weights).sum(), out

    found, wanted = (
        jax.jit(jax.value_and_grad(lambda *x, f=f: loss(f, *x), argnums=(0, 1, 2), has_aux=True))(q, k, v)
        for f in (flash, plain)
    )
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("axes", "batch", "heads", "spec"),
    [
        ({"data": 2, "fsdp": 2, "tensor": 2}, 4, 2, (("data", "fsdp"), None, "tensor", None)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, 2, 3, (("data",), None, None, None)),
        ({"data": 4}, 3, 2, ((), None, None, None)),
    ],
)
def test_kernel_shards_only_divisible_axes(axes, batch, heads, spec):
    flash = FlashAttention(mesh=mesh(**axes), interpret=True)
    q, k, v = qkv(128, batch, heads)
    assert _spec(flash.mesh, q) == PartitionSpec(*spec)
    np.testing.assert_allclose(jax.jit(flash)(q, k, v), plain(q, k, v), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pixels", [64, MIN_PIXELS])
def test_self_attention_uses_kernel_for_many_pixels(pixels, monkeypatch):
    """Outputs and probabilities are equal; the kernel runs only from `MIN_PIXELS` on."""
    seen, call = [], FlashAttention.__call__
    monkeypatch.setattr(
        FlashAttention, "__call__", lambda self, *x: (seen.append(x[0].shape), call(self, *x))[1]
    )
    x = np.random.default_rng(0).standard_normal((1, pixels, 16)).astype(np.float32)
    params = SelfAttention(2).init(jax.random.key(0), x)
    outputs = [
        jax.jit(SelfAttention(2, flash=flash).apply)(params, x)
        for flash in (None, FlashAttention(mesh=mesh(data=1), interpret=True))
    ]
    assert seen == ([(1, pixels, 2, 8)] if pixels >= MIN_PIXELS else [])
    for ours, theirs in zip(*outputs, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def test_vae_with_kernel_gives_equal_latents(micro_configs, micro_params):
    images = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)
    config = Models.from_configs(micro_configs).vae_config
    means = [
        jax.jit(VAE(config, flash=flash).apply, static_argnames="method")(
            {"params": micro_params["vae"]}, images, method="encode"
        )
        for flash in (None, FlashAttention(mesh=mesh(data=1), interpret=True))
    ]
    assert means[0].shape[1:3] == (32, 32)
    assert not np.array_equal(*means), "both runs used the same program"
    np.testing.assert_allclose(*means, atol=1e-5, rtol=1e-5)


# Lines of a program for a v5e, shortened.
FORWARD = (
    "  %splash_mha_fwd_residuals.1 = (f32[2,512,40]{2,1,0:T(8,128)}, bf16[2,8,4096,40]{3,2,1,0:T(8,128)}) "
    'custom-call(%c, %b.1, %b.2), custom_call_target="tpu_custom_call", operand_layout_constraints={'
    "s8[1,8,8]{2,1,0}, s8[1,8,8]{2,1,0}, bf16[2,8,4096,40]{3,2,1,0}, bf16[2,8,4096,40]{3,2,1,0}}, metadata={}"
)
BACKWARD = FORWARD.replace("splash_mha_fwd_residuals", "splash_mha_dkv_no_residuals")
OF_ONE_HEAD = FORWARD.replace("bf16[2,8,4096,40]{3,2,1,0}", "bf16[1,16384,512]{2,1,0}")


def test_kernel_cost_is_parsed_from_program():
    """2 images of 8 heads: 2·N·N·D operations a product; 40 channels keep 128 lanes busy."""
    product = 2 * 2 * 8 * 4096**2
    assert kernel_cost(FORWARD) == (2 * product * 40, 2 * product * 128)
    assert kernel_cost(f"{FORWARD}\n{BACKWARD}\n") == (7 * product * 40, 7 * product * 128)
    assert kernel_cost(OF_ONE_HEAD) == (2 * 2 * 16384**2 * 512,) * 2
    assert kernel_cost('  %x = f32[2]{0} custom-call(%y), custom_call_target="other"') == (0.0, 0.0)


def test_cpu_mesh_has_no_kernel():
    assert flash_attention(mesh(data=2)) is None


@pytest.mark.parametrize(
    ("platform", "capability", "kernel"),
    [
        ("tpu", None, "splash"),
        ("gpu", "9.0", "cudnn"),
        ("gpu", "7.5", None),
        ("gpu", "gfx90a", None),
        ("cpu", None, None),
    ],
)
def test_kernel_depends_on_device_kind(platform, capability, kernel):
    device = types.SimpleNamespace(platform=platform, compute_capability=capability)
    devices = types.SimpleNamespace(devices=np.asarray([device]))
    found = flash_attention(devices, bind=False)
    assert (found and found.kernel) == kernel


@pytest.mark.parametrize(
    ("pixels", "channels", "dtype", "supported"),
    [
        (4096, 64, jnp.bfloat16, True), (4096, 64, jnp.float32, False), (4096, 160, jnp.bfloat16, False),
        (4096, 20, jnp.bfloat16, False), (256, 64, jnp.bfloat16, False),
    ],
)  # fmt: skip
def test_cudnn_kernel_accepts_only_supported_inputs(pixels, channels, dtype, supported):
    q = jax.ShapeDtypeStruct((1, pixels, 2, channels), dtype)
    assert FlashAttention("cudnn").supports(q) is supported


UNBOUND = FlashAttention(interpret=True)


@pytest.mark.parametrize("around", ["jit", "vmap", "set_mesh", "shard_map", "partly"])
def test_unbound_kernel_works_inside_callers_program(around):
    """On four of eight devices. The kernel runs where the program's mesh is known, else chunked attention."""
    devices = mesh(data=2, other=2)
    rows = PartitionSpec("data")
    q, k, v = (jax.device_put(x, NamedSharding(devices, rows)) for x in qkv(1024, heads=1))

    def run(*x):
        return pixel_attention(*x, UNBOUND)

    if around == "vmap":
        run = jax.vmap(lambda *x: pixel_attention(*(y[None] for y in x), UNBOUND)[0])
    elif around == "shard_map":
        run = jax.shard_map(run, mesh=devices, in_specs=rows, out_specs=rows, check_vma=False)
    elif around == "partly":
        run = jax.shard_map(
            run, mesh=devices, in_specs=rows, out_specs=rows, check_vma=False, axis_names={"data"}
        )
    with jax.set_mesh(devices) if around == "set_mesh" else contextlib.nullcontext():
        program = jax.jit(run).trace(q, k, v)
        found = jax.jit(run)(q, k, v)
    assert ("pallas" in str(program.jaxpr)) == (around in ("set_mesh", "shard_map"))
    np.testing.assert_allclose(found, plain(q, k, v), atol=1e-5, rtol=1e-5)
