"""Trains as two hosts and as one: `python benchmarks/hosts.py`.

The same tiny run, its parameters divided over four devices, through launch/local.sh: by two processes of four
simulated devices each, by one of eight, and, stopped by SIGTERM half way through by both processes, on from
their one checkpoint as 2x4, 1x8 and 1x1. Prints for each the largest relative difference of its losses from
those of one process; the exit status is 1 when one is above its bound. Some minutes on two cores.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from small_runs import SMALL, last_step, reports

from realcustom_jax.common.cli import run_command

LOCAL = Path(__file__).resolve().parents[1] / "launch" / "local.sh"
STEPS = 12
DIVIDED = ("--config.mesh.fsdp=4", "--config.sharding=(('kernel$', ('fsdp',)), ('.*', ()))")
# With one device, sums are taken in another order, and Adam carries that on.
SAME, ONE = 1e-5, 1e-4


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run(root / "1x8", 1, 8)
        wanted = losses(root / "1x8")
        run(root / "2x4", 2, 4)
        good = compare("2x4", losses(root / "2x4"), wanted, SAME)
        stop(root / "stopped")
        for processes, devices, bound in ((2, 4, SAME), (1, 8, SAME), (1, 1, ONE)):
            name = f"{processes}x{devices}"
            workdir = root / f"resumed_{name}"
            shutil.copytree(root / "stopped", workdir)
            run(workdir, processes, devices)
            good &= compare(f"2x4, then {name}", losses(workdir), wanted, bound)
    raise SystemExit(not good)


def start(workdir: Path, processes: int, devices: int) -> subprocess.Popen:
    divided = DIVIDED if devices > 1 else ()
    command = [
        "bash", str(LOCAL), "--processes", str(processes), "--devices", str(devices), "--", *SMALL, *divided,
        f"--config.steps={STEPS}", "--config.checkpoint_every=1000", "--workdir", str(workdir),
    ]  # fmt: skip
    return subprocess.Popen(
        command, env={**os.environ, "PYTHON": sys.executable}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run(workdir: Path, processes: int, devices: int) -> None:
    process = start(workdir, processes, devices)
    output, errors = process.communicate()
    if process.returncode or not output.splitlines()[-1].startswith("sha256 "):
        raise RuntimeError(f"{workdir.name} ended with status {process.returncode}: {errors[-2000:]}")


def stop(workdir: Path) -> None:
    """A run of 2x4 that is told to end when half of its steps are done."""
    process = start(workdir, 2, 4)
    while process.poll() is None and last_step(workdir) < STEPS // 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate()
    saved = [path.name for path in (workdir / "checkpoints").iterdir()]
    if process.returncode or len(saved) != 1 or int(saved[0]) >= STEPS:
        raise RuntimeError(f"SIGTERM gave status {process.returncode}, checkpoints {saved}: {errors[-2000:]}")
    print(f"SIGTERM: {output.splitlines()[-1]}", flush=True)


def losses(workdir: Path) -> dict[int, float]:
    return {report["step"]: report["loss"] for report in reports(workdir) if "loss" in report}


def compare(name: str, found: dict[int, float], wanted: dict[int, float], bound: float) -> bool:
    differences = [abs(found[step] / wanted[step] - 1) for step in wanted]
    good = all(difference <= bound for difference in differences)  # which NaN is not
    print(f"{name}: {len(differences)} losses, {max(differences):.1e} apart, bound {bound:g}", flush=True)
    return good


if __name__ == "__main__":
    run_command(main)
