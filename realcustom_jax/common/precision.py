"""Settings that depend on the platform of the devices: dtypes and compiler options."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from realcustom_jax.common.errors import UserError

AUTO = "auto"
COMPUTE_DTYPES = ("float32", "bfloat16", "float16")


def resolve_dtype(dtype: Any, mesh: Mesh, name: str = "dtype") -> Any:
    """A dtype from its name or from a dtype object; "auto" is float32 on CPUs, bfloat16 on other devices.

    Args:
      dtype: the value of an option.
      mesh: the devices.
      name: name of the option, for errors.

    Raises:
      UserError: for anything that is not one of `COMPUTE_DTYPES`.
    """
    if isinstance(dtype, str) and dtype == AUTO:
        return jnp.float32 if mesh.devices.flat[0].platform == "cpu" else jnp.bfloat16
    try:
        resolved = jnp.dtype(dtype)
    except TypeError:
        resolved = None
    # jnp.dtype(None) is float64.
    if dtype is None or resolved is None or resolved.name not in COMPUTE_DTYPES:
        raise UserError(f"{name} {dtype!r} is unknown; known: {AUTO}, {', '.join(COMPUTE_DTYPES)}")
    return np.dtype(resolved)


def vae_compute_dtype(dtype: Any, compute: Any, force_upcast: bool, mesh: Mesh) -> Any:
    """Compute dtype of the VAE; None if it is that of the model.

    Args:
      dtype: the option; "auto" is float32 if the VAE's config has `force_upcast`, else `compute`.
      compute: compute dtype of the model.
      force_upcast: see `VAEConfig`.
      mesh: the devices.

    Raises:
      UserError: for an unknown dtype.
    """
    # SDXL's VAE overflows to NaN in float16; its config has `force_upcast` for that reason.
    if isinstance(dtype, str) and dtype == AUTO:
        dtype = jnp.float32 if force_upcast else compute
    dtype = resolve_dtype(dtype, mesh, "vae_dtype")
    return None if dtype == jnp.dtype(compute) else dtype


def compiler_options(platform: str) -> dict[str, str]:
    """Compiler options of `jax.jit` for a platform."""
    # XLA's default on CPUs starts operations as early as possible, for example the transposes of all kernels
    # for the backward pass, and keeps all results. The temporaries of SD1.5's training step then take three
    # times the memory.
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"} if platform == "cpu" else {}
