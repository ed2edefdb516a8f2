"""Joins the processes of several hosts before JAX is first used."""

import os
from collections.abc import Mapping

import jax

from realcustom_jax.common.errors import UserError

# As JAX names them; `launch/local.sh` sets them, and whoever starts processes by hand may.
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def connect(multihost: bool, environment: Mapping[str, str] = os.environ) -> None:
    """Connect this process with the others of its run, if there are any.

    Args:
      multihost: take addresses and numbers from the cluster's own environment, as TPU pods and GKE have it.
      environment: where all three of JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID are set,
        they say it instead.

    Raises:
      UserError: when only some of them are set, or are no such values, or the cluster cannot be found.
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
        raise UserError(f"the hosts cannot be joined: {' '.join(str(error).split())[:300]}") from None
