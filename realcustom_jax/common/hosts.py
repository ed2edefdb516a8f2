"""Connects the processes of several hosts. This must happen before the first use of JAX."""

import os
from collections.abc import Mapping

import jax

from realcustom_jax.common.errors import UserError

# JAX's names. `launch/local.sh` sets them; a user who starts processes by hand can set them too.
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def connect(multihost: bool, environment: Mapping[str, str] = os.environ) -> None:
    """Connect this process to the other processes of its run, if there are any.

    Args:
      multihost: whether to read addresses and process numbers from the cluster's environment (TPU pods, GKE).
      environment: environment variables. JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID
        override the cluster's environment.

    Raises:
      UserError: if only some of the three variables are set, if a value is invalid, or if no cluster is
        found.
    """
    given = {name: environment[name] for name in _VARIABLES if environment.get(name)}
    if not given and not multihost:
        return
    if given and len(given) < len(_VARIABLES):
        missing = ", ".join(name for name in _VARIABLES if name not in given)
        raise UserError(f"{', '.join(given)} is set, but {missing} is not: several processes need all three")
    try:
        if given:
            address, count, index = (given[name] for name in _VARIABLES)
            jax.distributed.initialize(address, int(count), int(index))
        else:
            jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the hosts cannot be connected: {' '.join(str(error).split())[:300]}") from None
