"""Does the data loader limit training? `python benchmarks/loader.py [--cores 2] [--seconds 10] [--no-step]`.

Draws a small toybox dataset. For the stages base and customize of configs/tiny.py, it measures the images per
second of the loader alone, then of the training step alone. "Per core" uses processor time, so it also holds
on a busy machine (except with --workers). The last column is the loader's rate divided by the step's, both on
all cores. It must be at least 10.

`--config configs/sdxl.py` (or sd15.py) measures the loader of that config instead, with its image size, views
and augmentation, on 64 JPEGs above 1024 pixels. It also prints the cores per host that a TPU slice needs
for a training step of --need images per second (docs/tpus.md) on --hosts hosts.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from _real_weights import load_file, real_models, write_photos, write_tokenizer
from _small_runs import load_config
from ml_collections import ConfigDict

from realcustom_jax import pipeline
from realcustom_jax.common.cli import run_command
from realcustom_jax.data.image_text import Example, Split, open_split, write
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.inputs.tokenize import load_tokenizer
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.toybox.dataset import make_example
from realcustom_jax.training import partition
from realcustom_jax.training.batches import make_training_loader
from realcustom_jax.training.config import read_config
from realcustom_jax.training.step import make_plan

EXAMPLES = 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cores", type=int, default=len(os.sched_getaffinity(0)), help="cores to use (%(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="duration of each measurement (%(default)s)"
    )
    parser.add_argument("--workers", type=int, default=0, help="loader processes; 0 uses threads")
    parser.add_argument("--no-step", action="store_true", help="measure the loader alone")
    parser.add_argument(
        "--config", metavar="FILE", help="config of a full-size model, such as configs/sdxl.py"
    )
    parser.add_argument(
        "--need", type=float, default=41.6, help="images/s that the step needs (%(default)s: SDXL, v5e-16)"
    )
    parser.add_argument("--hosts", type=int, default=4, help="hosts that load the images (%(default)s)")
    args = parser.parse_args()
    if args.config:
        real_size(args)
        return
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    pipe = pipeline.load_on_host("toybox")
    print(f"{'stage':12}{'loader images/s':>17}{'per core':>10}{'step images/s':>15}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder:
        write(folder, {"train": (make_example(seed, held_out=False) for seed in range(EXAMPLES))})
        for stage in ("base", "customize"):
            config = load_config(stage)
            config.data.workers = args.workers
            config.curriculum.begin = config.curriculum.finish = 0  # full augmentation, the slowest case
            rate, per_core = loader_rate(config, pipe, open_split(folder, "train"), args.seconds)
            line = f"{stage:12}{rate:17.0f}{rate / args.cores if args.workers else per_core:10.0f}"
            if not args.no_step:
                needed = step_rate(config, pipe, open_split(folder, "train"), args.seconds)
                line += f"{needed:15.1f}{rate / needed:8.1f}"
            print(line, flush=True)


def real_size(args: argparse.Namespace) -> None:
    """Measure the loader of a full-size config, and print the cores per host that a slice needs."""
    family = Path(args.config).stem
    models, config = real_models(family), load_file(args.config).get_config()
    config.batch_size, config.data.workers, config.data.prefetch = 8, args.workers, 1
    config.curriculum.begin = config.curriculum.finish = 0  # the full augmentation
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder) / "tokenizer")
        tokenizers = (load_tokenizer(Path(folder) / "tokenizer"),) * len(models.text_configs)
        pipe = Pipeline(models, ScheduleConfig(), {}, tokenizers)
        photos = write_photos(Path(folder) / "photos", 64)
        examples = (Example(path.stem, path.read_bytes(), "a dog on the beach", {}) for path in photos)
        write(Path(folder) / "data", {"train": examples})
        rate, per_core = loader_rate(config, pipe, open_split(Path(folder) / "data", "train"), args.seconds)
    per_core = rate / args.cores if args.workers else per_core
    print(f"{family}: {rate:.1f} images/s, {per_core:.1f} images/s per core")
    cores = args.need / args.hosts / per_core
    print(f"a step of {args.need:g} images/s on {args.hosts} hosts needs {cores:.1f} cores per host")


def loader_rate(config: ConfigDict, pipe: Pipeline, data: Split, seconds: float) -> tuple[float, float]:
    """Measure loading from records to batches: images per second, and per second of processor time."""
    loader = make_training_loader(read_config(config), pipe, data, encoders={})
    for _ in range(2 * config.data.prefetch):  # skip prefetched batches
        next(loader)
    count, start, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        count += len(next(loader)["ids"])
    rates = count / (time.perf_counter() - start), count / (time.process_time() - cpu)
    loader.close()
    return rates


def step_rate(config: ConfigDict, pipe: Pipeline, data: Split, seconds: float) -> float:
    """Measure the images per second of the training step, repeated on one batch."""
    loader = make_training_loader(read_config(config), pipe, data, encoders={})
    batch = next(loader)
    loader.close()
    plan = make_plan(read_config(config), pipe.models, pipe.schedule, pipe.params, partition.make_mesh())
    trainable, frozen = partition.split_trainable(pipe.params, config.trainable, config.frozen)
    state, frozen, step = plan.create(trainable), jax.device_put(frozen), plan.step
    state, metrics = step(state, frozen, batch)  # compiles
    jax.block_until_ready(metrics)
    times = []
    while sum(times) < seconds:
        start = time.perf_counter()
        state, metrics = step(state, frozen, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
    return config.batch_size / float(np.median(times))


if __name__ == "__main__":
    run_command(main)
