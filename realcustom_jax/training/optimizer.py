"""The optimizers AdamW and Muon, with warm-up, cosine decay and clipping by the global gradient norm."""

import dataclasses
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from realcustom_jax.common.rules import LAST_STEP, choice, option

OPTIMIZERS = ("adamw", "muon")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The config's `optimizer` section."""

    name: str = choice(
        "adamw", "optimizer; muon orthogonalises the updates of kernels", OPTIMIZERS, resume="same"
    )
    learning_rate: float = option(1e-4, "peak learning rate", low=0)
    warmup: int = option(500, "warm-up steps until the peak", int, low=0, high=LAST_STEP)
    end_fraction: float = option(0.1, "final learning rate as a fraction of the peak", low=0, high=1)
    weight_decay: float = option(0.01, "weight decay of kernels and embeddings", low=0)
    b2: float = option(0.999, "decay of AdamW's second moment", low=0, high=1)
    max_norm: float = option(
        1.0, "largest global norm of the gradient; a larger one is scaled down", low=0,
        above_0="no gradient would be left",
    )  # fmt: skip
    ema_decay: float = option(
        0.9999, "decay of the averaged parameters (EMA), which are exported", low=0, high=1
    )
    most_skipped: int = option(
        10, "consecutive updates that may be skipped because loss or gradient is not finite", int,
        resume="free", low=1, high=LAST_STEP,
    )  # fmt: skip


# The layers where images, latents and patches enter and leave. They are not maps between features, and
# Muon's authors train such layers with AdamW.
_EDGES = {"conv_in", "conv_out", "patch_embedding"}


def make_schedule(peak: float, steps: int, warmup: int, end_fraction: float) -> optax.Schedule:
    """Learning rate by step: linear to `peak` over `warmup` steps, then a cosine to peak·end_fraction."""
    warmup = min(warmup, steps)
    # optax needs at least one decay step after the warm-up.
    return optax.warmup_cosine_decay_schedule(
        0.0, peak, warmup, max(steps, warmup + 1), end_value=peak * end_fraction
    )


def make_optimizer(
    schedule: optax.Schedule, weight_decay: float, b2: float, max_norm: float, name: str = "adamw"
) -> optax.GradientTransformation:
    """Make an optimizer with gradient clipping.

    Muon (Jordan, "Muon: an optimizer for hidden layers", 2024) updates a kernel by its momentum with all
    singular values made equal, so that rare directions learn as fast as common ones. Parameters that are not
    kernels, and the kernels where images enter or leave, are updated by AdamW with Nesterov momentum and
    without weight decay.

    Args:
      schedule: learning rate by step.
      weight_decay: weight decay of kernels and embeddings (arrays with two or more dimensions).
      b2: decay of AdamW's second moment.
      max_norm: largest global norm of the gradient.
      name: one of `OPTIMIZERS`.
    """

    def decayed(params: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    if name == "muon":
        step = muon(
            schedule,
            # Scaling by the Schatten norm first makes four Newton-Schulz steps as good as the usual five.
            ns_steps=4,
            preconditioning="schatten",
            weight_decay=weight_decay,
            weight_decay_mask=decayed,
            adam_b2=b2,
            muon_weight_dimension_numbers=_matrices,
            # Updates as large as AdamW's (Liu et al., arXiv 2502.16982), so learning rates carry over.
            consistent_rms=0.2,
        )
    else:
        step = optax.adamw(schedule, b2=b2, weight_decay=weight_decay, mask=decayed)
    return optax.chain(optax.clip_by_global_norm(max_norm), step)


def _matrices(params: Any) -> Any:
    """Matrix view of each parameter for Muon: kernels as (inputs, outputs), None for all others."""

    def matrix(path: tuple[Any, ...], leaf: Any) -> MuonDimensionNumbers | None:
        names = [str(getattr(entry, "key", entry)) for entry in path]
        if names[-1] != "kernel" or _EDGES & set(names):
            return None
        # Flax kernels have their outputs last: (in, out), or (kh, kw, in, out) for convolutions.
        return MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(matrix, params)
