"""Reports of `aot`: a table, or a JSON object."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from realcustom_jax.aot.collectives import Counts, total
from realcustom_jax.aot.compiled import Figures
from realcustom_jax.aot.programs import Program
from realcustom_jax.aot.request import Request
from realcustom_jax.aot.topology import Topology
from realcustom_jax.common.chips import GIB

UNKNOWN = "unknown"


def as_json(program: Program, figures: Figures, topology: Topology, largest: int | None) -> dict[str, Any]:
    """All figures by name; unknown ones are None."""
    # The compiler counts the body of a loop once, so these figures would be too small.
    if program.loops and not program.parts:
        figures = dataclasses.replace(figures, flops=None, bytes_accessed=None, estimated_seconds=None)
    # All chips work in parallel on the images of a run.
    seconds = figures.estimated_seconds
    rate = program.images / seconds / topology.chips if seconds else None
    return {
        "topology": topology.name,
        "chips": topology.chips,
        "images": program.images,
        "hbm_bytes": topology.chip.hbm,
        "hbm_peak_bytes": figures.hbm_peak_bytes,
        "held_bytes": program.held,
        "temp_bytes": figures.temp_bytes,
        "fits": figures.fits,
        "flops": figures.flops,
        "bytes_accessed": figures.bytes_accessed,
        "collectives": _counts(total(figures.collectives)),
        "collectives_by_part": {part: _counts(count) for part, count in figures.collectives.items()},
        "estimated_step_seconds": seconds,
        "images_per_second_per_chip": rate,
        "utilisation": figures.flops / seconds / topology.chip.peak if seconds and figures.flops else None,
        "compile_seconds": round(figures.compile_seconds, 1),
        "largest_batch_per_chip": largest,
    }


def programs_json(
    request: Request, figures: Mapping[str, Figures], topology: Topology
) -> dict[str, dict[str, Any]]:
    """{program: its figures}; `resident_bytes` is the peak with the parameters of all components loaded."""
    values = {}
    for name, own in figures.items():
        # Without offloading, the parameters of all components stay in memory while a program runs.
        others = request.parameters - request.held[name]
        resident = None if own.hbm_peak_bytes is None else own.hbm_peak_bytes + others
        values[name] = {
            "parameter_bytes": request.held[name],
            "hbm_peak_bytes": own.hbm_peak_bytes,
            "resident_bytes": resident,
            "fits": own.fits and resident is not None and resident <= topology.chip.usable,
            "fits_offloaded": own.fits,
            "estimated_seconds": own.estimated_seconds,
            "compile_seconds": round(own.compile_seconds, 1),
        }
    return values


def _counts(count: Counts) -> dict[str, dict[str, int]]:
    return {kind: {"count": n, "bytes": size} for kind, (n, size) in count.items()}


def as_table(values: dict[str, Any]) -> str:
    """The JSON object as a table."""
    rows = [
        ("chips", f"{values['chips']} ({values['topology']})"),
        ("images per run", f"{values['images']}, {values['images'] / values['chips']:g} per chip"),
    ]
    rows += [(name, _gib(size)) for name, size in values["held_bytes"].items()]
    peak = values["hbm_peak_bytes"]
    share = f", {peak / values['hbm_bytes']:.0%} of {_gib(values['hbm_bytes'])}" if peak else ""
    rows += [
        ("activations and temporaries", _gib(values["temp_bytes"])),
        ("peak memory per chip", _gib(peak) + share),
        ("fits", "yes" if values["fits"] else "no"),
        ("largest batch per chip", _number(values["largest_batch_per_chip"])),
        ("operations", _scaled(values["flops"], "FLOP")),
        ("memory traffic", _scaled(values["bytes_accessed"], "B")),
    ]
    # each kind, then its parts indented
    for kind, counts in values["collectives"].items():
        rows.append((f"{kind}, {counts['count']} times", _gib(counts["bytes"])))
        for part, by_kind in values["collectives_by_part"].items():
            if kind in by_kind:
                rows.append((f"  {part}, {by_kind[kind]['count']} times", _gib(by_kind[kind]["bytes"])))
    seconds, rate = values["estimated_step_seconds"], values["images_per_second_per_chip"]
    use = values["utilisation"]
    rows += [
        ("time per run, the compiler's estimate", f"{seconds:.4g} s" if seconds else UNKNOWN),
        ("images/s per chip", f"{rate:.4g}" if rate else UNKNOWN),
        ("share of the peak operations", f"{use:.1%}" if use else UNKNOWN),
        ("compiled in", f"{values['compile_seconds']:.1f} s"),
    ]
    for name, own in values.get("programs", {}).items():
        seconds = own["estimated_seconds"]
        rows += [
            (f"{name}: alone", _gib(own["hbm_peak_bytes"])),
            ("  with the whole model", _gib(own["resident_bytes"])),
            ("  fits, compiled in", f"{'yes' if own['fits'] else 'no'}, {own['compile_seconds']:.1f} s"),
            ("  the compiler's estimate", f"{seconds:.4g} s" if seconds else UNKNOWN),
        ]
    width = max(len(name) for name, _ in rows)  # aligns the values in a column
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows)


def _gib(size: float | None) -> str:
    if size is None:
        return UNKNOWN
    return f"{size / GIB:.2f} GiB" if size >= GIB / 100 else f"{size / 2**20:.2f} MiB"


def _scaled(value: float | None, unit: str) -> str:
    if value is None:
        return UNKNOWN
    return f"{value / 1e12:.3g} T{unit}" if value > 1e11 else f"{value / 1e9:.3g} G{unit}"


def _number(value: int | None) -> str:
    return "not computed" if value is None else str(value)
