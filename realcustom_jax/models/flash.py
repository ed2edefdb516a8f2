"""Flash attention over many pixels on TPUs and GPUs: one kernel that never stores the probabilities."""

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

# With fewer pixels the probabilities take little memory, and the kernel does not pay off.
MIN_PIXELS = 1024
# Tile sides must be multiples of the TPU's 128 lanes, and must divide the number of pixels.
_LANES = 128
_LARGEST_TILE = 512
_HEADS = "tensor"  # the mesh axis that divides heads; the other axes divide images


@dataclasses.dataclass(frozen=True)
class FlashAttention:
    """softmax(QKᵀ/√d) V over many pixels in one kernel, forward and backward.

    "splash" is JAX's kernel for TPUs. The compiler cannot partition it, so it runs in a `shard_map`, and
    each chip computes its own part. If the caller already is in a `shard_map`, the kernel runs directly.
    Otherwise it opens one over the caller's mesh (`jax.set_mesh`) or over `mesh`. "cudnn" is the kernel of
    NVIDIA's cuDNN, which JAX partitions itself.

    Attributes:
      kernel: "splash" or "cudnn".
      mesh: the chips of the program, if known. The axis "tensor" divides heads; the other axes divide images
        if the batch is divisible by them.
      interpret: run splash in Pallas' interpreter, slowly and on any device; for tests.
    """

    kernel: str = "splash"
    mesh: Mesh | None = None
    interpret: bool = False

    def supports(self, q: Array) -> bool:
        """Whether the kernel supports these queries (B, N, H, D) and is faster than `attention`."""
        if q.shape[1] < MIN_PIXELS:
            return False
        if self.kernel == "cudnn":
            channels = q.shape[-1]
            # limits of cuDNN's fused attention
            return q.dtype in (jnp.bfloat16, jnp.float16) and channels % 8 == 0 and channels <= 128
        # On several chips of an unknown mesh, XLA would have to partition the kernel, which it cannot.
        return self._in_shard_map() or self._mesh() is not None or jax.device_count() == 1

    def __call__(self, q: Array, k: Array, v: Array) -> Array:
        """q, k, v (B, N, H, D) → (B, N, H, D) in the dtype of `v`."""
        if self.kernel == "cudnn":
            return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
        mesh = self._mesh()
        if self._in_shard_map() or mesh is None:
            return self._attend_on_chip(q, k, v)
        spec = _spec(mesh, q)
        # A Pallas kernel does not declare what `check_vma` checks.
        sharded = jax.shard_map(
            self._attend_on_chip, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
        )
        return sharded(q, k, v)

    def _in_shard_map(self) -> bool:
        """Whether a `shard_map` of the caller already divides every axis of its mesh."""
        context_mesh = jax.sharding.get_abstract_mesh()
        return not context_mesh.empty and set(context_mesh.manual_axes) == set(context_mesh.axis_names)

    def _mesh(self) -> Mesh | AbstractMesh | None:
        """Mesh of the program. None if it is unknown, or if a `shard_map` divides only some of its axes."""
        context_mesh = jax.sharding.get_abstract_mesh()
        if context_mesh.empty:
            return self.mesh
        return None if context_mesh.manual_axes else context_mesh

    def _attend_on_chip(self, q: Array, k: Array, v: Array) -> Array:
        """Splash attention on the arrays of one chip, (B, N, H, D) → (B, N, H, D)."""
        _, pixels, heads, channels = q.shape
        q = (q * channels**-0.5).astype(v.dtype)  # splash does not divide by √d
        padded = -(-pixels // _LANES) * _LANES  # rounded up to a multiple of the lanes
        kernel, segments = _kernel(heads, padded, self.interpret), None
        if padded > pixels:
            # Pixels attend only within their segment, so no pixel attends to the padding.
            q, k, v = (jnp.pad(x, ((0, 0), (0, padded - pixels), (0, 0), (0, 0))) for x in (q, k, v))
            segment_ids = (jnp.arange(padded) >= pixels).astype(jnp.int32)
            segments = splash.SegmentIds(q=segment_ids, kv=segment_ids)
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # (B, N, H, D) → (B, H, N, D)
        out = jax.vmap(kernel, in_axes=(0, 0, 0, None))(q, k, v, segments)
        return out.swapaxes(1, 2)[:, :pixels]


def _spec(mesh: Mesh | AbstractMesh, q: Array) -> PartitionSpec:
    """Sharding of q (B, N, H, D): images over the axes that divide B, heads over "tensor" if it divides H."""
    batch, _, heads, _ = q.shape
    images: list[str] = []
    # `shard_map` needs equal parts. An axis that does not divide the batch is left out: its chips repeat
    # work.
    for axis, size in mesh.shape.items():
        if axis != _HEADS and batch % (math.prod(mesh.shape[a] for a in images) * size) == 0:
            images.append(axis)
    heads_divisible = _HEADS in mesh.shape and heads % mesh.shape[_HEADS] == 0
    return PartitionSpec(tuple(images), None, _HEADS if heads_divisible else None, None)


def _kernel(heads: int, pixels: int, interpret: bool) -> Any:
    """The splash kernel for arrays (H, N, D) without a mask."""
    # Larger tiles read q, k and v fewer times; the largest that divides the pixels is used for all passes.
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
    """The attention kernel for the devices of a mesh; None if there is none.

    Args:
      devices: the mesh.
      bind: whether programs run on exactly this mesh. An unbound kernel runs only if the program's mesh is
        known, or if there is only one device.
    """
    device = devices.devices.flat[0]
    if device.platform == "tpu":
        return FlashAttention("splash", devices if bind else None)
    # NVIDIA's GPUs have a number such as "8.0"; AMD's have a name such as "gfx90a".
    capability = str(getattr(device, "compute_capability", ""))
    is_nvidia = device.platform == "gpu" and re.fullmatch(r"\d+\.\d+", capability)
    if is_nvidia and float(capability) >= _CUDNN_CAPABILITY:
        return FlashAttention("cudnn")
    return None


_CUDNN_CAPABILITY = 8.0  # Ampere, the oldest generation that cuDNN's fused attention supports
