"""Compares training on two hosts with training on one: `python benchmarks/hosts.py`.

launch/local.sh starts the same tiny run on simulated devices, with parameters sharded over four of them: as
1x8 and as 2x4 (processes x devices per process). A third run, 2x4, is stopped by SIGTERM half way. Its
checkpoint resumes as 2x4, 1x8 and 1x1. Prints each run's largest relative difference of a loss from the 1x8
run. The exit status is 1 if a difference exceeds its bound. Takes some minutes on two cores.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _small_runs import SMALL, last_step, reports

from realcustom_jax.common.cli import run_command

LOCAL = Path(__file__).resolve().parents[1] / "launch" / "local.sh"
STEPS = 12
SHARDING = ("--config.mesh.fsdp=4", "--config.sharding=(('kernel$', ('fsdp',)), ('.*', ()))")
# One device sums in another order, and Adam amplifies the rounding differences.
SHARDED_BOUND, ONE_DEVICE_BOUND = 1e-5, 1e-4


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run(root / "1x8", 1, 8)
        expected = losses(root / "1x8")
        run(root / "2x4", 2, 4)
        good = compare("2x4", losses(root / "2x4"), expected, SHARDED_BOUND)
        stop(root / "stopped")
        cases = ((2, 4, SHARDED_BOUND), (1, 8, SHARDED_BOUND), (1, 1, ONE_DEVICE_BOUND))
        for processes, devices, bound in cases:
            name = f"{processes}x{devices}"
            workdir = root / f"resumed_{name}"
            shutil.copytree(root / "stopped", workdir)
            run(workdir, processes, devices)
            good &= compare(f"2x4, then {name}", losses(workdir), expected, bound)
    raise SystemExit(not good)


def start(workdir: Path, processes: int, devices: int) -> subprocess.Popen:
    sharding = SHARDING if devices > 1 else ()
    command = [
        "bash", str(LOCAL), "--processes", str(processes), "--devices", str(devices), "--", *SMALL, *sharding,
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
    """Start a 2x4 run and send it SIGTERM after half of its steps."""
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


def compare(name: str, actual: dict[int, float], expected: dict[int, float], bound: float) -> bool:
    differences = [abs(actual[step] / expected[step] - 1) for step in expected]
    good = all(difference <= bound for difference in differences)  # False for NaN
    print(f"{name}: {len(differences)} losses, {max(differences):.1e} apart, bound {bound:g}", flush=True)
    return good


if __name__ == "__main__":
    run_command(main)
