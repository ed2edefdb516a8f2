"""Rematerialisation: which activations a training step saves, and which it computes again."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

# What is saved inside each residual and transformer block of the UNet. The input of a block is always saved.
POLICIES = {
    "none": None,  # everything that the backward pass reads: fastest, most memory
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # the results of products with weights
    "blocks": jax.checkpoint_policies.nothing_saveable,  # nothing: least memory, a second forward pass
}


def remat_call(module: nn.Module, policy: str, *args: Any) -> Any:
    """`module(*args)` under a policy of `POLICIES`. Values and gradients do not depend on the policy."""
    if policy == "none":
        return module(*args)
    # `nn.remat` of a function instead of the class: the module is bound already, and keeps its parameters.
    return nn.remat(_call, policy=POLICIES[policy])(module, *args)


def remat_scan_body(step: Callable[..., Any], policy: str) -> Callable[..., Any]:
    """`step`, the body of a scan, under a policy of `POLICIES`."""
    # XLA cannot merge operations across loop iterations, so the barriers of `prevent_cse` are not needed.
    return step if policy == "none" else jax.checkpoint(step, policy=POLICIES[policy], prevent_cse=False)


def _call(module: nn.Module, *args: Any) -> Any:
    return module(*args)
