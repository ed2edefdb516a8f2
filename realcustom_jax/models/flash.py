"""Self-attention over many pixels in one kernel on TPUs and GPUs: its probabilities never take memory."""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

# From so many pixels on the kernel pays; below, the probabilities are small.
FEWEST_PIXELS = 1024
# The kernel's tiles: their sides are multiples of the TPU's 128 lanes, and divide the number of pixels.
_LANES = 128
_LARGEST_TILE = 512
_HEADS = "tensor"  # the mesh axis that divides heads; all others divide images


@dataclasses.dataclass(frozen=True)
class FlashAttention:
    """softmax(QKᵀ/√d) V of many pixels in one kernel, forward and backward.

    "splash" is JAX's kernel for TPUs. The compiler cannot divide it among chips, so it runs on each chip's
    own part: within the caller's `shard_map` as it is, elsewhere within one over the bound mesh or the
    caller's (`jax.set_mesh`). "cudnn" is that of NVIDIA's library, which JAX divides by itself.

    Attributes:
      kernel: "splash" or "cudnn".
      mesh: the chips of the program, where they are known. Images are divided among the axes that the batch
        can be divided by, heads by "tensor".
      interpret: run splash's program on any device, slowly; for tests.
    """

    kernel: str = "splash"
    mesh: Mesh | None = None
    interpret: bool = False

    def takes(self, q: Array) -> bool:
        """Whether the kernel can run for these queries (B, N, H, D), and pays."""
        if q.shape[1] < FEWEST_PIXELS:
            return False
        if self.kernel == "cudnn":
            channels = q.shape[-1]
            return q.dtype in (jnp.bfloat16, jnp.float16) and channels % 8 == 0 and channels <= 128
        return self._in_shard_map() or self._mesh() is not None or jax.device_count() == 1

    def __call__(self, q: Array, k: Array, v: Array) -> Array:
        """All (B, N, H, D) → (B, N, H, D) of the dtype of `v`."""
        if self.kernel == "cudnn":
            return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
        mesh = self._mesh()
        if self._in_shard_map() or mesh is None:
            return self._of_a_chip(q, k, v)
        spec = _spec(mesh, q)
        divided = jax.shard_map(self._of_a_chip, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
        return divided(q, k, v)

    def _in_shard_map(self) -> bool:
        """Whether every axis of the caller's mesh is divided by a `shard_map` already."""
        around = jax.sharding.get_abstract_mesh()
        return not around.empty and set(around.manual_axes) == set(around.axis_names)

    def _mesh(self) -> Mesh | AbstractMesh | None:
        """Of the program, None where it is not known or where only some of its axes are left to divide."""
        around = jax.sharding.get_abstract_mesh()
        if around.empty:
            return self.mesh
        return None if around.manual_axes else around

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


def _spec(mesh: Mesh | AbstractMesh, q: Array) -> PartitionSpec:
    batch, _, heads, _ = q.shape
    images: list[str] = []
    for axis, size in mesh.shape.items():
        if axis != _HEADS and batch % (math.prod(mesh.shape[a] for a in images) * size) == 0:
            images.append(axis)
    by_heads = _HEADS in mesh.shape and heads % mesh.shape[_HEADS] == 0
    return PartitionSpec(tuple(images), None, _HEADS if by_heads else None, None)


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


def flash_attention(devices: Mesh, bind: bool = True) -> FlashAttention | None:
    """The kernel of the devices of a mesh, None where they have none.

    Args:
      devices: their mesh.
      bind: whether programs run on exactly this mesh. Unbound, the kernel runs where the program's mesh is
        known, and elsewhere on hosts with one device.
    """
    device = devices.devices.flat[0]
    if device.platform == "tpu":
        return FlashAttention("splash", devices if bind else None)
    capability = str(getattr(device, "compute_capability", ""))  # AMD's GPUs have names there
    of_nvidia = device.platform == "gpu" and re.fullmatch(r"\d+\.\d+", capability)
    if of_nvidia and float(capability) >= _CUDNN_CAPABILITY:
        return FlashAttention("cudnn")
    return None


_CUDNN_CAPABILITY = 8.0  # Ampere, the first that cuDNN's fused attention supports
