"""Compiles a program, and collects memory, cost and collectives from the compiler."""

import dataclasses
import math
import re
import time
from typing import Any

from jax.errors import JaxRuntimeError

from realcustom_jax.aot.collectives import Counts, by_part
from realcustom_jax.aot.programs import Program
from realcustom_jax.aot.topology import Topology
from realcustom_jax.common.kernel_cost import kernel_cost


@dataclasses.dataclass(frozen=True)
class Figures:
    """Memory, cost and time of a program on one chip; None for numbers that the compiler does not give.

    Attributes:
      hbm_peak_bytes: peak memory: arguments, results and temporaries together.
      temp_bytes: memory of the temporaries, mostly activations.
      flops, bytes_accessed: operations and memory traffic of one run.
      estimated_seconds: time of one run from the compiler's cost model. It does not cover attention kernels;
        for these a lower bound is added.
      collectives: {part: {kind: (count, bytes of the results)}}; collectives in loops count once.
      compile_seconds: time of the compilation on this machine.
      fits: whether the program fits into the chip's memory.
    """

    hbm_peak_bytes: int | None
    temp_bytes: int | None
    flops: float | None
    bytes_accessed: float | None
    estimated_seconds: float | None
    collectives: dict[str, Counts]
    compile_seconds: float
    fits: bool


def compile_program(program: Program, topology: Topology, effort: float | None) -> Figures:
    """Compile a program, and return its figures.

    Args:
      program: program for the devices of `topology`.
      topology: the slice whose memory it must fit.
      effort: compiler effort from -1 (compiles fast, makes slow programs) to 1; None for the compiler's own.
    """
    options = {} if effort is None else {"exec_time_optimization_effort": float(effort)}
    started = time.perf_counter()
    try:
        compiled = program.lowered.compile(compiler_options=options)
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        # It does not fit; the message has the bytes that it would have used.
        took = time.perf_counter() - started
        return Figures(_used_bytes(str(error)), None, None, None, None, {}, took, False)
    memory, text = compiled.memory_analysis(), compiled.as_text()
    # Donated arguments share their memory with results (alias).
    peak = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes - memory.alias_size_in_bytes
    )  # fmt: skip
    # Cost analysis counts the body of a loop once. So the parts of a loop are compiled alone, and multiplied
    # by the number of their runs.
    try:
        parts = [(lowered.compile(compiler_options=options), times) for lowered, times in program.parts]
        costs = [
            [_times(cost, times) for cost in _costs(part, topology)]
            for part, times in parts or [(compiled, 1)]
        ]
    except JaxRuntimeError as error:  # a part alone may need more memory than within the program
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        costs = [[None] * 3]
    flops, moved, seconds = (_sum(each) for each in zip(*costs, strict=True))
    return Figures(
        peak,
        memory.temp_size_in_bytes,
        flops,
        moved,
        seconds,
        by_part(text),
        time.perf_counter() - started,
        peak <= topology.chip.usable,
    )


def _costs(compiled: Any, topology: Topology) -> tuple[float | None, float | None, float | None]:
    """Operations, bytes accessed and seconds of one run, including attention kernels."""
    cost = compiled.cost_analysis()
    operations, busy = kernel_cost(compiled.as_text())
    flops, seconds = _positive(cost.get("flops")), _positive(cost.get("optimal_seconds"))
    return (
        flops and flops + operations,
        _positive(cost.get("bytes accessed")),
        # Negative for large programs at full effort; then it is not an estimate.
        seconds and seconds + busy / topology.chip.peak,
    )


def _times(value: float | None, times: int) -> float | None:
    """The product; None for an unknown value."""
    return None if value is None else times * value


def _sum(values: tuple[float | None, ...]) -> float | None:
    """The sum; None if a value is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _positive(value: Any) -> float | None:
    """The value if it is positive, else None: the compiler gives 0 or less for unknown values."""
    return float(value) if value is not None and value > 0 else None


def _used_bytes(message: str) -> int | None:
    """The bytes that a program would have used, from the compiler's out-of-memory error."""
    match = re.search(r"[Uu]sed ([\d.]+)([KMG]) of", message)
    return int(float(match[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[match[2]]) if match else None


def largest_batch(tried: list[tuple[int, Figures]], topology: Topology) -> int | None:
    """Largest batch per chip, by linear extrapolation of the peak memory of two batches.

    Args:
      tried: (batch per chip, its figures) for two different batches.
      topology: the slice.

    Returns:
      The batch, 0 if not even one image fits; None if the sizes are unknown.
    """
    (a, first), (b, second) = tried
    if first.hbm_peak_bytes is None or second.hbm_peak_bytes is None or a == b:
        return None
    slope = (second.hbm_peak_bytes - first.hbm_peak_bytes) / (b - a)
    if slope <= 0:  # the compiler chose another schedule for the larger batch
        return None
    # Parameters take a constant amount, activations grow with the batch: a line through two points.
    return max(0, math.floor(a + (topology.chip.usable - first.hbm_peak_bytes) / slope))
