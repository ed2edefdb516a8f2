"""Slices of TPU chips: their names, and what the compiler must be told of them."""

import dataclasses
import math
import os
import re
from collections.abc import MutableMapping
from typing import Any

from jax.experimental import topologies

from realcustom_jax.common.chips import CHIPS, Chip
from realcustom_jax.common.errors import UserError


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: `name` is what the compiler calls it, such as "v5e:4x4"."""

    name: str
    chip: Chip
    chips: int

    @property
    def accelerator(self) -> str:
        """As a cloud's order says it: "v5litepod-16"."""
        return f"{self.chip.accelerator}-{self.chips * self.chip.per_size}"


def parse_topology(name: str) -> Topology:
    """ "v5e:4x4" → 16 chips.

    Raises:
      UserError: for an unknown generation, or sides of another number.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if not match or match[1] not in CHIPS:
        known = ", ".join(CHIPS)
        raise UserError(f"--topology {name!r} is not GENERATION:SIDES, as v5e:4x4; generations: {known}")
    chip, sides = CHIPS[match[1]], [int(side) for side in match[2].split("x")]
    if len(sides) != chip.dimensions or min(sides) < 1:
        example = "x".join("2" * chip.dimensions)
        raise UserError(
            f"--topology {name!r}: {match[1]} has {chip.dimensions} sides, as {match[1]}:{example}"
        )
    return Topology(name, chip, math.prod(sides))


def set_environment(topology: Topology, environment: MutableMapping[str, str] = os.environ) -> None:
    """What keeps the TPU's compiler from looking for a TPU; to be set before `devices`."""
    environment["TPU_SKIP_MDS_QUERY"] = "1"
    # Beside another compilation, or a run on this machine's TPU.
    environment["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    environment["TPU_WORKER_HOSTNAMES"] = "localhost"
    environment["TPU_ACCELERATOR_TYPE"] = topology.accelerator


def description_options(topology: Topology) -> dict[str, Any]:
    """What the compiler must be told of a slice besides its name."""
    generation, _, layout = topology.name.partition(":")
    sides = [int(side) for side in layout.split("x")]
    options: dict[str, Any] = {}
    if min(sides[:2]) < 2:  # a host has 2×2 chips, or all of a smaller slice
        options["chips_per_host_bounds"] = (*(min(side, 2) for side in sides[:2]), 1)
    if generation == "v4":  # whose two cores it takes for two devices otherwise, which JAX does not
        options["chip_config_name"] = "megacore"
    return options


def devices(topology: Topology) -> list[Any]:
    """The chips as JAX's devices, that nothing can run on.

    Raises:
      UserError: without the TPU's compiler, or for a topology that it does not know.
    """
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **description_options(topology)
        )
        return list(description.devices)
    except Exception as error:  # of several kinds, by version
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the TPU compiler does not give {topology.name}: {reason}; it comes with realcustom_jax[tpu]"
        ) from None
