"""AdamW, or Muon for the kernels, with warm-up, cosine decay and clipping by the global norm."""

import dataclasses
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from realcustom_jax.common.rules import LAST_STEP, choice, option

OPTIMIZERS = ("adamw", "muon")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The config's `optimizer`."""

    name: str = choice("adamw", "muon orthogonalises the updates of kernels", OPTIMIZERS, resume="same")
    learning_rate: float = option(1e-4, "its peak", low=0)
    warmup: int = option(500, "steps until the peak", int, low=0, high=LAST_STEP)
    end_fraction: float = option(0.1, "of the learning rate, at the last step", low=0, high=1)
    weight_decay: float = option(0.01, "of kernels and embeddings", low=0)
    b2: float = option(0.999, "decay of AdamW's second moment", low=0, high=1)
    max_norm: float = option(
        1.0, "of the gradient, which is clipped", low=0, above_0="no gradient would be left"
    )
    ema_decay: float = option(0.9999, "of the averaged parameters, which are exported", low=0, high=1)
    most_skipped: int = option(
        10, "consecutive updates that may be skipped because loss or gradient is not finite", int,
        resume="free", low=1, high=LAST_STEP,
    )  # fmt: skip


# Where images, latents and patches enter and leave: no maps between features, so Muon, as it was published,
# leaves them to AdamW.
_EDGES = {"conv_in", "conv_out", "patch_embedding"}


def make_schedule(peak: float, steps: int, warmup: int, end_fraction: float) -> optax.Schedule:
    """Learning rate by step: linear to `peak` over `warmup` steps, then a cosine to peak·end_fraction."""
    warmup = min(warmup, steps)
    return optax.warmup_cosine_decay_schedule(
        0.0, peak, warmup, max(steps, warmup + 1), end_value=peak * end_fraction
    )


def make_optimizer(
    schedule: optax.Schedule, weight_decay: float, b2: float, max_norm: float, name: str = "adamw"
) -> optax.GradientTransformation:
    """The optimizer `name`, one of `OPTIMIZERS`.

    Muon (Jordan, "Muon: an optimizer for hidden layers", 2024) moves a kernel by its momentum with all
    singular values made alike, so that rare directions learn as fast as common ones. Its steps are as large
    as AdamW's (Liu et al., arXiv 2502.16982), so that learning rates carry over. What is no kernel, and the
    kernels where images enter or leave, are AdamW's, then with Nesterov momentum and without weight decay.

    Args:
      schedule: learning rate by step.
      weight_decay: of kernels and embeddings (arrays of two dimensions or more).
      b2: decay of AdamW's second moment.
      max_norm: of the gradient.
      name: which.
    """

    def decayed(params: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    if name == "muon":
        step = muon(
            schedule,
            # With the Schatten norm at first, four steps come as near to orthogonal as five do without.
            ns_steps=4,
            preconditioning="schatten",
            weight_decay=weight_decay,
            weight_decay_mask=decayed,
            adam_b2=b2,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=0.2,
        )
    else:
        step = optax.adamw(schedule, b2=b2, weight_decay=weight_decay, mask=decayed)
    return optax.chain(optax.clip_by_global_norm(max_norm), step)


def _matrices(params: Any) -> Any:
    """How Muon sees each parameter: a kernel as (all that enters, what leaves), the others not at all."""

    def matrix(path: tuple[Any, ...], leaf: Any) -> MuonDimensionNumbers | None:
        names = [str(getattr(entry, "key", entry)) for entry in path]
        if names[-1] != "kernel" or _EDGES & set(names):
            return None
        return MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(matrix, params)
