"""The sampler: both branches and the masks inside one compiled loop, split into phases.

Masks: in the first `guided_steps` steps, the guidance branch (text only) runs first. Its word maps become
masks, and the generation branch runs with them. Later steps reuse the last masks.

Guidance: from guidance_start to guidance_stop, the guidance weights combine the passes. Before and after,
the prediction is that of the generation branch alone. The empty or negative pass is skipped then, and also
the text-only pass unless masks or `guidance_scope` need it.

The step does not know which solver it runs (see `solvers`). `sample_latents` is the whole loop. `begin` and
`advance` are its parts, for callers that stop between steps.
"""

import functools
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from realcustom_jax.diffusion.conditioning import Conditioning
from realcustom_jax.diffusion.denoiser import Denoiser
from realcustom_jax.diffusion.guidance import direct_guidance, paper_guidance
from realcustom_jax.diffusion.phases import Phase, phases, text_pass
from realcustom_jax.diffusion.schedule import ScheduleConfig, predicted_z0_and_noise
from realcustom_jax.diffusion.solvers import SolverTable, make_table
from realcustom_jax.models.unet import UNet

if TYPE_CHECKING:
    from realcustom_jax.options import SamplerConfig


@flax.struct.dataclass
class SamplerState:
    """The carry of the loop.

    Attributes:
      x: (B, h, w, C) latents z_t.
      z0: (B, h, w, C) the z_0 predicted in the last step; m₁ of the next step.
      saved: (B, h, w, C) x of an earlier step, for single-step solvers.
      masks: (B, R, h', w') the last influence scopes M̂.
    """

    x: Array
    z0: Array
    saved: Array
    masks: Array


@flax.struct.dataclass
class Run:
    """A partly finished loop.

    Attributes:
      state: see `SamplerState`.
      history: (B, steps, R, h', w') masks of all steps; 0 for steps that have not run yet.
    """

    state: SamplerState
    history: Array


@flax.struct.dataclass
class Narrowing:
    """Where and by what the words are narrowed in one step.

    Attributes:
      word_maps: (B, R, h', w') normalised word maps, which masks are cut from; None if the step reuses masks.
      token_bias: (B, R, N) 0 for visual tokens that act, −inf for the others; None without scoring.
    """

    word_maps: Array | None = None
    token_bias: Array | None = None


def sample_latents(
    params: Any,
    conditioning: Conditioning,
    keys: Array,
    *,
    unet: UNet,
    schedule: ScheduleConfig,
    config: "SamplerConfig",
    initial: Array | None = None,
) -> tuple[Array, Array]:
    """Sample a batch of requests. Pure: it can run inside a caller's jit, vmap or shard_map.

    Args:
      params: the UNet's parameters.
      conditioning: the requests.
      keys: (B,) random keys, one per request. An image depends only on its own key.
      unet, schedule, config: static.
      initial: (B, h, w, C) initial noise; None draws it from the keys.

    Returns:
      The latents (B, h, w, C) for the VAE, which are the z_0 predicted in the last step, and the masks of all
      steps (B, steps, R, h', w').
    """
    denoiser = Denoiser.encode(params, conditioning, keys, unet=unet, schedule=schedule, config=config)
    run = advance(denoiser, begin(denoiser, initial), (0, config.steps))
    return run.state.z0, run.history


def begin(denoiser: Denoiser, initial: Array | None = None) -> Run:
    """State before the first step: noise, and masks of 0. `initial` as in `sample_latents`."""
    # One key per image, so its noise does not depend on its place in the batch. fold_in(key, 0) is for the
    # initial noise, fold_in(key, i + 1) for the noise of step i.
    config, x = denoiser.config, initial
    if x is None:
        shape = (config.height, config.width, denoiser.unet.config.in_channels)
        x = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), shape))(denoiser.keys)
    batch, slots = denoiser.conditioning.flags.shape
    history = jnp.zeros((batch, config.steps, slots, config.mask_height, config.mask_width), jnp.float32)
    masks = jnp.zeros((batch, slots, config.mask_height, config.mask_width), jnp.float32)
    return Run(SamplerState(x, jnp.zeros_like(x), jnp.zeros_like(x), masks), history)


def advance(denoiser: Denoiser, run: Run, span: tuple[int | Array, int | Array]) -> Run:
    """Run the steps span[0] … span[1] − 1 of a loop.

    With a traced span, one compiled program runs any number of steps. A caller that stops between steps, for
    progress or a preview, gets bit-identical results to one that does not.
    """
    table = _table(denoiser)

    def step(phase: Phase, index: Array, run: Run) -> Run:
        row = jax.tree.map(lambda x: x[index], table)
        state = sample_step(denoiser, phase, run.state, index, row)
        return Run(state, jax.lax.dynamic_update_index_in_dim(run.history, state.masks, index, 1))

    # Which passes run is static, so each phase is a loop of its own. Outside the span it runs 0 steps.
    for phase in phases(denoiser.config, denoiser.has_subjects):
        first, last = (_within(bound, phase.start, phase.stop) for bound in span)
        run = jax.lax.fori_loop(first, last, functools.partial(step, phase), run)
    return run


def narrowing(denoiser: Denoiser, phase: Phase, run: Run, index: Array) -> Narrowing:
    """Word maps and token selection of a step that has not run yet: its number () and its `phase_of`."""
    table = _table(denoiser)
    return predict(denoiser, phase, run.state, index, jax.tree.map(lambda x: x[index], table))[2]


def sample_step(
    denoiser: Denoiser, phase: Phase, state: SamplerState, index: Array, row: SolverTable[Array]
) -> SamplerState:
    """One step of the sampler: a prediction, then one linear combination.

    Args:
      denoiser: the passes.
      phase: says which passes run.
      state: the carry of the loop.
      index: number of the step ().
      row: this step's row of the solver table, scalars.
    """
    e, masks, _ = predict(denoiser, phase, state, index, row)
    kind = denoiser.schedule.prediction_type
    z0, _ = predicted_z0_and_noise(kind, e, state.x, row.alpha, row.sigma)
    saved = jnp.where(row.save > 0, state.x, state.saved)
    # x' = a·x + b·m₀ + c·m₁ + d·x_saved + e·noise, the same for all solvers
    x = row.a * state.x + row.b * z0 + row.c * state.z0 + row.d * saved
    if row.e is not None:  # static: a solver without noise compiles no random numbers
        keys = jax.vmap(lambda key: jax.random.fold_in(key, index + 1))(denoiser.keys)
        x = x + row.e * jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
    return SamplerState(x, z0, saved, masks)


def predict(
    denoiser: Denoiser, phase: Phase, state: SamplerState, index: Array, row: SolverTable[Array]
) -> tuple[Array, Array, Narrowing]:
    """Guided prediction (B, h, w, C) of a step, the masks M̂ (B, R, h', w') that it used, and `Narrowing`.

    Arguments as for `sample_step`.
    """
    config, weights = denoiser.config, denoiser.conditioning.settings
    x, t, masks = state.x, row.t, state.masks
    paper = config.guidance == "paper" and phase.weighted
    new_masks = phase.guided and denoiser.has_subjects
    needs_text = text_pass(config, phase.weighted, denoiser.has_subjects)

    maps = None
    # Guidance branch. RealCustom++ uses only its word maps, so a phase that reuses masks skips it.
    if needs_text or new_masks:
        e_empty, e_text, aux = denoiser.text_only(x, t, empty=paper, maps=new_masks)
        if new_masks:
            maps = denoiser.word_maps(aux)
            new, reused = denoiser.new_masks(maps), masks
            # a Python bool if all steps of the phase make new masks
            renewed = phase.stop <= config.guided_steps or index < config.guided_steps
            masks = jnp.where(renewed, new, reused)
    # Text only: ε_TI would equal ε_T, so the generation branch is not run.
    if paper and not denoiser.has_subjects:
        assert e_empty is not None
        e = paper_guidance(e_empty, e_text, e_text, weights.text_weight, weights.image_weight)
        return e, masks, Narrowing()

    # Generation branch. The negative pass has the role of ε_∅ in RealCustom++'s guidance.
    negative = config.guidance == "direct" and phase.weighted
    e_negative, e_subject, aux = denoiser.generate(x, t, row.alpha, masks, negative=negative)
    seen = Narrowing(maps, aux.token_bias)
    if needs_text:
        e_subject = jnp.where(denoiser.subject_region(masks), e_subject, e_text)

    if paper:  # eq. 13
        assert e_empty is not None
        e = paper_guidance(e_empty, e_text, e_subject, weights.text_weight, weights.image_weight)
        return e, masks, seen
    if negative:  # RealCustom++
        assert e_negative is not None
        return direct_guidance(e_negative, e_subject, weights.text_weight, weights.rescale), masks, seen
    return e_subject, masks, seen  # both formulas with all weights at 1


def _table(denoiser: Denoiser) -> SolverTable[Array]:
    """The solver's rows of all steps."""
    config = denoiser.config
    table = make_table(config.solver, config.steps, denoiser.schedule, config.spacing, config.eta)
    return jax.tree.map(jnp.asarray, table)


def _within(bound: int | Array, low: int, high: int) -> int | Array:
    # Static bounds stay Python ints: `fori_loop` then becomes a scan, which can be differentiated.
    return min(max(bound, low), high) if isinstance(bound, int) else jnp.clip(bound, low, high)
