"""Training step time of variants of the toybox's UNet: `python benchmarks/train_step.py [--rounds 5]`.

Compiles the training step of each variant. Then each round times one step of every variant, so machine noise
affects all equally. The table shows the median of each variant, its ratio to the shipped config, and the
GFLOP/s by XLA's operation count.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from _small_runs import load_config

from realcustom_jax.common.cli import run_command
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.models.config import from_mapping
from realcustom_jax.models.family import Models
from realcustom_jax.models.init import init_params
from realcustom_jax.training.config import read_config
from realcustom_jax.training.losses import make_loss
from realcustom_jax.training.optimizer import make_optimizer, make_schedule
from realcustom_jax.training.partition import split_trainable
from realcustom_jax.training.step import create_state, make_train_step

# name → changes to the UNet's config
VARIANTS: dict[str, dict[str, Any]] = {
    "shipped": {},
    "self-attention at 16x16, 2 heads": {"self_attention": True},
    "self-attention at 16x16, 4 heads of 16": {"self_attention": True, "attention_head_dim": (4, 8, 10)},
    "48 channels at 16x16": {"block_out_channels": (48, 128, 160)},
    "two residual blocks a level": {"layers_per_block": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed steps per variant (%(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="images per step (%(default)s)")
    args = parser.parse_args()
    steps = {}
    for name, changes in VARIANTS.items():
        steps[name] = compile_step(changes, args.batch)
        print(f"compiled: {name}", flush=True)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, (step, _, _) in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    base = statistics.median(times["shipped"])
    print(f"\n{'variant':42}{'ms/step':>9}{'images/s':>10}{'ratio':>7}{'GFLOP/s':>9}{'M params':>10}")
    for name, (_, flops, count) in steps.items():
        median = statistics.median(times[name])
        print(f"{name:42}{1e3 * median:9.0f}{args.batch / median:10.1f}{median / base:7.2f}"
              f"{flops / median / 1e9:9.0f}{count / 1e6:10.2f}")  # fmt: skip


def compile_step(changes: dict[str, Any], batch_size: int) -> tuple[Callable[[], None], float, int]:
    """Compile a step; gives a function that runs it, XLA's FLOP count, and the UNet's parameter count."""
    config = read_config(load_config("base"))
    configs = {part: dict(fields) for part, fields in config.model.items()}
    configs["unet"] |= changes
    configs["text_encoder"] |= {"vocab_size": 1000, "eos_token_id": 999}
    models = Models.from_configs(configs)
    params = init_params(models.param_shapes(), 0)
    options = config.optimizer
    schedule = make_schedule(options.learning_rate, config.steps, options.warmup, options.end_fraction)
    optimizer = make_optimizer(schedule, options.weight_decay, options.b2, options.max_norm, options.name)
    loss = make_loss("base", models, from_mapping(ScheduleConfig, configs["scheduler"]), config.loss)
    trainable, frozen = jax.device_put(split_trainable(params, config.trainable, config.frozen))
    step = jax.jit(make_train_step(loss, optimizer, schedule, options.ema_decay, 0), donate_argnums=0)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (batch_size, 64, 64, 3), np.uint8),
        "ids": rng.integers(0, 999, (batch_size, 1, 77), np.int32),
    }
    state = jax.jit(create_state, static_argnums=1)(trainable, optimizer)
    compiled = step.lower(state, frozen, batch).compile()
    holder = [state]

    def run() -> None:
        holder[0], metrics = compiled(holder[0], frozen, batch)
        jax.block_until_ready(metrics["loss"])

    run()
    count = sum(leaf.size for leaf in jax.tree.leaves(params["unet"]))
    return run, compiled.cost_analysis()["flops"], count


if __name__ == "__main__":
    run_command(main)
