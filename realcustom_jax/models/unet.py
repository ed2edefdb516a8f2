"""The denoising UNet of SD1.5 and SDXL with visual cross-attention, in two calls.

`encode_context` computes everything that does not depend on the latents, once; `__call__` is one denoising
pass. Training and sampling use the same two. Parameter names follow diffusers; the added ones are
`to_k_vision`, `to_v_vision` in every cross-attention, `encoder_hidden_states_vision_projection`, `scoring`.
"""

import functools
from collections.abc import Iterator

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from realcustom_jax.common.errors import UserError
from realcustom_jax.models.attention import LayerContext, VisualControl
from realcustom_jax.models.config import RealCustomConfig, UNetConfig
from realcustom_jax.models.flash import FlashAttention
from realcustom_jax.models.layers import (
    Downsample,
    GroupNorm,
    ResnetBlock,
    TimeEmbedding,
    Upsample,
    sinusoidal_embedding,
)
from realcustom_jax.models.projector import make_projector
from realcustom_jax.models.remat import call
from realcustom_jax.models.resize import resize_mask
from realcustom_jax.models.scoring import AdaptiveScoring, TokenSelection, keep_top_tokens
from realcustom_jax.models.transformer import Transformer2D


@flax.struct.dataclass
class Context:
    """What the UNet needs of prompt and references; every leaf has the batch first.

    Attributes:
      layers: for each transformer, in running order (down, mid, up), its blocks' keys and values.
      text: (B, n_t, C_t) text tokens f_t.
      added: (B, C_emb) SDXL's embedding of pooled text and sizes, or None.
      visual: (B, R, N, C_i) visual tokens f_i, the projector's output, or None in a text-only context.
      flags: (B, R) float, 1 for a subject, 0 for an empty slot; None in a text-only context.
      strengths: (B, R) float, factor on what each subject adds; None in a text-only context.
      present: (B, R, N) whether a visual token is one and not padding; None for all.
    """

    layers: tuple[tuple[LayerContext, ...], ...]
    text: Array
    added: Array | None = None
    visual: Array | None = None
    flags: Array | None = None
    strengths: Array | None = None
    present: Array | None = None

    def text_only(self) -> "Context":
        """The same without subjects, for the guidance branch."""
        layers = jax.tree.map(
            lambda layer: LayerContext(layer.text_k, layer.text_v),
            self.layers,
            is_leaf=lambda x: isinstance(x, LayerContext),
        )
        return self.replace(layers=layers, visual=None, flags=None, strengths=None, present=None)


@flax.struct.dataclass
class Aux:
    """What a pass tells besides ε.

    Attributes:
      word_maps: one (B, R, h, w) for each cross-attention in running order; empty unless asked for.
      scores: (B, R, N), S of eq. 8, or None without scoring.
      self_attention: (B, h·w, h·w) self-attention probabilities of one level, from pixel to pixel, averaged
        over its heads and layers; None unless asked for.
    """

    word_maps: tuple[Array, ...] = ()
    scores: Array | None = None
    self_attention: Array | None = None


class _Stage(nn.Module):
    """The residual blocks of one resolution, each followed by a transformer where the level has them.

    Down stages push every output on the stack of skips, up stages pop one before every residual block; the
    middle has one transformer between its two residual blocks.
    """

    config: UNetConfig
    level: int  # its channels, heads, depth and self-attention apply
    kind: str  # "down", "mid" or "up"
    visual: bool
    dtype: jnp.dtype
    remat: str
    flash: FlashAttention | None
    scan: bool

    def setup(self):
        c, level, kind = self.config, self.level, self.kind
        features = c.block_out_channels[level]
        resnets = {"down": c.layers_per_block, "mid": 2, "up": c.layers_per_block + 1}[kind]
        transformers = 0 if not c.has_attention(level, kind) else 1 if kind == "mid" else resnets
        self.resnets = [
            ResnetBlock(features, c.norm_num_groups, c.norm_eps, self.dtype) for _ in range(resnets)
        ]
        transformer = functools.partial(
            Transformer2D,
            features=features,
            heads=c.heads[level],
            depth=c.depths[level],
            linear_projection=c.use_linear_projection,
            self_attention=c.self_attentions[level],
            visual=self.visual,
            groups=c.norm_num_groups,
            dtype=self.dtype,
            remat=self.remat,
            flash=self.flash,
            scan=self.scan,
        )
        self.attentions = [transformer() for _ in range(transformers)]
        if kind == "down" and level < len(c.block_out_channels) - 1:
            self.downsamplers = [Downsample(features, dtype=self.dtype)]
        if kind == "up" and level > 0:
            self.upsamplers = [Upsample(features, self.dtype)]

    def encode(self, text: Array, visual: Array | None) -> list[tuple[LayerContext, ...]]:
        return [attention.encode(text, visual) for attention in self.attentions]

    def __call__(
        self,
        x: Array,
        skips: list[Array],
        emb: Array,
        contexts: Iterator[tuple[LayerContext, ...]],
        control: VisualControl | None,
        words: Array | None,
        attentions: bool,
    ) -> tuple[Array, list[Array], list[Array]]:
        """x: (B, h, w, C) → the next stage's input, word maps, and with `attentions` self-attentions; uses or
        adds to `skips`."""
        maps, self_attentions = [], []
        for i, resnet in enumerate(self.resnets):
            x = jnp.concatenate([x, skips.pop()], axis=-1) if self.kind == "up" else x
            x = call(resnet, self.remat, x, emb)
            if i < len(self.attentions):
                x, new_maps, new_attentions = self.attentions[i](
                    x, next(contexts), control, words, attentions
                )
                maps += new_maps
                self_attentions += new_attentions
            if self.kind == "down":
                skips.append(x)
        if self.kind == "down" and self.level < len(self.config.block_out_channels) - 1:
            x = self.downsamplers[0](x)
            skips.append(x)
        if self.kind == "up" and self.level > 0:
            x = self.upsamplers[0](x)
        return x, maps, self_attentions


class UNet(nn.Module):
    """UNet2DConditionModel with subjects.

    Attributes:
      config: the base model's shape.
      realcustom: the added parts' shape, or None for the text-to-image base alone.
      dtype: of computation; norms, softmax and scores are float32 always.
      remat: what training keeps of a pass; see `remat.POLICIES`.
      flash: of self-attention over many pixels; None for the plain way.
      scan: whether the blocks of a transformer are a loop, which compiles faster.
    """

    config: UNetConfig
    realcustom: RealCustomConfig | None = None
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    flash: FlashAttention | None = None
    scan: bool = False

    def setup(self):
        c, rc = self.config, self.realcustom
        emb_dim = 4 * c.block_out_channels[0]
        self.time_embedding = TimeEmbedding(emb_dim, self.dtype)
        if c.addition_embed_type == "text_time":
            self.add_embedding = TimeEmbedding(emb_dim, self.dtype)
        stage = functools.partial(
            _Stage,
            c,
            visual=rc is not None,
            dtype=self.dtype,
            remat=self.remat,
            flash=self.flash,
            scan=self.scan,
        )
        levels = range(len(c.block_out_channels))
        self.conv_in = nn.Conv(c.block_out_channels[0], (3, 3), padding=1, dtype=self.dtype)
        self.down_blocks = [stage(level, "down") for level in levels]
        self.mid_block = stage(levels[-1], "mid")
        self.up_blocks = [stage(level, "up") for level in reversed(levels)]
        self.conv_norm_out = GroupNorm(c.norm_num_groups, c.norm_eps, self.dtype)
        self.conv_out = nn.Conv(c.out_channels, (3, 3), padding=1, dtype=self.dtype)
        if rc is not None:
            self.encoder_hidden_states_vision_projection = make_projector(
                rc.projector, rc.token_dim, rc.projector_head_dim, self.dtype
            )
            if rc.scoring:
                self.scoring = AdaptiveScoring(rc.scoring_dim)

    @property
    def _stages(self) -> list[_Stage]:
        return [*self.down_blocks, self.mid_block, *self.up_blocks]

    def encode_context(
        self,
        text: Array,
        features: tuple[Array, ...] | None = None,
        flags: Array | None = None,
        strengths: Array | None = None,
        pooled: Array | None = None,
        time_ids: Array | None = None,
        photos: Array | None = None,
    ) -> Context:
        """All that passes need of prompt and references, computed once.

        Args:
          text: (B, n_t, C_t) text encoder output.
          features: image encoder outputs as the projector takes them, each (B, R, N, C), or (B, R, P, N, C)
            for slots of several photos; None for text only.
          flags: (B, R) 1 for a subject, 0 for an empty slot; default all 1.
          strengths: (B, R) factor on what each subject adds, 0 or more; default all 1.
          pooled: (B, C) pooled text and
          time_ids: (B, 6) original size, crop, target size; both for SDXL only.
          photos: (B, R, P) 1 for a photo, 0 for padding, at least one a slot; None where features have no P.
        """
        visual = present = None
        if features is not None:
            if self.realcustom is None:
                raise UserError("this UNet has no visual cross-attention, so it can take no subjects")
            visual = self.encoder_hidden_states_vision_projection(features)
            if photos is not None:  # side by side in their slot
                b, r, p, n, c = visual.shape
                visual = visual.reshape(b, r, p * n, c)
                present = jnp.repeat(photos > 0, n, axis=-1)
            ones = jnp.ones(visual.shape[:2], jnp.float32)
            flags = ones if flags is None else flags
            strengths = ones if strengths is None else strengths
        added = None
        if self.config.addition_embed_type == "text_time":
            if pooled is None or time_ids is None:
                raise UserError("this UNet needs the pooled text and the image sizes (time_ids) too")
            c = self.config
            sizes = sinusoidal_embedding(
                time_ids, c.addition_time_embed_dim, c.flip_sin_to_cos, float(c.freq_shift)
            )
            sizes = sizes.reshape(sizes.shape[0], -1).astype(pooled.dtype)
            added = self.add_embedding(jnp.concatenate([pooled, sizes], axis=-1))
        layers = tuple(layer for stage in self._stages for layer in stage.encode(text, visual))
        if visual is None:
            return Context(layers, text, added)
        return Context(layers, text, added, visual, flags, strengths, present)

    def __call__(
        self,
        latents: Array,
        t: Array,
        context: Context,
        *,
        masks: Array | None = None,
        words: Array | None = None,
        token_selection: TokenSelection | None = None,
        self_attention_level: int | None = None,
    ) -> tuple[Array, Aux]:
        """One denoising pass: with the context's subjects if it has any, else text only.

        Args:
          latents: (B, h, w, C) z_t.
          t: (B,) timesteps.
          masks: (B, R, h', w') influence scopes M̂ in [0, 1] of any size; None for 1 everywhere.
          words: (B, R, n_t) 0/1 target tokens; word maps are computed only where given.
          token_selection: settings of adaptive scoring; None keeps all tokens as they are.
          self_attention_level: the level, from 0, whose self-attention to return; it must have some.

        Returns:
          the prediction (B, h, w, C) in float32 and `Aux`.

        Raises:
          UserError: if h or w cannot be halved as often as the UNet needs.
        """
        c = self.config
        height, width = latents.shape[1:3]
        if height % c.divisor or width % c.divisor:
            raise UserError(
                f"latents of {height}x{width} cannot be halved {len(c.block_out_channels) - 1} times: "
                f"height and width must be multiples of {c.divisor}"
            )
        emb = sinusoidal_embedding(t, c.block_out_channels[0], c.flip_sin_to_cos, float(c.freq_shift))
        emb = self.time_embedding(emb.astype(self.dtype))
        emb = emb if context.added is None else emb + context.added

        scores, controls = self._controls(latents, context, masks, token_selection)
        x = self.conv_in(latents.astype(self.dtype))
        skips, maps, contexts = [x], [], iter(context.layers)
        self_attentions = []
        for stage in self._stages:
            control = controls and controls[stage.level]
            wanted = stage.level == self_attention_level
            x, new_maps, new_attentions = stage(x, skips, emb, contexts, control, words, wanted)
            maps += new_maps
            self_attentions += new_attentions
        x = nn.silu(self.conv_norm_out(x))
        # Added one by one: a level's maps are large, and stacked they would all be kept at once.
        mean = sum(self_attentions) / len(self_attentions) if self_attentions else None
        return self.conv_out(x).astype(jnp.float32), Aux(tuple(maps), scores, mean)

    def _controls(
        self, latents: Array, context: Context, masks: Array | None, token_selection: TokenSelection | None
    ) -> tuple[Array | None, list[VisualControl] | None]:
        """The scores, and how subjects act at each level of the UNet."""
        if context.visual is None:
            return None, None
        b, h, w = latents.shape[:3]
        r = context.flags.shape[1]
        if masks is None:
            masks = jnp.ones((b, r, 1, 1), jnp.float32)
        scope = masks.astype(jnp.float32) * context.flags[..., None, None]

        scores = scale = bias = None
        if context.present is not None:
            bias = jnp.where(context.present, 0.0, -jnp.inf)
        if token_selection is not None and self.realcustom.scoring:
            scores, scale, bias = self._score(latents, context, resize_mask(scope, h, w), token_selection)
        # The strength scales what a subject adds, not which latents judge its tokens.
        strength = scope * context.strengths[..., None, None]
        levels = (
            resize_mask(strength, h >> level, w >> level).reshape(b, r, -1)
            for level in range(len(self.config.block_out_channels))
        )
        return scores, [VisualControl(level, scale, bias) for level in levels]

    def _score(
        self, latents: Array, context: Context, scope: Array, token_selection: TokenSelection
    ) -> tuple[Array, Array, Array]:
        """Adaptive scoring of each subject by itself, (B, R, …) flattened into the batch."""
        b, r, n = context.visual.shape[:3]

        def flatten(x: Array) -> Array:
            return x.reshape(b * r, *x.shape[2:])

        def repeat(x: Array) -> Array:
            return jnp.repeat(x, r, axis=0)

        # only the subject's own part of the image judges the subject
        inside = latents[:, None] * scope[..., None]
        token_selection = jax.tree.map(repeat, token_selection)
        present = None if context.present is None else flatten(context.present)
        visual = flatten(context.visual)
        scores = self.scoring(visual, repeat(context.text), flatten(inside), token_selection, present)
        bias = keep_top_tokens(scores, token_selection.gamma_num, present)
        return scores.reshape(b, r, n), 1.0 + scores.reshape(b, r, n), bias.reshape(b, r, n)
