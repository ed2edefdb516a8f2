"""Effect of keeping freed memory on a CPU: `python benchmarks/allocator.py [--rounds 3] [--steps 8]`.

Measures a training step of the toybox's base stage (32 images) and a sampler call (8 images). Processes start
directly and through launch/cpu.sh, in alternation, so machine noise affects both equally. The table shows
the median seconds and the page faults of a call. The first two calls of each process do not count.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from train_step import compile_step

import realcustom_jax as rc
from realcustom_jax.common.cli import run_command
from realcustom_jax.toybox import Identity, prompt, render_reference

CPU_SCRIPT = Path(__file__).resolve().parents[1] / "launch" / "cpu.sh"
STEP_BATCH, SAMPLE_BATCH = 32, 8
# The direct start drops a GLIBC_TUNABLES that the caller may have set.
LAUNCHERS = {"direct": ("env", "-u", "GLIBC_TUNABLES"), "launch/cpu.sh": (str(CPU_SCRIPT),)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="processes per launcher (%(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="training steps per process (%(default)s)")
    parser.add_argument("--samples", type=int, default=2, help="sampler calls per process (%(default)s)")
    parser.add_argument("--measure", action="store_true", help="measure in this process, print JSON")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args)))
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Print the table: the medians of each launcher, their ratio, and the page faults."""
    flags = [f"--{name}={getattr(args, name)}" for name in ("steps", "samples")]
    results: dict[str, list[dict]] = {launcher: [] for launcher in LAUNCHERS}
    for _ in range(args.rounds):
        for launcher, prefix in LAUNCHERS.items():
            command = [*prefix, sys.executable, __file__, "--measure", *flags]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results[launcher].append(json.loads(output.splitlines()[-1]))
            print(launcher, results[launcher][-1], flush=True)
    titles = "".join(f"{launcher:>16}" for launcher in LAUNCHERS)
    print(f"\n{'s/call':12}{titles}{'ratio':>8}{'page faults':>24}")
    for what in ("step", "sample"):
        calls = [[s for run in runs for s in run[what]["seconds"]] for runs in results.values()]
        faults = [statistics.median(run[what]["page_faults"] for run in runs) for runs in results.values()]
        medians = [statistics.median(seconds) for seconds in calls]
        print(f"{what:12}" + "".join(f"{median:16.2f}" for median in medians)
              + f"{medians[0] / medians[1]:8.2f}{faults[0]:12.0f}{faults[1]:12.0f}")  # fmt: skip


def measure(args: argparse.Namespace) -> dict[str, dict]:
    """Measure the training step and the sampler: seconds of each call and mean page faults per call."""
    step, *_ = compile_step({}, STEP_BATCH)
    pipe = rc.load("toybox")
    subjects = [
        rc.Subject(render_reference(Identity("bird", 10 * i + 9), i).image, "bird")
        for i in range(SAMPLE_BATCH)
    ]
    prompts = [prompt(["bird"], "beach")] * SAMPLE_BATCH

    def sample() -> None:
        rc.sample(pipe, prompts, subjects=[[subject] for subject in subjects], seed=list(range(SAMPLE_BATCH)))

    return {"step": timed(step, args.steps), "sample": timed(sample, args.samples)}


def timed(call: Callable[[], None], count: int) -> dict:
    """Time `count` calls, after two that compile and allocate."""
    call()
    call()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        seconds.append(round(time.perf_counter() - start, 4))
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return {"seconds": seconds, "page_faults": faults / count}


if __name__ == "__main__":
    run_command(main)
