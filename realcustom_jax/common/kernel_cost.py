"""Counts the operations of attention kernels in a compiled TPU program, which the compiler does not count."""

import math
import re

_LANES = 128  # width of the TPU's matrix unit
# Matrix products per kernel, each of N·N·D multiply-adds: forward QKᵀ and PV; backward QKᵀ again, dV, dP, dQ,
# dK.
_PRODUCTS = {"fwd": 2, "dkv": 5}
_IN_PROGRAM = re.compile(
    r"%splash_mha_(fwd|dkv)\S* = .*operand_layout_constraints=\{(?:s8\[\S* )*\w+\[([\d,]+)\]"
)


def kernel_cost(program: str) -> tuple[float, float]:
    """Operations of the attention kernels in a compiled program.

    Args:
      program: text of the program from the TPU compiler. Kernels in loops count once.

    Returns:
      The operations, and the operations that the matrix unit is busy with, channels rounded up to 128 lanes.
      The second number at the chip's peak rate gives a lower bound on the time.
    """
    operations = busy = 0.0
    for kind, shape in _IN_PROGRAM.findall(program):
        *images, pixels, channels = map(int, shape.split(","))  # (B, H, N, D)
        product = 2.0 * math.prod(images) * pixels**2
        operations += _PRODUCTS[kind] * product * channels
        busy += _PRODUCTS[kind] * product * (-(-channels // _LANES) * _LANES)
    return operations, busy
