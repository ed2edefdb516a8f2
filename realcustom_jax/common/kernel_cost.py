"""Operations of the attention kernel in a compiled TPU program, which the compiler does not count."""

import math
import re

_LANES = 128  # of the TPU's matrix unit
# Of the matrix products of N×N by N×D operations each: QKᵀ and PV; backward QKᵀ again, dV, dP, dQ and dK.
_PRODUCTS = {"fwd": 2, "dkv": 5}
_IN_PROGRAM = re.compile(
    r"%splash_mha_(fwd|dkv)\S* = .*operand_layout_constraints=\{(?:s8\[\S* )*\w+\[([\d,]+)\]"
)


def kernel_cost(program: str) -> tuple[float, float]:
    """What a chip computes in the kernels of a compiled program, of which the compiler itself knows nothing.

    Args:
      program: its text, as the TPU compiler gives it. Kernels within loops count once.

    Returns:
      operations, and those of them that a matrix unit of 128 lanes is busy with: fewer channels fill it up
      only in part. At the chip's peak the second number takes the least time that the kernels can take.
    """
    operations = busy = 0.0
    for kind, shape in _IN_PROGRAM.findall(program):
        *images, pixels, channels = map(int, shape.split(","))
        product = 2.0 * math.prod(images) * pixels**2
        operations += _PRODUCTS[kind] * product * channels
        busy += _PRODUCTS[kind] * product * (-(-channels // _LANES) * _LANES)
    return operations, busy
