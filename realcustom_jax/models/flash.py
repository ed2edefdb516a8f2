"""Self-attention over many pixels in one kernel on TPUs, whose probabilities never leave the chip's core."""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# From so many pixels on the kernel pays; below, the probabilities are small.
FEWEST_PIXELS = 1024
# The kernel's tiles: their sides are multiples of the TPU's 128 lanes, and divide the number of pixels.
_LANES = 128
_LARGEST_TILE = 512
# Of the matrix products of N×N by N×D operations each: QKᵀ and PV; backward QKᵀ again, dV, dP, dQ and dK.
_PRODUCTS = {"fwd": 2, "dkv": 5}
_IN_PROGRAM = re.compile(
    r"%splash_mha_(fwd|dkv)\S* = .*operand_layout_constraints=\{(?:s8\[\S* )*\w+\[([\d,]+)\]"
)
_HEADS = "tensor"  # the mesh axis that divides heads; all others divide images


@dataclasses.dataclass(frozen=True)
class FlashAttention:
    """softmax(QKᵀ/√d) V of many pixels by JAX's splash attention, forward and backward.

    The compiler cannot divide a kernel among chips, so the division is spelt out here.

    Attributes:
      mesh: the chips. Images are divided among the axes that the batch can be divided by, heads by "tensor".
      interpret: run the kernel's program on any device, slowly; for tests.
    """

    mesh: Mesh
    interpret: bool = False

    def takes(self, pixels: int) -> bool:
        """Whether this is the way for so many pixels."""
        return pixels >= FEWEST_PIXELS

    def __call__(self, q: Array, k: Array, v: Array) -> Array:
        """All (B, N, H, D) → (B, N, H, D) of the dtype of `v`."""
        spec = self._spec(*q.shape)
        divided = jax.shard_map(
            self._of_a_chip, mesh=self.mesh, in_specs=spec, out_specs=spec, check_vma=False
        )
        return divided(q, k, v)

    def _spec(self, batch: int, pixels: int, heads: int, channels: int) -> PartitionSpec:
        images = []
        for axis, size in self.mesh.shape.items():
            if axis != _HEADS and batch % (math.prod(self.mesh.shape[a] for a in images) * size) == 0:
                images.append(axis)
        by_heads = _HEADS in self.mesh.shape and heads % self.mesh.shape[_HEADS] == 0
        return PartitionSpec(tuple(images), None, _HEADS if by_heads else None, None)

    def _of_a_chip(self, q: Array, k: Array, v: Array) -> Array:
        _, pixels, heads, channels = q.shape
        q = (q * channels**-0.5).astype(v.dtype)
        filled = -(-pixels // _LANES) * _LANES
        kernel, segments = _kernel(heads, filled, self.interpret), None
        if filled > pixels:  # pixels attend to those of their own segment: the filling to itself
            q, k, v = (jnp.pad(x, ((0, 0), (0, filled - pixels), (0, 0), (0, 0))) for x in (q, k, v))
            of_pixel = (jnp.arange(filled) >= pixels).astype(jnp.int32)
            segments = splash.SegmentIds(q=of_pixel, kv=of_pixel)
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
        out = jax.vmap(kernel, in_axes=(0, 0, 0, None))(q, k, v, segments)
        return out.swapaxes(1, 2)[:, :pixels]


def _kernel(heads: int, pixels: int, interpret: bool) -> Any:
    tile = next(size for size in (_LARGEST_TILE, 2 * _LANES, _LANES) if pixels % size == 0)
    sizes = splash.BlockSizes(
        block_q=tile,
        block_kv=tile,
        block_kv_compute=tile,
        block_q_dkv=tile,
        block_kv_dkv=tile,
        block_kv_dkv_compute=tile,
        use_fused_bwd_kernel=True,
    )
    full = splash_attention_mask.FullMask((pixels, pixels))
    return splash.make_splash_mha(
        mask=splash_attention_mask.MultiHeadMask([full] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )


def kernel_cost(program: str) -> tuple[float, float]:
    """What a chip computes in the kernels of a compiled program, of which the compiler itself knows nothing.

    Args:
      program: its text, as the TPU compiler gives it. Kernels within loops count once.

    Returns:
      operations, and those of them that a matrix unit of 128 lanes is busy with: fewer channels fill it up
      only in part. At the chip's peak the second number takes the least time that the kernels can take.
    """
    operations = busy = 0.0
    for kind, shape in _IN_PROGRAM.findall(program):
        *images, pixels, channels = map(int, shape.split(","))
        product = 2.0 * math.prod(images) * pixels**2
        operations += _PRODUCTS[kind] * product * channels
        busy += _PRODUCTS[kind] * product * (-(-channels // _LANES) * _LANES)
    return operations, busy


def flash_attention(where: Mesh | Any) -> FlashAttention | None:
    """For the devices of a mesh, or of parameters that lie on some; None where they are no TPUs."""
    if not isinstance(where, Mesh):
        sharding = next(iter(jax.tree.leaves(where))).sharding
        if isinstance(sharding, NamedSharding):
            where = sharding.mesh
        else:
            where = Mesh(sorted(sharding.device_set, key=lambda device: device.id)[:1], ("data",))
    return FlashAttention(where) if where.devices.flat[0].platform == "tpu" else None
