"""The transformer that follows a residual block in the UNet (diffusers `Transformer2DModel`)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from realcustom_jax.models.attention import CrossAttention, LayerContext, SelfAttention, VisualControl
from realcustom_jax.models.flash import FlashAttention
from realcustom_jax.models.layers import GroupNorm, LayerNorm, gelu
from realcustom_jax.models.remat import call, policed


class _GEGLU(nn.Module):
    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        value, gate = jnp.split(nn.Dense(2 * self.features, dtype=self.dtype, name="proj")(x), 2, axis=-1)
        return value * gelu(gate)


class _FeedForward(nn.Module):
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        # Over one axis of all pixels: where a kernel's gradient sums over two, XLA's CPU backend transposes
        # the widest activations first.
        hidden = _GEGLU(4 * channels, self.dtype, name="net_0")(x.reshape(-1, channels))
        return nn.Dense(channels, dtype=self.dtype, name="net_2")(hidden).reshape(x.shape)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to text and subjects, feed-forward; each with LayerNorm and a skip."""

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
        return self.attn2.encode(text, visual)

    def __call__(
        self, x: Array, context: LayerContext, control: VisualControl | None, words: Array | None
    ) -> tuple[Array, Array | None, Array | None]:
        """x: (B, h·w, C) → the same shape, the word maps, and the self-attention (B, h·w, h·w) or None."""
        self_attention = None
        if self.self_attention:
            attended, self_attention = self.attn1(self.norm1(x))
            x = x + attended
        attended, word_maps = self.attn2(self.norm2(x), context, control, words)
        x = x + attended
        return x + self.ff(self.norm3(x)), word_maps, self_attention


class Transformer2D(nn.Module):
    """`depth` transformer blocks over the pixels of a feature map, projected in and out, with a skip.

    With `scan` the blocks are one loop, whose body compiles once. Their parameters stay apart, each under its
    own name, and are only put next to each other for the loop.
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
        project = (
            (lambda: nn.Dense(self.features, dtype=self.dtype))
            if self.linear_projection
            else (lambda: nn.Conv(self.features, (1, 1), dtype=self.dtype))
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
        return tuple(block.encode(text, visual) for block in self.transformer_blocks)

    def __call__(
        self,
        x: Array,
        contexts: tuple[LayerContext, ...],
        control: VisualControl | None,
        words: Array | None,
        attentions: bool,
    ) -> tuple[Array, list[Array], list[Array]]:
        """x: (B, h, w, C) → the same shape, and of each block: the word map (B, R, h, w) when `words` are
        given, and with `attentions` the self-attention (B, h·w, h·w) where it has one."""
        b, h, w, c = x.shape
        y = self.proj_in(self.norm(x)).reshape(b, h * w, c)
        looped = self.scan and self.depth > 1 and not self.is_initializing()
        blocks = self._loop if looped else self._one_by_one
        y, maps, self_attentions = blocks(y, contexts, control, words, attentions)
        maps = [word_maps.reshape(b, -1, h, w) for word_maps in maps if word_maps is not None]
        return x + self.proj_out(y.reshape(b, h, w, c)), maps, [a for a in self_attentions if a is not None]

    def _one_by_one(
        self,
        y: Array,
        contexts: tuple[LayerContext, ...],
        control: VisualControl | None,
        words: Array | None,
        attentions: bool,
    ) -> tuple[Array, list[Array | None], list[Array | None]]:
        maps, self_attentions = [], []
        for block, context in zip(self.transformer_blocks, contexts, strict=True):
            y, word_maps, self_attention = call(block, self.remat, y, context, control, words)
            maps.append(word_maps)
            self_attentions.append(self_attention if attentions else None)
        return y, maps, self_attentions

    def _loop(
        self,
        y: Array,
        contexts: tuple[LayerContext, ...],
        control: VisualControl | None,
        words: Array | None,
        attentions: bool,
    ) -> tuple[Array, Sequence[Array], Sequence[Array]]:
        block = self.transformer_blocks[0].clone(parent=None)

        def step(y: Array, of_block: Any) -> tuple[Array, Any]:
            params, context = of_block
            y, word_maps, self_attention = block.apply({"params": params}, y, context, control, words)
            return y, (word_maps, self_attention if attentions else None)

        of_blocks = [
            (b.variables["params"], c) for b, c in zip(self.transformer_blocks, contexts, strict=True)
        ]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *of_blocks)
        y, (maps, self_attentions) = jax.lax.scan(policed(step, self.remat), y, stacked)
        return y, () if maps is None else maps, () if self_attentions is None else self_attentions
