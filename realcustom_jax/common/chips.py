"""TPU chips: what one has. Figures are those of the public documentation of each generation."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation of TPU chips.

    Attributes:
      kind: what JAX calls such a device.
      accelerator: name of a slice in front of its size.
      per_size: what the size counts of each chip: its cores (2), or itself (1).
      hbm: bytes of memory; the compiler keeps a 64th part for itself.
      peak: bfloat16 operations a second.
      dimensions: of a topology.
    """

    kind: str
    accelerator: str
    per_size: int
    hbm: int
    peak: float
    dimensions: int

    @property
    def usable(self) -> int:
        """Bytes of memory that a program can have: of a v5e's 16 GiB the compiler gives 15.75."""
        return self.hbm * 63 // 64


CHIPS = {
    "v4": Chip("TPU v4", "v4", 2, 32 * GIB, 275e12, 3),
    "v5e": Chip("TPU v5 lite", "v5litepod", 1, 16 * GIB, 197e12, 2),
    "v5p": Chip("TPU v5", "v5p", 2, 95 * GIB, 459e12, 3),
    "v6e": Chip("TPU v6 lite", "v6e", 1, 32 * GIB, 918e12, 2),
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX calls so; None for one that is not known, a CPU or a GPU."""
    return next((chip for chip in CHIPS.values() if chip.kind == device_kind), None)
