"""Kills and resumes a training run: `python benchmarks/kill_and_resume.py [--times 20] [--signal KILL]`.

Each trial kills a tiny run by SIGKILL or SIGTERM at one to three random steps and restarts it until it ends.
The hash of its trained parameters must equal that of an undisturbed run. Prints a line for each trial and the
number of equal hashes. The exit status is 1 if one differs.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _small_runs import SMALL, last_step, reports

from realcustom_jax.common.cli import run_command

STEPS = 40


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=20, help="trials (%(default)s)")
    parser.add_argument(
        "--signal", choices=["KILL", "TERM"], default="KILL", help="signal to send (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random steps (%(default)s)")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        expected = finish(root / "undisturbed")
        print(f"undisturbed: {expected}", flush=True)
        equal = 0
        for trial in range(args.times):
            steps: list[int] = []
            while not steps:  # repeat a trial whose run ended before its signal
                shutil.rmtree(root / "killed", ignore_errors=True)
                steps, actual = trial_run(root / "killed", getattr(signal, f"SIG{args.signal}"), rng)
            equal += actual == expected
            print(
                f"trial {trial + 1}: killed after steps {steps}, {'equal' if actual == expected else actual}",
                flush=True,
            )
    print(f"{equal} of {args.times} runs, stopped by SIG{args.signal}, end with the same parameters")
    raise SystemExit(equal < args.times)


def trial_run(workdir: Path, kill_signal: signal.Signals, rng: random.Random) -> tuple[list[int], str]:
    """Kill and restart a run until it ends; gives the steps after which it was killed, and its hash."""
    killed: list[int] = []
    for kill in [True] * rng.randint(1, 3) + [False]:
        process = start(workdir)
        if kill:
            target = rng.randint(min(last_step(workdir) + 1, STEPS - 1), STEPS - 1)
            while process.poll() is None and last_step(workdir) < target:
                time.sleep(0.002)
            process.send_signal(kill_signal)
        output, errors = process.communicate()
        if process.returncode not in (0, -kill_signal):
            raise RuntimeError(f"the run ended with status {process.returncode}: {errors[-2000:]}")
        if output.splitlines() and output.splitlines()[-1].startswith("sha256 "):
            return killed, output.split()[-1]
        killed.append(last_step(workdir))
    raise RuntimeError(f"the run ended without a hash: {errors[-2000:]}")


def start(workdir: Path) -> subprocess.Popen:
    config = [
        *SMALL, f"--workdir={workdir}", f"--config.steps={STEPS}", "--config.checkpoint_every=5",
    ]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "realcustom_jax.train", *config],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


def finish(workdir: Path) -> str:
    """Run without disturbance and give the hash."""
    output, errors = start(workdir).communicate()
    if "sha256" not in reports(workdir)[-1]:
        raise RuntimeError(errors[-2000:])
    return output.split()[-1]


if __name__ == "__main__":
    run_command(main)
