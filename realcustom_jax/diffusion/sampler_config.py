"""What shapes the sampler's compiled program, and the phases that follow from it."""

import dataclasses
import itertools

from realcustom_jax.common.errors import UserError
from realcustom_jax.diffusion.guidance import MODES, SCOPES
from realcustom_jax.diffusion.masks import KINDS, NORMALISATIONS, OVERLAPS
from realcustom_jax.diffusion.refinement import REFINEMENTS

SCORINGS = ("fused", "text", "visual", "mean", "none")


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps that run the same passes, compiled as one scan.

    Attributes:
      start, stop: the steps start … stop − 1.
      guided: whether the guidance branch makes new masks; else the last ones are reused.
      weighted: whether the guidance weights act; else the generation branch's prediction is taken as it is.
    """

    start: int
    stop: int
    guided: bool
    weighted: bool


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Everything that shapes the compiled program; another value is another trace.

    Attributes:
      height, width: of the latents.
      steps: network evaluations of the generation branch.
      mask_steps: steps of the guided phase, 1 … steps; None for all.
      solver: "ddim", "euler", "dpmpp_2m" or "dpmpp_2s".
      spacing: of the timesteps, "trailing", "leading" or "linspace".
      eta: η of DDIM.
      guidance: "paper" (eq. 13) or "direct" (RealCustom++).
      guidance_scope: where ω_i acts. "image": everywhere (eq. 13). "mask": where a mask lets a subject act;
        elsewhere the prediction is the text's alone. Of `paper` guidance only.
      guidance_start, guidance_stop: shares of the steps, rounded to whole ones, between which the guidance
        weights act (arXiv 2404.07724). Before and after they are 1: the empty or negative pass is left out,
        and the text-only one where neither masks nor `guidance_scope` need it.
      mask_height, mask_width: of the mask grid.
      mask_normalisation, mask_kind, mask_overlap: see `masks`.
      mask_layers: which cross-attentions the word maps come from, in running order; None for all.
      mask_refine: "self_attention" multiplies the word map by the guidance branch's self-attention before its
        top share is kept (RealCustom++), "none" does not.
      scoring: "fused" by time (eq. 8), the ablations "text", "visual" and "mean", or "none" for all tokens as
        they are.
    """

    height: int
    width: int
    steps: int = 50
    mask_steps: int | None = None
    solver: str = "ddim"
    spacing: str = "trailing"
    eta: float = 0.0
    guidance: str = "paper"
    guidance_scope: str = "image"
    guidance_start: float = 0.0
    guidance_stop: float = 1.0
    mask_height: int = 64
    mask_width: int = 64
    mask_normalisation: str = "max_norm"
    mask_kind: str = "soft"
    mask_overlap: str = "strongest"
    mask_layers: tuple[int, ...] | None = None
    mask_refine: str = "none"
    scoring: str = "fused"

    def __post_init__(self):
        for name, known in (
            ("guidance", MODES),
            ("guidance_scope", SCOPES),
            ("mask_normalisation", NORMALISATIONS),
            ("mask_kind", KINDS),
            ("mask_overlap", OVERLAPS),
            ("mask_refine", REFINEMENTS),
            ("scoring", SCORINGS),
        ):
            if getattr(self, name) not in known:
                raise UserError(f"{name} {getattr(self, name)!r} is unknown; known: {', '.join(known)}")
        if self.guidance_scope == "mask" and self.guidance != "paper":
            raise UserError(
                "guidance_scope 'mask' needs guidance 'paper', with its text-only pass at each step"
            )
        if not 0.0 <= self.guidance_start <= self.guidance_stop <= 1.0:
            raise UserError(
                f"guidance_start {self.guidance_start} and guidance_stop {self.guidance_stop} must be shares "
                "of the steps, from 0 to 1, the start not after the stop"
            )
        if self.mask_steps is not None and not 1 <= self.mask_steps <= self.steps:
            raise UserError(f"mask_steps must be from 1 to {self.steps} (steps), not {self.mask_steps}")

    @property
    def guided_steps(self) -> int:
        return self.steps if self.mask_steps is None else self.mask_steps

    @property
    def phases(self) -> tuple[Phase, ...]:
        """All steps, in order, cut where another pass is needed or one no more."""
        start, stop = (round(share * self.steps) for share in (self.guidance_start, self.guidance_stop))
        interval = {start, stop} if start < stop else set()
        edges = sorted({0, self.guided_steps, self.steps} | interval)
        return tuple(
            Phase(a, b, guided=a < self.guided_steps, weighted=start <= a < stop)
            for a, b in itertools.pairwise(edges)
        )
