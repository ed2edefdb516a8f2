"""When should guidance act? `python benchmarks/guidance_interval.py [--requests 104]`

The toybox benchmark with the guidance weights in all steps, as eq. 13 has them, and in some of them
(`guidance_start`, `guidance_stop`). Leakage is against text-only images of the same interval. The last column
is the time of an image without compiling, as a share of that of the first row. In brackets is the bootstrap
95 % interval over requests.
"""

import dataclasses
import time

from toybox_flags import parse

from realcustom_jax.cli import run_command
from realcustom_jax.evaluation.generate import Generator
from realcustom_jax.evaluation.judge import Judge
from realcustom_jax.evaluation.tables import cell
from realcustom_jax.evaluation.toybox import Benchmark, Results, Setting, make_requests

SHOWN = ("identity_top1", "word_top1", "background_top1", "leakage")
COMPARED = ((0.0, 1.0), (0.0, 0.64), (0.16, 0.64))


def main() -> None:
    args = parse(__doc__, 104, plots=False)
    generator = Generator.load(args.model, args.batch)
    benchmark = Benchmark(make_requests(args.requests), Judge.load(), None)
    first = None
    print(f"{'guidance in':32}" + "".join(f"{name:>24}" for name in (*SHOWN, "time of an image")))
    for start, stop in COMPARED:
        setting = Setting({"guidance_start": start, "guidance_stop": stop})
        results, seconds = measure(benchmark, generator, setting)
        first = first or seconds
        cells = [*(cell(results[name]) for name in SHOWN), f"{seconds / first:.2f}"]
        name = f"{start:.0%} to {stop:.0%} of the steps"
        print(f"{name:32}" + "".join(f"{text:>24}" for text in cells), flush=True)


def measure(benchmark: Benchmark, generator: Generator, setting: Setting) -> tuple[Results, float]:
    """What the judge says of the images with subjects, and the seconds that they took, compiled already."""
    plain, _ = benchmark.make(generator, dataclasses.replace(setting, subject=False))
    first = dataclasses.replace(benchmark, requests=benchmark.requests[: generator.batch])
    first.make(generator, setting)  # compiles
    began = time.perf_counter()
    images, masks = benchmark.make(generator, setting)
    seconds = time.perf_counter() - began
    return benchmark.measure(images, masks, plain), seconds


if __name__ == "__main__":
    run_command(main)
