"""TPU topologies (slices of chips): parsing of their names, and their devices for the compiler."""

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
    """A slice of TPU chips; `name` is the compiler's name of it, such as "v5e:4x4"."""

    name: str
    chip: Chip
    chips: int

    @property
    def accelerator(self) -> str:
        """Accelerator type in Google Cloud, such as "v5litepod-16"."""
        # Depending on the generation, the number counts chips or cores.
        return f"{self.chip.accelerator}-{self.chips * self.chip.per_size}"


def parse_topology(name: str) -> Topology:
    """Parse a name such as "v5e:4x4" (16 chips).

    Raises:
      UserError: for an unknown generation or a wrong number of sides.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if not match or match[1] not in CHIPS:
        known = ", ".join(CHIPS)
        raise UserError(f"--topology {name!r} is not GENERATION:SIDES, such as v5e:4x4; generations: {known}")
    chip, sides = CHIPS[match[1]], [int(side) for side in match[2].split("x")]
    # v5e and v6e are 2D tori or meshes, v4 and v5p are 3D.
    if len(sides) != chip.dimensions or min(sides) < 1:
        example = "x".join("2" * chip.dimensions)
        raise UserError(
            f"--topology {name!r}: {match[1]} has {chip.dimensions} sides, such as {match[1]}:{example}"
        )
    return Topology(name, chip, math.prod(sides))


def set_environment(topology: Topology, environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the environment variables that let the TPU compiler run without a TPU. Call it before `devices`."""
    # Without it, libtpu asks Google Cloud's metadata server, and waits for an answer.
    environment["TPU_SKIP_MDS_QUERY"] = "1"
    # Otherwise libtpu refuses to load while another process uses it, to compile or to run.
    environment["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    environment["TPU_WORKER_HOSTNAMES"] = "localhost"
    environment["TPU_ACCELERATOR_TYPE"] = topology.accelerator


def description_options(topology: Topology) -> dict[str, Any]:
    """Further options of `get_topology_desc` for a slice."""
    generation, _, layout = topology.name.partition(":")
    sides = [int(side) for side in layout.split("x")]
    options: dict[str, Any] = {}
    if min(sides[:2]) < 2:  # the default is 2×2 chips per host, which a narrower slice does not have
        options["chips_per_host_bounds"] = (*(min(side, 2) for side in sides[:2]), 1)
    if generation == "v4":  # otherwise each of the two cores is a device; JAX on a real v4 has one per chip
        options["chip_config_name"] = "megacore"
    return options


def devices(topology: Topology) -> list[Any]:
    """The chips as JAX devices. Programs can be compiled for them, but not run.

    Raises:
      UserError: if the TPU compiler is not installed or does not know the topology.
    """
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **description_options(topology)
        )
        return list(description.devices)
    except Exception as error:  # its type depends on the version of JAX
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the TPU compiler cannot make {topology.name}: {reason}; it comes with realcustom_jax[tpu]"
        ) from None
