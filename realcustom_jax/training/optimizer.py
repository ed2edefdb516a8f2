"""AdamW with warm-up, cosine decay and clipping by the global norm."""

from typing import Any

import jax
import optax


def make_schedule(peak: float, steps: int, warmup: int, end_fraction: float) -> optax.Schedule:
    """Learning rate by step: linear to `peak` over `warmup` steps, then a cosine to peak·end_fraction."""
    warmup = min(warmup, steps)
    return optax.warmup_cosine_decay_schedule(
        0.0, peak, warmup, max(steps, warmup + 1), end_value=peak * end_fraction
    )


def make_optimizer(
    schedule: optax.Schedule, weight_decay: float, b2: float, max_norm: float
) -> optax.GradientTransformation:
    """Weight decay acts on kernels and embeddings only (arrays of two dimensions or more)."""

    def decayed(params: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    return optax.chain(
        optax.clip_by_global_norm(max_norm),
        optax.adamw(schedule, b2=b2, weight_decay=weight_decay, mask=decayed),
    )
