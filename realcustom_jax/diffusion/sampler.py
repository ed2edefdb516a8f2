"""The sampler: both branches and the masks inside one compiled loop, in phases.

While masks are made, every step runs the guidance branch (text only), turns its word maps into masks, and
runs the generation branch with them; later the last masks are reused. From guidance_start to guidance_stop
the passes are combined by the guidance weights. Before and after, the generation branch alone predicts: the
empty or negative pass is left out, and the text-only one where neither masks nor `guidance_scope` need it.
The step itself does not know which solver it runs (see `solvers`).

`sample_latents` is the whole loop; `begin` and `advance` are its parts, for callers that stop between steps.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from realcustom_jax.common.errors import UserError
from realcustom_jax.diffusion.guidance import direct_guidance, paper_guidance
from realcustom_jax.diffusion.masks import aggregate, influence_scope, with_user_masks
from realcustom_jax.diffusion.refinement import refine, refinement_level
from realcustom_jax.diffusion.sampler_config import Phase, SamplerConfig
from realcustom_jax.diffusion.schedule import ScheduleConfig, predicted_z0_and_noise
from realcustom_jax.diffusion.solvers import SolverTable, make_table
from realcustom_jax.models.resize import resize_mask
from realcustom_jax.models.scoring import InfluenceQuantity
from realcustom_jax.models.unet import Aux, Context, UNet


@flax.struct.dataclass
class Settings:
    """Traced numbers, one a request, each (B,) float32: changing them does not compile again.

    Attributes:
      text_weight, image_weight: ω_t and ω_i of `paper` guidance; `direct` uses text_weight as its ω.
      rescale: φ of `direct` guidance.
      gamma_scope: share of the pixels where a subject may act.
      gamma_num: share of the visual tokens that act.
    """

    text_weight: Array
    image_weight: Array
    rescale: Array
    gamma_scope: Array
    gamma_num: Array


@flax.struct.dataclass
class Conditioning:
    """A batch of requests as the UNet's inputs; every leaf has the batch first. R may be 0, for text only.

    Attributes:
      text, negative_text: (B, n_t, C_t) text tokens of prompt and negative prompt.
      features, negative_features: image encoder outputs as the projector takes them, each (B, R, N, C), of
        the references and of a black image; (B, R, P, N, C) where slots have several photos.
      words: (B, R, n_t) 0/1 target tokens of each subject.
      flags: (B, R) 1 for a subject, 0 for an empty slot.
      strengths: (B, R) factor on what each subject adds, 0 or more; at 0 it counts as an empty slot.
      user_masks: (B, R, h', w') in [0, 1], where users want their subjects to act; 1 everywhere for any.
      instead: (B, R) 1 where the user's mask stands for the guided one; elsewhere they are multiplied.
      settings: see `Settings`.
      pooled, negative_pooled: (B, C) and
      time_ids: (B, 6), for SDXL only.
      photos: (B, R, P) 1 for a photo of a slot, 0 for padding; None where features have no P.
    """

    text: Array
    negative_text: Array
    features: tuple[Array, ...]
    negative_features: tuple[Array, ...]
    words: Array
    flags: Array
    strengths: Array
    user_masks: Array
    instead: Array
    settings: Settings
    pooled: Array | None = None
    negative_pooled: Array | None = None
    time_ids: Array | None = None
    photos: Array | None = None

    @property
    def present(self) -> Array:
        """(B, R) 1 for a subject that acts, 0 for an empty slot or one of strength 0."""
        return self.flags * (self.strengths > 0)


@flax.struct.dataclass
class Contexts:
    """What `encode_context` made of the conditioning, for the passes of a step.

    Attributes:
      text_only: [∅, T] stacked (2B) for `paper` guidance, T (B) for `direct`.
      subject: TI (B) for `paper`, [neg, TI] stacked (2B) for `direct`.
    """

    text_only: Context
    subject: Context


@flax.struct.dataclass
class SamplerState:
    """What the loop carries.

    Attributes:
      x: (B, h, w, C) latents z_t.
      z0: the z_0 predicted in the last step (m₁ of the next).
      saved: x of an earlier step, for single-step solvers.
      masks: (B, R, h', w') the last influence scopes M̂.
    """

    x: Array
    z0: Array
    saved: Array
    masks: Array


@flax.struct.dataclass
class Run:
    """A loop under way.

    Attributes:
      state: see `SamplerState`.
      history: (B, steps, R, h', w') the masks of the steps so far, 0 for those to come.
    """

    state: SamplerState
    history: Array


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """The static parts of a step: modules and options. `params` are the UNet's."""

    unet: UNet
    schedule: ScheduleConfig
    config: SamplerConfig

    def encode(self, params: Any, conditioning: Conditioning) -> Contexts:
        """All contexts, once, before the loop."""
        c = conditioning
        encode = functools.partial(self.unet.apply, {"params": params}, method=UNet.encode_context)
        subjects = c.flags.shape[1] > 0
        features, negative_features = (c.features, c.negative_features) if subjects else (None, None)
        shared = (c.present, c.strengths)
        # The negative pass sees one black photo, however many the subject has.
        one = None if c.photos is None else c.photos.at[..., 1:].set(0.0)
        subject = encode(c.text, features, *shared, c.pooled, c.time_ids, c.photos)
        negative = encode(c.negative_text, negative_features, *shared, c.negative_pooled, c.time_ids, one)
        if self.config.guidance == "paper":
            return Contexts(_stack(negative.text_only(), subject.text_only()), subject)
        return Contexts(subject.text_only(), _stack(negative, subject))

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        return self.unet.apply({"params": params}, *args, **kwargs)

    @property
    def refinement_level(self) -> int | None:
        """The UNet level whose self-attention refines the masks; None without refinement."""
        c = self.config
        if c.mask_refine == "none":
            return None
        return refinement_level(self.unet.config, (c.height, c.width), (c.mask_height, c.mask_width))

    def quantity(self, conditioning: Conditioning, alpha: Array) -> InfluenceQuantity | None:
        """Settings of the scoring at √ᾱ_t = alpha (), for a batch of B."""
        gamma = conditioning.settings.gamma_num
        if self.config.scoring == "none" or conditioning.flags.shape[1] == 0:
            return None
        weights = {
            "fused": (1.0 - alpha, alpha),
            "text": (1.0, 0.0),
            "visual": (0.0, 1.0),
            "mean": (0.5, 0.5),
        }
        text, visual = weights[self.config.scoring]
        return InfluenceQuantity(gamma, jnp.full_like(gamma, text), jnp.full_like(gamma, visual))


def sample_step(
    denoiser: Denoiser,
    params: Any,
    conditioning: Conditioning,
    contexts: Contexts,
    keys: Array,
    phase: Phase,
    state: SamplerState,
    row: tuple[Array, SolverTable],
) -> tuple[SamplerState, Array]:
    """One step of the sampler: predict, then one linear combination.

    Args:
      denoiser, params: the UNet and its parameters.
      conditioning, contexts: the requests, and what was encoded of them.
      keys: (B,) random keys, one a request; used by solvers with noise.
      phase: which passes the step has.
      state: what the loop carries.
      row: step number () and row of the solver table, scalars.

    Returns:
      the next state, and the masks of this step.
    """
    index, solver = row
    schedule, config = denoiser.schedule, denoiser.config
    predict = predict_alone
    if phase.weighted:
        predict = predict_paper if config.guidance == "paper" else predict_direct
    prediction, masks = predict(denoiser, params, conditioning, contexts, phase.guided, state, solver)
    z0, _ = predicted_z0_and_noise(schedule.prediction_type, prediction, state.x, solver.alpha, solver.sigma)
    saved = jnp.where(solver.save > 0, state.x, state.saved)
    x = solver.a * state.x + solver.b * z0 + solver.c * state.z0 + solver.d * saved
    if config.eta:
        noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index + 1), x.shape[1:]))(keys)
        x = x + solver.e * noise
    return SamplerState(x, z0, saved, masks), masks


def predict_paper(
    denoiser: Denoiser,
    params: Any,
    conditioning: Conditioning,
    contexts: Contexts,
    guided: bool,
    state: SamplerState,
    solver: SolverTable,
) -> tuple[Array, Array]:
    """eq. 13. ε_T is part of it, so the guidance branch's pass is always needed, its maps only if guided."""
    c, s = conditioning, conditioning.settings
    subjects = c.flags.shape[1] > 0
    make = guided and subjects
    pair, aux = denoiser(
        params, _twice(state.x), _times(solver.t, 2 * len(state.x)), contexts.text_only,
        words=_twice(c.words) if make else None,
        self_attention_level=denoiser.refinement_level if make else None,
    )  # fmt: skip
    empty, text = jnp.split(pair, 2)
    if not subjects:
        return paper_guidance(empty, text, text, s.text_weight, s.image_weight), state.masks
    masks = state.masks
    if guided:
        of_text = jax.tree.map(lambda x: x[len(state.x) :], aux)
        masks = make_masks(denoiser, of_text, c)
    quantity = denoiser.quantity(c, solver.alpha)
    subject = generate(denoiser, params, contexts.subject, solver, quantity, masks, state.x)
    subject = jnp.where(acting(masks, denoiser.config), subject, text)
    return paper_guidance(empty, text, subject, s.text_weight, s.image_weight), masks


def acting(masks: Array, config: SamplerConfig) -> Array:
    """Where ω_i multiplies ε_TI − ε_T, of masks (B, R, h', w'): bool (B, h, w, 1), or of images (B, 1, 1, 1).

    Never where no subject acts on the whole image: there the difference is rounding.
    """
    if config.guidance_scope == "image":
        return masks.max(axis=(1, 2, 3))[:, None, None, None] > 0
    return resize_mask(masks.max(axis=1, keepdims=True), config.height, config.width)[:, 0, :, :, None] > 0


def predict_direct(
    denoiser: Denoiser,
    params: Any,
    conditioning: Conditioning,
    contexts: Contexts,
    guided: bool,
    state: SamplerState,
    solver: SolverTable,
) -> tuple[Array, Array]:
    """RealCustom++: the guidance branch is needed for its maps alone, so reused steps do without it."""
    c, s = conditioning, conditioning.settings
    masks = state.masks
    if guided and c.flags.shape[1] > 0:
        _, masks = guide(denoiser, params, contexts.text_only, solver, c, state, guided)
    both = jax.tree.map(_twice, (denoiser.quantity(c, solver.alpha), masks, state.x))
    pair = generate(denoiser, params, contexts.subject, solver, *both)
    negative, subject = jnp.split(pair, 2)
    return direct_guidance(negative, subject, s.text_weight, s.rescale), masks


def predict_alone(
    denoiser: Denoiser,
    params: Any,
    conditioning: Conditioning,
    contexts: Contexts,
    guided: bool,
    state: SamplerState,
    solver: SolverTable,
) -> tuple[Array, Array]:
    """ε_TI as it is, outside the guidance interval: eq. 13 and RealCustom++'s with weights of 1 are that.

    The guidance branch is needed for its maps, or for ε_T where ε_TI must not act.
    """
    c, config, masks = conditioning, denoiser.config, state.masks
    text_only, subject = contexts.text_only, contexts.subject
    if config.guidance == "paper":
        text_only = _second_half(text_only)
    else:
        subject = _second_half(subject)
    subjects, bounded = c.flags.shape[1] > 0, config.guidance_scope == "mask"
    if subjects and (guided or bounded):
        text, masks = guide(denoiser, params, text_only, solver, c, state, guided)
    quantity = denoiser.quantity(c, solver.alpha)
    prediction = generate(denoiser, params, subject, solver, quantity, masks, state.x)
    if subjects and bounded:
        prediction = jnp.where(acting(masks, config), prediction, text)
    return prediction, masks


def guide(
    denoiser: Denoiser,
    params: Any,
    context: Context,
    solver: SolverTable,
    conditioning: Conditioning,
    state: SamplerState,
    guided: bool,
) -> tuple[Array, Array]:
    """The guidance branch alone: ε_T (B, h, w, C) and, if guided, the masks of its maps, else the last."""
    text, aux = denoiser(
        params, state.x, _times(solver.t, len(state.x)), context,
        words=conditioning.words if guided else None,
        self_attention_level=denoiser.refinement_level if guided else None,
    )  # fmt: skip
    return text, make_masks(denoiser, aux, conditioning) if guided else state.masks


def generate(
    denoiser: Denoiser,
    params: Any,
    context: Context,
    solver: SolverTable,
    quantity: InfluenceQuantity | None,
    masks: Array,
    x: Array,
) -> Array:
    """The generation branch: ε_TI (B, h, w, C)."""
    masks = masks if masks.shape[1] > 0 else None
    return denoiser(params, x, _times(solver.t, len(x)), context, masks=masks, quantity=quantity)[0]


def make_masks(denoiser: Denoiser, aux: Aux, conditioning: Conditioning) -> Array:
    """Influence scopes (B, R, h', w') from the guidance branch's pass; 0 for subjects not present."""
    c, config = conditioning, denoiser.config
    layers = range(len(aux.word_maps)) if config.mask_layers is None else config.mask_layers
    if max(layers) >= len(aux.word_maps):
        raise UserError(
            f"mask_layers {tuple(layers)}: this UNet has {len(aux.word_maps)} cross-attentions, from 0"
        )
    chosen = [aux.word_maps[layer] for layer in layers]
    maps = aggregate(chosen, config.mask_height, config.mask_width, config.mask_normalisation)
    if (level := denoiser.refinement_level) is not None:
        latents = (config.height, config.width)
        maps = refine(maps, aux.self_attention, latents, level, config.mask_normalisation)
    # Who has a mask instead does not compete for pixels by its word map.
    guided = c.present * (1.0 - c.instead)
    masks = influence_scope(
        maps, c.settings.gamma_scope, config.mask_kind, config.mask_overlap, present=guided
    )
    return with_user_masks(masks, c.user_masks, c.present * c.instead, config.mask_overlap)


def sample_latents(
    params: Any,
    conditioning: Conditioning,
    keys: Array,
    *,
    unet: UNet,
    schedule: ScheduleConfig,
    config: SamplerConfig,
    initial: Array | None = None,
) -> tuple[Array, Array]:
    """Sample a batch of requests. Pure: put it inside your own jit, vmap or shard_map.

    Args:
      params: the UNet's parameters.
      conditioning: the requests.
      keys: (B,) random keys, one a request; an image depends on its own only.
      unet, schedule, config: static.
      initial: (B, h, w, C) noise to begin with instead of the keys'.

    Returns:
      latents (B, h, w, C), the z_0 predicted in the last step, ready for the VAE, and the masks of all steps
      (B, steps, R, h', w').
    """
    denoiser = Denoiser(unet, schedule, config)
    contexts, run = begin(denoiser, params, conditioning, keys, initial)
    run = advance(denoiser, params, conditioning, contexts, keys, run, (0, config.steps))
    return run.state.z0, run.history


def begin(
    denoiser: Denoiser, params: Any, conditioning: Conditioning, keys: Array, initial: Array | None = None
) -> tuple[Contexts, Run]:
    """What comes before the first step: the contexts, and the noise. Arguments as in `sample_latents`."""
    c, config = conditioning, denoiser.config
    contexts = denoiser.encode(params, c)
    shape = (config.height, config.width, denoiser.unet.config.in_channels)
    x = initial
    if x is None:
        x = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), shape))(keys)
    batch, slots = c.flags.shape
    history = jnp.zeros((batch, config.steps, slots, config.mask_height, config.mask_width), jnp.float32)
    masks = jnp.zeros((batch, slots, config.mask_height, config.mask_width), jnp.float32)
    return contexts, Run(SamplerState(x, jnp.zeros_like(x), jnp.zeros_like(x), masks), history)


def advance(
    denoiser: Denoiser,
    params: Any,
    conditioning: Conditioning,
    contexts: Contexts,
    keys: Array,
    run: Run,
    span: tuple[int | Array, int | Array],
) -> Run:
    """The steps span[0] … span[1] − 1 of a loop.

    With a traced span, one compiled program runs any number of steps. A caller that stops between steps, to
    report or to preview, gets the same bits as one that does not.
    """
    config = denoiser.config
    table = make_table(config.solver, config.steps, denoiser.schedule, config.spacing, config.eta)
    table = jax.tree.map(jnp.asarray, table)

    def step(phase: Phase, index: Array, run: Run) -> Run:
        row = (index, jax.tree.map(lambda x: x[index], table))
        state, masks = sample_step(denoiser, params, conditioning, contexts, keys, phase, run.state, row)
        return Run(state, jax.lax.dynamic_update_index_in_dim(run.history, masks, index, 1))

    for phase in config.phases:
        first, last = (_within(bound, phase.start, phase.stop) for bound in span)
        run = jax.lax.fori_loop(first, last, functools.partial(step, phase), run)
    return run


def _within(bound: int | Array, low: int, high: int) -> int | Array:
    # A number known while tracing stays one: then the loop is a scan and can be differentiated.
    return min(max(bound, low), high) if isinstance(bound, int) else jnp.clip(bound, low, high)


def _stack(first: Context, second: Context) -> Context:
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


def _second_half(pair: Context) -> Context:
    return jax.tree.map(lambda x: x[len(x) // 2 :], pair)


def _twice(x: Array) -> Array:
    return jnp.concatenate([x, x])


def _times(t: Array, count: int) -> Array:
    return jnp.broadcast_to(t, (count,))
