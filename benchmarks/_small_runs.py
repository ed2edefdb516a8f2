"""Helpers of the training benchmarks: the toybox's config, flags of a small run, readers of its reports."""

import importlib.util
import json
from pathlib import Path

from ml_collections import ConfigDict

TINY = Path(__file__).resolve().parents[1] / "configs" / "tiny.py"
# Small and fast: these runs test stopping and resuming instead of learning.
SMALL = (
    f"--config={TINY}:vae", "--config.log_every=1", "--config.batch_size=8",
    "--config.data.toybox_examples=200", "--config.optimizer.name=adamw", "--config.optimizer.warmup=2",
    "--config.model.vae.block_out_channels=(8, 8)", "--config.model.vae.sample_size=64",
)  # fmt: skip


def load_config(stage: str) -> ConfigDict:
    """Load the config of a stage of configs/tiny.py."""
    spec = importlib.util.spec_from_file_location("tiny", TINY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(stage)


def reports(workdir: Path) -> list[dict]:
    """Read a run's metrics.jsonl; skips a last line that a killed process left incomplete."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def last_step(workdir: Path) -> int:
    """Last step that a run reported; 0 before the first report."""
    return max((report["step"] for report in reports(workdir)), default=0)
