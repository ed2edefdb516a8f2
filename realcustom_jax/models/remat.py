"""Rematerialisation: what a training step keeps of the forward pass, and what it computes again."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

# What is kept within a block, whose input always is: the residual blocks and transformer blocks of the UNet.
POLICIES = {
    "none": None,  # all that the backward pass reads: fastest, most memory
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # what products with weights give
    "blocks": jax.checkpoint_policies.nothing_saveable,  # nothing: least memory, a second forward pass
}


def call(module: nn.Module, policy: str, *args: Any) -> Any:
    """`module(*args)` under a policy of `POLICIES`; values and gradients are the same under all."""
    if policy == "none":
        return module(*args)
    return nn.remat(_call, policy=POLICIES[policy])(module, *args)


def policed(step: Callable[..., Any], policy: str) -> Callable[..., Any]:
    """The body of a scan under a policy of `POLICIES`."""
    # Within a loop nothing can be merged with the first pass, so nothing need keep XLA from it.
    return step if policy == "none" else jax.checkpoint(step, policy=POLICIES[policy], prevent_cse=False)


def _call(module: nn.Module, *args: Any) -> Any:
    return module(*args)
