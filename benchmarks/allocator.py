"""What kept memory is worth on a CPU: `python benchmarks/allocator.py [--rounds 3] [--steps 8]`.

A training step of the toybox's base, of 32 images, and a call of the sampler for 8, in processes of their
own: started as they are and by launch/cpu.sh, in turn, so that noise of the machine hits both alike. The
table has the medians of all calls but the first two of each process, and the page faults of a call.
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

KEPT = Path(__file__).resolve().parents[1] / "launch" / "cpu.sh"
STEP_BATCH, SAMPLE_BATCH = 32, 8
# The first without what the caller's environment may have set already.
WAYS = {"as it is": ("env", "-u", "GLIBC_TUNABLES"), "launch/cpu.sh": (str(KEPT),)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind (%(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="training steps of a process (%(default)s)")
    parser.add_argument("--samples", type=int, default=2, help="sampler calls of a process (%(default)s)")
    parser.add_argument("--measure", action="store_true", help="measure in this process, print JSON")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args)))
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Prints the table: each way's medians, their ratio, and the page faults."""
    flags = [f"--{name}={getattr(args, name)}" for name in ("steps", "samples")]
    found: dict[str, list[dict]] = {way: [] for way in WAYS}
    for _ in range(args.rounds):
        for way, start in WAYS.items():
            command = [*start, sys.executable, __file__, "--measure", *flags]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[way].append(json.loads(output.splitlines()[-1]))
            print(way, found[way][-1], flush=True)
    titles = "".join(f"{way:>16}" for way in WAYS)
    print(f"\n{'s/call':12}{titles}{'ratio':>8}{'page faults':>24}")
    for what in ("step", "sample"):
        calls = [[s for run in found[way] for s in run[what]["seconds"]] for way in WAYS]
        faults = [statistics.median(run[what]["page_faults"] for run in found[way]) for way in WAYS]
        medians = [statistics.median(seconds) for seconds in calls]
        print(f"{what:12}" + "".join(f"{median:16.2f}" for median in medians)
              + f"{medians[0] / medians[1]:8.2f}{faults[0]:12.0f}{faults[1]:12.0f}")  # fmt: skip


def measure(args: argparse.Namespace) -> dict[str, dict]:
    """Seconds of each call, and page faults of one, of a training step and of the sampler."""
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
    """`count` calls, after two that compile and take the first memory."""
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
