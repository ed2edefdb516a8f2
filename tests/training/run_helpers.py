"""Helpers of the tests of whole runs; loaded by `runpy`, as tests are no package."""

import json
import os
import subprocess
import sys
from pathlib import Path

from realcustom_jax.training import run

TINY = Path(__file__).resolve().parents[2] / "configs" / "tiny.py"
ROOT = TINY.parents[1]
STAGES = ("vae", "clip", "instance", "base", "customize")


def train(config, workdir: Path) -> str:
    return run.train(config, workdir, cache=workdir / "cache")


def losses(workdir: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def command(config, folder: Path, devices: int = 8) -> str:
    """The output of the real command on a config file, with the workdir `folder`/run."""
    path = folder / "micro.py"
    path.write_text(
        "import ml_collections\n\n\ndef get_config():\n"
        f"    return ml_collections.ConfigDict({config.to_dict()!r})\n"
    )
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    result = subprocess.run(
        [sys.executable, "-m", "realcustom_jax.train", f"--config={path}", f"--workdir={folder / 'run'}"],
        capture_output=True, text=True, cwd=ROOT, timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout
