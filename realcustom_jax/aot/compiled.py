"""Compiles a program and reads off what the compiler knows of it."""

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
    """What a chip needs for a program; None where the compiler does not tell.

    Attributes:
      hbm_peak_bytes: arguments, results and temporaries at once.
      temp_bytes: of the temporaries, activations above all.
      flops, bytes_accessed: of one run.
      estimated_seconds: of one run, by the compiler's cost model, and for attention kernels, which it does
        not cover, the least they can take.
      collectives: {part: {kind: (count, bytes of their results)}}, those within loops once.
      compile_seconds: how long compiling took here.
      fits: whether the compiler found room.
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
    """Compile, and read memory, cost and collectives.

    Args:
      program: for the devices of `topology`.
      topology: whose memory it must fit.
      effort: from -1 (compiles in a fraction of the time, makes slower programs) to 1; None for the
        compiler's own.
    """
    options = {} if effort is None else {"exec_time_optimization_effort": float(effort)}
    started = time.perf_counter()
    try:
        compiled = program.lowered.compile(compiler_options=options)
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        took = time.perf_counter() - started
        return Figures(_wanted(str(error)), None, None, None, None, {}, took, False)
    memory, text = compiled.memory_analysis(), compiled.as_text()
    peak = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes - memory.alias_size_in_bytes
    )  # fmt: skip
    try:
        parts = [(lowered.compile(compiler_options=options), times) for lowered, times in program.parts]
        costs = [
            [_times(cost, times) for cost in _costs(part, topology)]
            for part, times in parts or [(compiled, 1)]
        ]
    except JaxRuntimeError as error:  # alone, a part may need more room than within the program
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        costs = [[None] * 3]
    return Figures(
        peak,
        memory.temp_size_in_bytes,
        *(_sum(each) for each in zip(*costs, strict=True)),
        by_part(text),
        time.perf_counter() - started,
        peak <= topology.chip.usable,
    )


def _costs(compiled: Any, topology: Topology) -> tuple[float | None, float | None, float | None]:
    """Operations, bytes moved and seconds of one run, those of attention kernels included."""
    cost = compiled.cost_analysis()
    operations, busy = kernel_cost(compiled.as_text())
    flops, seconds = _positive(cost.get("flops")), _positive(cost.get("optimal_seconds"))
    return (
        flops and flops + operations,
        _positive(cost.get("bytes accessed")),
        # Negative for large programs at full effort: then it is no estimate.
        seconds and seconds + busy / topology.chip.peak,
    )


def _times(value: float | None, times: int) -> float | None:
    return None if value is None else times * value


def _sum(values: tuple[float | None, ...]) -> float | None:
    """None where one is not known."""
    return None if None in values else sum(values)


def _positive(value: Any) -> float | None:
    return float(value) if value is not None and value > 0 else None


def _wanted(message: str) -> int | None:
    """The bytes that a program which does not fit would have used, as the compiler's error says."""
    match = re.search(r"[Uu]sed ([\d.]+)([KMG]) of", message)
    return int(float(match[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[match[2]]) if match else None


def largest_batch(tried: list[tuple[int, Figures]], topology: Topology) -> int | None:
    """The largest batch of a chip, on the line through two that were tried: memory grows with the batch.

    Args:
      tried: (batch of a chip, its figures), two of different batches.

    Returns:
      0 when not even one image fits; None when the compiler told no sizes.
    """
    (a, first), (b, second) = tried
    if first.hbm_peak_bytes is None or second.hbm_peak_bytes is None or a == b:
        return None
    slope = (second.hbm_peak_bytes - first.hbm_peak_bytes) / (b - a)
    if slope <= 0:
        return None
    return max(0, math.floor(a + (topology.chip.usable - first.hbm_peak_bytes) / slope))
