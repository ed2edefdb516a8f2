"""Figures of a compiled program (memory, operations, collectives), on 8 simulated CPU devices."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from realcustom_jax.aot.collectives import total
from realcustom_jax.aot.compiled import Figures, compile_program, largest_batch
from realcustom_jax.aot.programs import Program, per_chip_bytes
from realcustom_jax.aot.report import as_json, as_table
from realcustom_jax.aot.topology import parse_topology

TOPOLOGY = parse_topology("v5e:2x4")


@pytest.fixture(scope="module")
def figures() -> tuple[Program, Figures]:
    """One matrix product whose sum is replicated: 2·m·k·n operations over 8 devices."""
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    w = jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=NamedSharding(mesh, P()))
    run = jax.jit(lambda x, w: (x @ w).sum(axis=0), out_shardings=NamedSharding(mesh, P()))
    program = Program(run.lower(x, w), 64, {"x": per_chip_bytes(x), "w": per_chip_bytes(w)})
    return program, compile_program(program, TOPOLOGY, None)


def test_program_reports_memory_flops_and_collectives(figures):
    program, found = figures
    assert program.held == {"x": 64 * 32 * 4 // 8, "w": 32 * 16 * 4}
    assert 2 * 8 * 32 * 16 <= found.flops < 2.2 * 8 * 32 * 16  # plus the sum
    assert total(found.collectives) == {"all-reduce": (1, 16 * 4)}
    arguments = program.held["x"] + program.held["w"]
    assert arguments + 16 * 4 <= found.hbm_peak_bytes < arguments + 100_000
    assert found.fits and found.compile_seconds > 0


def test_program_larger_than_hbm_does_not_fit(figures):
    program, found = figures
    tiny = dataclasses.replace(TOPOLOGY, chip=dataclasses.replace(TOPOLOGY.chip, hbm=1000))
    assert not compile_program(program, tiny, None).fits

    class TooLarge:
        def compile(self, compiler_options):
            message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 31.52G of 15.75G hbm."
            raise jax.errors.JaxRuntimeError(message)

    found = compile_program(Program(TooLarge(), 8, {}), TOPOLOGY, -1.0)
    assert not found.fits and found.hbm_peak_bytes == int(31.52 * 2**30) and found.flops is None


def test_largest_batch_is_extrapolated_linearly(figures):
    _, found = figures

    def peak(size):
        return dataclasses.replace(found, hbm_peak_bytes=size)

    gib = 2**30
    assert largest_batch([(2, peak(6 * gib)), (4, peak(8 * gib))], TOPOLOGY) == 11  # of 15.75
    assert largest_batch([(1, peak(30 * gib)), (2, peak(31 * gib))], TOPOLOGY) == 0
    assert largest_batch([(1, peak(None)), (2, peak(gib))], TOPOLOGY) is None


def test_negative_time_estimate_is_reported_as_unknown(figures):
    """The compiler gives one for large programs at full effort."""
    program, found = figures
    assert found.estimated_seconds is None  # CPU's compiler has none
    values = as_json(program, found, TOPOLOGY, None)
    assert values["estimated_step_seconds"] is None and values["utilisation"] is None
    assert "the compiler's estimate  unknown" in as_table(values)


def test_report_contains_all_figures(figures):
    program, found = figures
    found = dataclasses.replace(found, estimated_seconds=0.5, flops=19.7e12, hbm_peak_bytes=4 * 2**30)
    values = as_json(program, found, TOPOLOGY, 9)
    wanted = {"hbm_peak_bytes", "hbm_bytes", "fits", "flops", "estimated_step_seconds", "utilisation"}
    assert wanted | {"compile_seconds"} <= json.loads(json.dumps(values)).keys()
    assert values["utilisation"] == pytest.approx(0.2)  # 39.4 of 197 TFLOP/s
    assert values["images_per_second_per_chip"] == pytest.approx(64 / 0.5 / 8)
    table = as_table(values)
    for line in ("25% of 16.00 GiB", "all-reduce, 1 times", "20.0%"):
        assert line in table
    assert re.search(r"largest batch per chip +9\n", table) and re.search(r"images/s per chip +16\n", table)


def test_looped_program_reports_no_flops_or_time(figures):
    """The compiler counts the body of a loop once, so operations and time are unknown."""
    program, found = figures
    found = dataclasses.replace(found, estimated_seconds=0.5)
    values = as_json(dataclasses.replace(program, loops=True), found, TOPOLOGY, None)
    assert values["flops"] is values["estimated_step_seconds"] is values["utilisation"] is None
    assert values["hbm_peak_bytes"] == found.hbm_peak_bytes


def test_loop_flops_are_computed_from_parts():
    """The compiler counts a loop of seven products once; its body, given as a part, counts seven times."""
    x = jax.ShapeDtypeStruct((32, 32), jnp.float32)
    w = jax.ShapeDtypeStruct((32, 32), jnp.float32)
    body = jax.jit(jnp.matmul).lower(x, w)
    loop = jax.jit(lambda x, w: jax.lax.fori_loop(0, 7, lambda _, x: x @ w, x)).lower(x, w)
    without_parts = Program(loop, 32, {}, loops=True)
    with_parts = dataclasses.replace(without_parts, parts=((body, 7),))
    values = [
        as_json(p, compile_program(p, TOPOLOGY, None), TOPOLOGY, None) for p in (without_parts, with_parts)
    ]
    assert values[0]["flops"] is None
    assert values[1]["flops"] == pytest.approx(7 * 2 * 32**3)
    assert values[1]["estimated_step_seconds"] is None  # CPU's compiler has none
