"""The sampler: both branches and the masks inside one compiled loop, in phases.

While masks are made, every step runs the guidance branch (text only), turns its word maps into masks, and
runs the generation branch with them; later the last masks are reused. From guidance_start to guidance_stop
the passes are combined by the guidance weights. Before and after, the generation branch alone predicts: the
empty or negative pass is left out, and the text-only one where neither masks nor `guidance_scope` need it.
The step itself does not know which solver it runs (see `solvers`).

`sample_latents` is the whole loop; `begin` and `advance` are its parts, for callers that stop between steps.
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
from realcustom_jax.diffusion.phases import Phase, phases
from realcustom_jax.diffusion.schedule import ScheduleConfig, predicted_z0_and_noise
from realcustom_jax.diffusion.solvers import SolverTable, make_table
from realcustom_jax.models.unet import UNet

if TYPE_CHECKING:
    from realcustom_jax.options import SamplerConfig


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
    denoiser = Denoiser.encode(params, conditioning, keys, unet=unet, schedule=schedule, config=config)
    run = advance(denoiser, begin(denoiser, initial), (0, config.steps))
    return run.state.z0, run.history


def begin(denoiser: Denoiser, initial: Array | None = None) -> Run:
    """The loop before its first step: noise, and no masks yet. `initial` as in `sample_latents`."""
    config, x = denoiser.config, initial
    if x is None:
        shape = (config.height, config.width, denoiser.unet.config.in_channels)
        x = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), shape))(denoiser.keys)
    batch, slots = denoiser.conditioning.flags.shape
    history = jnp.zeros((batch, config.steps, slots, config.mask_height, config.mask_width), jnp.float32)
    masks = jnp.zeros((batch, slots, config.mask_height, config.mask_width), jnp.float32)
    return Run(SamplerState(x, jnp.zeros_like(x), jnp.zeros_like(x), masks), history)


def advance(denoiser: Denoiser, run: Run, span: tuple[int | Array, int | Array]) -> Run:
    """The steps span[0] … span[1] − 1 of a loop.

    With a traced span, one compiled program runs any number of steps. A caller that stops between steps, to
    report or to preview, gets the same bits as one that does not.
    """
    config = denoiser.config
    table = make_table(config.solver, config.steps, denoiser.schedule, config.spacing, config.eta)
    table = jax.tree.map(jnp.asarray, table)

    def step(phase: Phase, index: Array, run: Run) -> Run:
        row = jax.tree.map(lambda x: x[index], table)
        state = sample_step(denoiser, phase, run.state, index, row)
        return Run(state, jax.lax.dynamic_update_index_in_dim(run.history, state.masks, index, 1))

    for phase in phases(config):
        first, last = (_within(bound, phase.start, phase.stop) for bound in span)
        run = jax.lax.fori_loop(first, last, functools.partial(step, phase), run)
    return run


def sample_step(
    denoiser: Denoiser, phase: Phase, state: SamplerState, index: Array, row: SolverTable
) -> SamplerState:
    """One step of the sampler: predict, then one linear combination.

    Args:
      denoiser: the passes.
      phase: which of them the step has.
      state: what the loop carries.
      index: number of the step ().
      row: of the solver table, scalars.
    """
    e, masks = predict(denoiser, phase, state, row)
    kind = denoiser.schedule.prediction_type
    z0, _ = predicted_z0_and_noise(kind, e, state.x, row.alpha, row.sigma)
    saved = jnp.where(row.save > 0, state.x, state.saved)
    x = row.a * state.x + row.b * z0 + row.c * state.z0 + row.d * saved
    if denoiser.config.eta:
        keys = jax.vmap(lambda key: jax.random.fold_in(key, index + 1))(denoiser.keys)
        x = x + row.e * jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
    return SamplerState(x, z0, saved, masks)


def predict(denoiser: Denoiser, phase: Phase, state: SamplerState, row: SolverTable) -> tuple[Array, Array]:
    """The guided prediction ε (B, h, w, C) of a step, and the masks M̂ (B, R, h', w') that it used."""
    config, weights = denoiser.config, denoiser.conditioning.settings
    x, t, masks = state.x, row.t, state.masks
    paper = config.guidance == "paper" and phase.weighted
    new_masks = phase.guided and denoiser.has_subjects
    # ε_T is a term of eq. 13, and what the image keeps where `guidance_scope` lets no subject act.
    needs_text = paper or (config.guidance_scope == "mask" and denoiser.has_subjects)

    # Guidance branch. RealCustom++ needs its word maps alone, so steps that reuse masks run without it.
    if needs_text or new_masks:
        e_empty, e_text, aux = denoiser.text_only(x, t, empty=paper, maps=new_masks)
        if new_masks:
            masks = denoiser.new_masks(aux)
    if paper and not denoiser.has_subjects:
        return paper_guidance(e_empty, e_text, e_text, weights.text_weight, weights.image_weight), masks

    # Generation branch. `negative` is ε_∅'s counterpart in RealCustom++'s guidance.
    negative = config.guidance == "direct" and phase.weighted
    e_negative, e_subject = denoiser.generate(x, t, row.alpha, masks, negative=negative)
    if needs_text:
        e_subject = jnp.where(denoiser.subject_region(masks), e_subject, e_text)

    if paper:  # eq. 13
        return paper_guidance(e_empty, e_text, e_subject, weights.text_weight, weights.image_weight), masks
    if negative:
        return direct_guidance(e_negative, e_subject, weights.text_weight, weights.rescale), masks
    return e_subject, masks  # both with weights of 1


def _within(bound: int | Array, low: int, high: int) -> int | Array:
    # A number known while tracing stays one: then the loop is a scan and can be differentiated.
    return min(max(bound, low), high) if isinstance(bound, int) else jnp.clip(bound, low, high)
