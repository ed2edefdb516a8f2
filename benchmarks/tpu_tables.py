"""Memory and time of training and sampling on TPUs: `python benchmarks/tpu_tables.py [--cache runs/aot]`.

Compiles the training steps and samplers of configs/sd15.py and configs/sdxl.py for several TPU slices and
prints the tables of docs/tpus.md. The real TPU compiler is used, but no TPU is needed. Needs the extra "tpu".
Each program takes some minutes on two cores. Results in --cache are reused.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from realcustom_jax.common.chips import GIB
from realcustom_jax.common.cli import run_command
from realcustom_jax.common.errors import UserError

SLICES = {
    "v5e:1x1": "one v5e",
    "v5e:2x4": "v5e-8",
    "v5e:4x4": "v5e-16",
    "v4:2x2x4": "v4-32",
    "v5p:4x4x4": "v5p-128",
}
# Images per chip; the table marks those that do not fit.
TRAIN = {
    "sd15": {"v5e:1x1": 8, "v5e:2x4": 16, "v5e:4x4": 16, "v4:2x2x4": 16, "v5p:4x4x4": 16},
    "sdxl": {"v5e:2x4": 2, "v5e:4x4": 4, "v4:2x2x4": 4, "v5p:4x4x4": 8},
}
SAMPLE = {"sd15": {"v5e:1x1": 1, "v5e:2x4": 1}, "sdxl": {"v5e:1x1": 1, "v5e:2x4": 1}}
PROGRAMS = ("config", "slice", "program", "alone", "with the whole model", "fits", "time", "compiled in")
COLUMNS = (
    "config", "slice", "images a chip", "HBM of a chip", "step", "images/s a chip", "of the peak",
    "collectives",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/aot"), help="folder of results (%(default)s)"
    )
    parser.add_argument("--effort", default="-1", help="compiler effort, from -1 to 1 (%(default)s)")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    for what, table in (("train", TRAIN), ("sample", SAMPLE)):
        print(f"\n`--what {what}`\n\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        for config, batches in table.items():
            for topology, batch in batches.items():
                values = compiled(args.cache, config, topology, what, batch, args.effort)
                print(row(config, topology, values), flush=True)
    print(f"\nPrograms of a request\n\n| {' | '.join(PROGRAMS)} |\n|{'---|' * len(PROGRAMS)}")
    for config, batches in SAMPLE.items():
        for topology, batch in batches.items():
            values = compiled(args.cache, config, topology, "sample", batch, args.effort)
            for name, program in values["programs"].items():
                print(program_row(config, topology, name, program), flush=True)


def program_row(config: str, topology: str, name: str, program: dict[str, Any]) -> str:
    seconds = program["estimated_seconds"]
    cells = (
        config,
        f"`{topology}`",
        name,
        f"{program['hbm_peak_bytes'] / GIB:.1f} GiB",
        f"{program['resident_bytes'] / GIB:.1f} GiB",
        "yes" if program["fits"] else "offloaded" if program["fits_offloaded"] else "no",
        f"{seconds:.3f} s" if seconds else "unknown",
        f"{program['compile_seconds']:.0f} s",
    )
    return f"| {' | '.join(cells)} |"


def compiled(cache: Path, config: str, topology: str, what: str, batch: int, effort: str) -> dict[str, Any]:
    """JSON object that `aot` prints; read from the cache if it is there."""
    path = cache / f"{config}-{topology.replace(':', '-')}-{what}-{batch}-effort{effort}.json"
    if not path.is_file():
        command = [
            sys.executable, "-m", "realcustom_jax.aot", "--config", f"configs/{config}.py",
            "--topology", topology, "--what", what, "--batch", str(batch), f"--effort={effort}", "--json",
        ]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise UserError(f"{' '.join(command[1:])} failed: {result.stderr.strip().splitlines()[-1]}")
        path.write_text(result.stdout.strip().splitlines()[-1])
    return json.loads(path.read_text())


def row(config: str, topology: str, values: dict[str, Any]) -> str:
    peak, seconds, use = values["hbm_peak_bytes"], values["estimated_step_seconds"], values["utilisation"]
    memory = f"{peak / GIB:.1f} GiB, {peak / values['hbm_bytes']:.0%}" if peak else "unknown"
    collectives = ", ".join(
        f"{entry['count']} {kind} ({entry['bytes'] / GIB:.2f} GiB)"
        for kind, entry in values["collectives"].items()
    )
    cells = (
        config,
        f"{SLICES[topology]} (`{topology}`)",
        f"{values['images'] / values['chips']:g}",
        memory if values["fits"] else f"{memory}: does not fit",
        f"{seconds:.3f} s" if seconds else "unknown",
        f"{values['images_per_second_per_chip']:.1f}" if seconds else "unknown",
        f"{use:.0%}" if use else "unknown",
        collectives or "none",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    run_command(main)
