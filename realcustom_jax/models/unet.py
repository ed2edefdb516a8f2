"""The denoising UNet of SD1.5 and SDXL with visual cross-attention, in two calls.

`encode_context` computes everything that does not depend on the latents, once. `__call__` is one denoising
pass. Training and sampling use the same two calls. Parameter names follow diffusers. The added parameters are
`to_k_vision` and `to_v_vision` in every cross-attention, `encoder_hidden_states_vision_projection` (the
published name of the projector) and `scoring`.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

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
    Conv,
    Downsample,
    GroupNorm,
    ResnetBlock,
    TimeEmbedding,
    Upsample,
    sinusoidal_embedding,
)
from realcustom_jax.models.projector import make_projector
from realcustom_jax.models.remat import remat_call
from realcustom_jax.models.resize import resize_mask
from realcustom_jax.models.scoring import AdaptiveScoring, TokenSelection, keep_top_tokens
from realcustom_jax.models.transformer import Transformer2D


@flax.struct.dataclass
class Context:
    """Encoded prompt and references. The first axis of every leaf is the batch.

    Attributes:
      layers: keys and values of each block, one tuple per transformer in running order (down, mid, up).
      text: (B, n_t, C_t) text tokens f_t.
      added: (B, C_emb) SDXL's embedding of pooled text and sizes, or None.
      visual: (B, R, N, C_i) visual tokens f_i, the output of the projector; None in a text-only context.
      flags: (B, R) float, 1 for a subject, 0 for an empty slot; None in a text-only context.
      strengths: (B, R) float, factor on what each subject adds; None in a text-only context.
      present: (B, R, N) True for visual tokens, False for padding; None if there is no padding.
    """

    layers: tuple[tuple[LayerContext, ...], ...]
    text: Array
    added: Array | None = None
    visual: Array | None = None
    flags: Array | None = None
    strengths: Array | None = None
    present: Array | None = None

    def text_only(self) -> "Context":
        """The same context without subjects, for the guidance branch."""
        layers = jax.tree.map(
            lambda layer: LayerContext(layer.text_k, layer.text_v),
            self.layers,
            is_leaf=lambda x: isinstance(x, LayerContext),
        )
        return dataclasses.replace(self, layers=layers, visual=None, flags=None, strengths=None, present=None)


@flax.struct.dataclass
class Aux:
    """Outputs of a pass besides the prediction.

    Attributes:
      word_maps: one (B, R, h, w) per cross-attention in running order; empty without `words`.
      scores: (B, R, N), S of eq. 8; None without scoring.
      token_bias: (B, R, N), 0 for visual tokens that act, −inf for the others; None without scoring.
      self_attention: (B, h·w, h·w) self-attention probabilities of one level, averaged over its heads and
        layers; None without `self_attention_level`.
    """

    word_maps: tuple[Array, ...] = ()
    scores: Array | None = None
    token_bias: Array | None = None
    self_attention: Array | None = None


class _Stage(nn.Module):
    """The residual blocks of one resolution, each followed by a transformer if the level has transformers.

    Down stages push each output on the stack of skips. Up stages pop one skip before each residual block. The
    middle stage has one transformer between its two residual blocks.
    """

    config: UNetConfig
    level: int  # selects channels, heads, depth and self-attention of the config
    kind: str  # "down", "mid" or "up"
    visual: bool
    dtype: jnp.dtype
    remat: str
    flash: FlashAttention | None
    scan: bool

    def setup(self):
        c, level, kind = self.config, self.level, self.kind
        features = c.block_out_channels[level]
        # The up path has one block more, because it also takes the skip of `conv_in` or of the downsampler.
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
        """Keys and values of each transformer; see `CrossAttention.encode`."""
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
        """Run the stage on x (B, h, w, C). It changes the list `skips`, and advances `contexts`.

        Returns:
          The input of the next stage, the word maps, and with `attentions` the self-attentions.
        """
        maps, self_attentions = [], []
        for i, resnet in enumerate(self.resnets):
            # (B, h, w, C), (B, h, w, C_skip) → (B, h, w, C + C_skip)
            x = jnp.concatenate([x, skips.pop()], axis=-1) if self.kind == "up" else x
            x = remat_call(resnet, self.remat, x, emb)
            if i < len(self.attentions):  # the second residual block of the middle has no transformer
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
    """diffusers' UNet2DConditionModel with subjects.

    Attributes:
      config: shape of the base model.
      realcustom: shape of the added parts; None for the text-to-image base alone.
      dtype: compute dtype. Norms, softmax and scores are always float32.
      remat: which activations training saves; see `remat.POLICIES`.
      flash: kernel for self-attention over many pixels; None computes it without a kernel.
      scan: whether the blocks of a transformer run as a loop, which compiles faster.
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
        self.conv_in = Conv(c.block_out_channels[0], (3, 3), padding=1, dtype=self.dtype)
        self.down_blocks = [stage(level, "down") for level in levels]
        self.mid_block = stage(levels[-1], "mid")
        self.up_blocks = [stage(level, "up") for level in reversed(levels)]
        self.conv_norm_out = GroupNorm(c.norm_num_groups, c.norm_eps, self.dtype)
        self.conv_out = Conv(c.out_channels, (3, 3), padding=1, dtype=self.dtype)
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
        token_weights: Array | None = None,
    ) -> Context:
        """Encode prompt and references; everything in a pass that does not depend on the latents.

        Args:
          text: (B, n_t, C_t) text encoder output.
          features: image encoder outputs as the projector takes them, each (B, R, N, C), or (B, R, P, N, C)
            if slots have several photos; None for text only.
          flags: (B, R) 1 for a subject, 0 for an empty slot; default all 1.
          strengths: (B, R) factor on what each subject adds, 0 or more; default all 1.
          pooled: (B, C) pooled text; SDXL only.
          time_ids: (B, 6) original size, crop, target size; SDXL only.
          photos: (B, R, P) 1 for a photo, 0 for padding, with at least one photo per slot; None if the
            features have no axis P.
          token_weights: (B, R, N), or (B, R, P·N) with an axis P: factor on each visual token's share of the
            visual attention's output; default all 1.

        Raises:
          UserError: for features without RealCustom's parts, or SDXL without `pooled` and `time_ids`.
        """
        visual = present = None
        if features is not None:
            if self.realcustom is None:
                raise UserError("this UNet has no visual cross-attention, so it can take no subjects")
            visual = self.encoder_hidden_states_vision_projection(features)
            if photos is not None:
                # The tokens of all photos of a slot act together: (B, R, P, N, C_i) → (B, R, P·N, C_i).
                b, r, p, n, c = visual.shape
                visual = visual.reshape(b, r, p * n, c)
                present = jnp.repeat(photos > 0, n, axis=-1)
            ones = jnp.ones(visual.shape[:2], jnp.float32)
            flags = ones if flags is None else flags
            strengths = ones if strengths is None else strengths
        added = self._embed_added(pooled, time_ids)
        layers = tuple(layer for stage in self._stages for layer in stage.encode(text, visual))
        if visual is None:
            return Context(layers, text, added)
        if token_weights is not None:
            # Σ_k (w_k p_k) v_k = Σ_k p_k (w_k v_k): done once, before the loop
            layers = jax.tree.map(
                lambda layer: layer.weighted(token_weights),
                layers,
                is_leaf=lambda x: isinstance(x, LayerContext),
            )
        return Context(layers, text, added, visual, flags, strengths, present)

    def _embed_added(self, pooled: Array | None, time_ids: Array | None) -> Array | None:
        """SDXL's embedding (B, C_emb) of pooled text (B, C) and sizes (B, 6); None for SD1.5."""
        c = self.config
        if c.addition_embed_type != "text_time":
            return None
        if pooled is None or time_ids is None:
            raise UserError("this UNet also needs the pooled text and the image sizes (time_ids)")
        assert c.addition_time_embed_dim is not None
        sizes = sinusoidal_embedding(
            time_ids, c.addition_time_embed_dim, c.flip_sin_to_cos, float(c.freq_shift)
        )
        # (B, 6, C_t) → (B, 6·C_t); pooled text comes first, as in diffusers
        sizes = sizes.reshape(sizes.shape[0], -1).astype(pooled.dtype)
        return self.add_embedding(jnp.concatenate([pooled, sizes], axis=-1))

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
        """One denoising pass, with the subjects of the context if it has any.

        Args:
          latents: (B, h, w, C) z_t.
          t: (B,) timesteps.
          context: from `encode_context`.
          masks: (B, R, h', w') influence scopes M̂ in [0, 1], of any size; None for 1 everywhere.
          words: (B, R, n_t) 0/1 target tokens, to get word maps; None for no word maps.
          token_selection: settings of adaptive scoring; None keeps all tokens unscaled.
          self_attention_level: level, from 0, whose self-attention is returned. It must have self-attention.

        Returns:
          The prediction (B, h, w, C) in float32, and `Aux`.

        Raises:
          UserError: if h or w cannot be halved as often as the UNet needs.
        """
        _check_size(self.config, *latents.shape[1:3])
        emb = self._embed_time(t, context)
        scores, controls = self._controls(latents, context, masks, token_selection)
        x = self.conv_in(latents.astype(self.dtype))
        skips, maps, self_attentions = [x], [], []
        contexts = iter(context.layers)  # each transformer takes the next
        for stage in self._stages:
            control = controls[stage.level] if controls else None
            return_attention = stage.level == self_attention_level
            x, new_maps, new_attentions = stage(x, skips, emb, contexts, control, words, return_attention)
            maps += new_maps
            self_attentions += new_attentions
        x = nn.silu(self.conv_norm_out(x))
        # A sum instead of a stack: the maps of a level are large, and a stack would hold all of them at once.
        mean: Any = sum(self_attentions) / len(self_attentions) if self_attentions else None
        bias = None if scores is None or controls is None else controls[0].bias
        return self.conv_out(x).astype(jnp.float32), Aux(tuple(maps), scores, bias, mean)

    def _embed_time(self, t: Array, context: Context) -> Array:
        """Timesteps (B,) → (B, C_emb), for SDXL with the embedding of pooled text and sizes."""
        c = self.config
        emb = sinusoidal_embedding(t, c.block_out_channels[0], c.flip_sin_to_cos, float(c.freq_shift))
        emb = self.time_embedding(emb.astype(self.dtype))
        return emb if context.added is None else emb + context.added

    def _controls(
        self, latents: Array, context: Context, masks: Array | None, token_selection: TokenSelection | None
    ) -> tuple[Array | None, list[VisualControl] | None]:
        """Scores S (B, R, N), and the `VisualControl` of each level.

        S is None without scoring; both are None for text only.
        """
        if context.visual is None:
            return None, None
        assert context.flags is not None and context.strengths is not None
        b, h, w = latents.shape[:3]
        r = context.flags.shape[1]
        if masks is None:
            masks = jnp.ones((b, r, 1, 1), jnp.float32)
        # A variable number of subjects is padding: the mask of an empty slot is 0, so the slot adds nothing.
        scope = masks.astype(jnp.float32) * context.flags[..., None, None]

        scores = scale = bias = None
        if context.present is not None:
            bias = jnp.where(context.present, 0.0, -jnp.inf)
        if token_selection is not None and self.realcustom is not None and self.realcustom.scoring:
            scores, scale, bias = self._score(latents, context, resize_mask(scope, h, w), token_selection)
        # After the scoring: the strength scales what a subject adds, and must not change the scores.
        strength = scope * context.strengths[..., None, None]
        # per level: (B, R, h', w') → (B, R, h_l, w_l) → (B, R, h_l·w_l)
        levels = (
            resize_mask(strength, h >> level, w >> level).reshape(b, r, -1)
            for level in range(len(self.config.block_out_channels))
        )
        return scores, [VisualControl(level, scale, bias) for level in levels]

    def _score(
        self, latents: Array, context: Context, scope: Array, token_selection: TokenSelection
    ) -> tuple[Array, Array, Array]:
        """Adaptive scoring of each subject by itself.

        Args:
          scope: (B, R, h, w) influence scopes at the size of the latents.

        Returns:
          S (B, R, N), the factor 1 + S (B, R, N) of eq. 9, and the bias (B, R, N) of `keep_top_tokens`.
        """
        assert context.visual is not None
        b, r, n = context.visual.shape[:3]

        # Subjects become batch entries, because the scoring takes one subject each.
        def flatten(x: Array) -> Array:
            return x.reshape(b * r, *x.shape[2:])  # (B, R, …) → (B·R, …)

        def repeat(x: Array) -> Array:
            return jnp.repeat(x, r, axis=0)  # (B, …) → (B·R, …)

        # z_t ⊙ M̂, (B, 1, h, w, C)·(B, R, h, w, 1): only the subject's part of the image scores its tokens.
        inside = latents[:, None] * scope[..., None]
        token_selection = jax.tree.map(repeat, token_selection)
        present = None if context.present is None else flatten(context.present)
        visual = flatten(context.visual)
        scores = self.scoring(visual, repeat(context.text), flatten(inside), token_selection, present)
        bias = keep_top_tokens(scores, token_selection.gamma_num, present)
        return scores.reshape(b, r, n), 1.0 + scores.reshape(b, r, n), bias.reshape(b, r, n)


def _check_size(config: UNetConfig, height: int, width: int) -> None:
    """Raise `UserError` if latents of this size cannot be halved as often as the UNet needs."""
    if height % config.divisor or width % config.divisor:
        raise UserError(
            f"latents of {height}x{width} cannot be halved {len(config.block_out_channels) - 1} times: "
            f"height and width must be multiples of {config.divisor}"
        )
