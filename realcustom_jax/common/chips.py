"""Memory and peak performance of TPU chips, from the public documentation of each generation."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation of TPU chips.

    Attributes:
      kind: JAX's `device_kind`.
      accelerator: name of a slice without its size, as in "v5litepod-16".
      per_size: units that one chip adds to the size of a slice: 2 if the size counts cores, 1 if chips.
      hbm: bytes of memory.
      peak: bfloat16 operations per second.
      dimensions: number of sides of a topology.
    """

    kind: str
    accelerator: str
    per_size: int
    hbm: int
    peak: float
    dimensions: int

    @property
    def usable(self) -> int:
        """Bytes of memory that a program can use."""
        # The compiler reserves 1/64: programs get 15.75 GiB of a v5e's 16 GiB.
        return self.hbm * 63 // 64


CHIPS = {
    "v4": Chip("TPU v4", "v4", 2, 32 * GIB, 275e12, 3),
    "v5e": Chip("TPU v5 lite", "v5litepod", 1, 16 * GIB, 197e12, 2),
    "v5p": Chip("TPU v5", "v5p", 2, 95 * GIB, 459e12, 3),
    "v6e": Chip("TPU v6 lite", "v6e", 1, 32 * GIB, 918e12, 2),
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip with this JAX `device_kind`; None for a CPU, a GPU or an unknown TPU."""
    return next((chip for chip in CHIPS.values() if chip.kind == device_kind), None)
