"""Whether input limits training: `python benchmarks/loader.py [--cores 2] [--seconds 10] [--no-step]`.

Draws a small toybox, measures how many images a second the loader alone delivers for the base and the
customize stage of configs/tiny.py, and how many the training step takes, one after the other and not side by
side. "Per core" is by the processor's time, so it holds on a busy machine too (not with --workers). The last
column is the loader's rate over the step's, both on all cores; it must be at least 10.

With `--config configs/sdxl.py` or sd15.py it measures the loader of that config instead: 64 JPEGs above 1024
pixels, the config's image size, views and augmentation. Beside it stands what a slice's training step needs
(docs/tpus.md: --need images a second, on --hosts hosts), and how many cores of each host that takes.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from real_weights import load_file, real_models, write_photos, write_tokenizer
from small_runs import load_config

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
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes of the loader; 0 takes threads")
    parser.add_argument("--no-step", action="store_true", help="measure the loader alone")
    parser.add_argument("--config", metavar="FILE", help="of a model of real size, such as configs/sdxl.py")
    parser.add_argument(
        "--need", type=float, default=41.6, help="images/s of the step (%(default)s: SDXL, v5e-16)"
    )
    parser.add_argument("--hosts", type=int, default=4, help="that load them (%(default)s)")
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
            config.curriculum.begin = config.curriculum.finish = (
                0  # the full augmentation, which takes longest
            )
            loads, per_core = loader_rate(config, pipe, open_split(folder, "train"), args.seconds)
            line = f"{stage:12}{loads:17.0f}{loads / args.cores if args.workers else per_core:10.0f}"
            if not args.no_step:
                steps = step_rate(config, pipe, open_split(folder, "train"), args.seconds)
                line += f"{steps:15.1f}{loads / steps:8.1f}"
            print(line, flush=True)


def real_size(args: argparse.Namespace) -> None:
    """The loader of a config at its real size, on threads of this process, and what a slice needs of it."""
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
        loads, per_core = loader_rate(config, pipe, open_split(Path(folder) / "data", "train"), args.seconds)
    per_core = loads / args.cores if args.workers else per_core
    print(f"{family}: {loads:.1f} images/s, {per_core:.1f} images/s a core")
    cores = args.need / args.hosts / per_core
    print(
        f"a step that takes {args.need:g} images/s on {args.hosts} hosts needs {cores:.1f} cores of each host"
    )


def loader_rate(config: ConfigDict, pipe: Pipeline, data: Split, seconds: float) -> tuple[float, float]:
    """Images a second, and a second of processor time, from the record to the batch, after the first few."""
    loader = make_training_loader(read_config(config), pipe, data, encoders={})
    for _ in range(2 * config.data.prefetch):  # what was made ahead does not count
        next(loader)
    count, start, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        count += len(next(loader)["ids"])
    rates = count / (time.perf_counter() - start), count / (time.process_time() - cpu)
    loader.close()
    return rates


def step_rate(config: ConfigDict, pipe: Pipeline, data: Split, seconds: float) -> float:
    """Images a second of the step alone, on the same batch again and again."""
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
