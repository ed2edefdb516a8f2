"""What depends on the kind of device that a model runs on: its precision, and options of the compiler."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from realcustom_jax.common.errors import UserError

AUTO = "auto"
COMPUTE_DTYPES = ("float32", "bfloat16", "float16")


def resolve_dtype(dtype: Any, mesh: Mesh, name: str = "dtype") -> Any:
    """A dtype by name or as it is; "auto" is float32 on CPUs and bfloat16 on other devices.

    Raises:
      UserError: for what is no floating-point dtype of `COMPUTE_DTYPES`; `name` tells the option.
    """
    if isinstance(dtype, str) and dtype == AUTO:
        return jnp.float32 if mesh.devices.flat[0].platform == "cpu" else jnp.bfloat16
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    # jnp.dtype(None) is float64.
    if dtype is None or found is None or found.name not in COMPUTE_DTYPES:
        raise UserError(f"{name} {dtype!r} is unknown; known: {AUTO}, {', '.join(COMPUTE_DTYPES)}")
    return np.dtype(found)


def vae_compute_dtype(dtype: Any, compute: Any, force_upcast: bool, mesh: Mesh) -> Any:
    """The VAE's compute dtype, None for the model's own.

    "auto" is float32 where the VAE's config says `force_upcast`, else the model's precision.
    """
    if isinstance(dtype, str) and dtype == AUTO:
        dtype = jnp.float32 if force_upcast else compute
    dtype = resolve_dtype(dtype, mesh, "vae_dtype")
    return None if dtype == jnp.dtype(compute) else dtype


def compiler_options(platform: str) -> dict[str, str]:
    """For `jax.jit`, by the kind of device.

    On CPUs XLA by default starts early whatever it can, as the transposed kernels of a whole backward pass,
    and holds all of it: the temporaries of SD1.5's training step then take three times the memory.
    """
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"} if platform == "cpu" else {}
