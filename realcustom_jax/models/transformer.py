"""The transformer that follows a residual block in the UNet (diffusers `Transformer2DModel`)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from realcustom_jax.models.attention import CrossAttention, LayerContext, SelfAttention, VisualControl
from realcustom_jax.models.flash import FlashAttention
from realcustom_jax.models.layers import Conv, Dense, GroupNorm, LayerNorm, gelu
from realcustom_jax.models.remat import remat_call, remat_scan_body


class _GEGLU(nn.Module):
    """Linear layer whose output is gated by GELU (arXiv 2002.05202): (…, C) → (…, features)."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        value, gate = jnp.split(Dense(2 * self.features, dtype=self.dtype, name="proj")(x), 2, axis=-1)
        return value * gelu(gate)


class _FeedForward(nn.Module):
    """GEGLU to four times the width, and a linear layer back: (B, h·w, C) → (B, h·w, C)."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        # (B, h·w, C) → (B·h·w, C). If the gradient of a kernel sums over two axes, XLA's CPU backend first
        # transposes these activations, the widest of the network.
        hidden = _GEGLU(4 * channels, self.dtype, name="net_0")(x.reshape(-1, channels))
        return Dense(channels, dtype=self.dtype, name="net_2")(hidden).reshape(x.shape)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to text and subjects, and feed-forward, each with LayerNorm and a skip.

    The names are those of diffusers' `BasicTransformerBlock`.
    """

    features: int
    heads: int
    self_attention: bool = True
    visual: bool = False
    dtype: jnp.dtype = jnp.float32
    flash: FlashAttention | None = None

    def setup(self):
        if self.self_attention:
            self.norm1 = LayerNorm(epsilon=1e-5, dtype=self.dtype)
            self.attn1 = SelfAttention(self.heads, self.dtype, self.flash)
        self.norm2 = LayerNorm(epsilon=1e-5, dtype=self.dtype)
        self.attn2 = CrossAttention(self.features, self.heads, self.visual, self.dtype)
        self.norm3 = LayerNorm(epsilon=1e-5, dtype=self.dtype)
        self.ff = _FeedForward(self.dtype)

    def encode(self, text: Array, visual: Array | None) -> LayerContext:
        """Keys and values of the cross-attention; see `CrossAttention.encode`."""
        return self.attn2.encode(text, visual)

    def __call__(
        self, x: Array, context: LayerContext, control: VisualControl | None, words: Array | None
    ) -> tuple[Array, Array | None, Array | None]:
        """One block: x (B, h·w, C) → the same shape, word maps and self-attention.

        Arguments as in `CrossAttention`. The word maps are (B, R, h·w), the self-attention is
        (B, h·w, h·w); each may be None.
        """
        self_attention = None
        if self.self_attention:
            attended, self_attention = self.attn1(self.norm1(x))
            x = x + attended
        attended, word_maps = self.attn2(self.norm2(x), context, control, words)
        x = x + attended
        return x + self.ff(self.norm3(x)), word_maps, self_attention


class Transformer2D(nn.Module):
    """`depth` transformer blocks over the pixels of a feature map, with projections in and out and a skip.

    With `scan` the blocks run as one loop, and its body is compiled once. The parameters keep their own
    names; they are stacked only for the loop.
    """

    features: int
    heads: int
    depth: int = 1
    linear_projection: bool = False
    self_attention: bool = True
    visual: bool = False
    groups: int = 32
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    flash: FlashAttention | None = None
    scan: bool = False

    def setup(self):
        self.norm = GroupNorm(self.groups, 1e-6, self.dtype)
        # SDXL has linear projections, SD1.5 1×1 convolutions. They compute the same; only the shapes differ.
        project = (
            (lambda: Dense(self.features, dtype=self.dtype))
            if self.linear_projection
            else (lambda: Conv(self.features, (1, 1), dtype=self.dtype))
        )
        self.proj_in = project()
        self.transformer_blocks = [
            TransformerBlock(
                self.features, self.heads, self.self_attention, self.visual, self.dtype, self.flash
            )
            for _ in range(self.depth)
        ]
        self.proj_out = project()

    def encode(self, text: Array, visual: Array | None) -> tuple[LayerContext, ...]:
        """Keys and values of each block; see `CrossAttention.encode`."""
        return tuple(block.encode(text, visual) for block in self.transformer_blocks)

    def __call__(
        self,
        x: Array,
        contexts: tuple[LayerContext, ...],
        control: VisualControl | None,
        words: Array | None,
        attentions: bool,
    ) -> tuple[Array, list[Array], list[Array]]:
        """Run the blocks.

        Args:
          x: (B, h, w, C) feature map.
          contexts: one per block.
          control, words: as in `CrossAttention`.
          attentions: whether to return the self-attention.

        Returns:
          (B, h, w, C); a word map (B, R, h, w) per block if `words` are given; with `attentions`, the
          self-attention (B, h·w, h·w) of each block that has one.
        """
        b, h, w, c = x.shape
        y = self.proj_in(self.norm(x)).reshape(b, h * w, c)  # (B, h, w, C) → (B, h·w, C)
        # The scan reads the parameters of each block, which must exist before.
        scanned = self.scan and self.depth > 1 and not self.is_initializing()
        run_blocks = self._scan_blocks if scanned else self._unroll_blocks
        y, maps, self_attentions = run_blocks(y, contexts, control, words, attentions)
        # (B, R, h·w) → (B, R, h, w)
        maps = [word_maps.reshape(b, -1, h, w) for word_maps in maps if word_maps is not None]
        return x + self.proj_out(y.reshape(b, h, w, c)), maps, [a for a in self_attentions if a is not None]

    def _unroll_blocks(
        self,
        y: Array,
        contexts: tuple[LayerContext, ...],
        control: VisualControl | None,
        words: Array | None,
        attentions: bool,
    ) -> tuple[Array, list[Array | None], list[Array | None]]:
        """The blocks one after another; each is compiled by itself."""
        maps, self_attentions = [], []
        for block, context in zip(self.transformer_blocks, contexts, strict=True):
            y, word_maps, self_attention = remat_call(block, self.remat, y, context, control, words)
            maps.append(word_maps)
            self_attentions.append(self_attention if attentions else None)
        return y, maps, self_attentions

    def _scan_blocks(
        self,
        y: Array,
        contexts: tuple[LayerContext, ...],
        control: VisualControl | None,
        words: Array | None,
        attentions: bool,
    ) -> tuple[Array, Sequence[Array], Sequence[Array]]:
        """The blocks as one `lax.scan` over their stacked parameters and contexts."""
        # An unbound copy: the loop body applies it to the parameters of each block.
        block = self.transformer_blocks[0].clone(parent=None)

        def step(y: Array, inputs: Any) -> tuple[Array, Any]:
            params, context = inputs
            outputs: Any = block.apply({"params": params}, y, context, control, words)
            y, word_maps, self_attention = outputs
            return y, (word_maps, self_attention if attentions else None)

        block_inputs = [
            (b.variables["params"], c) for b, c in zip(self.transformer_blocks, contexts, strict=True)
        ]
        # depth × (…) → (depth, …) in every leaf
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *block_inputs)
        y, (maps, self_attentions) = jax.lax.scan(remat_scan_body(step, self.remat), y, stacked)
        return y, () if maps is None else maps, () if self_attentions is None else self_attentions
