"""metrics.jsonl over a stop and a resume, and the hash of parameters."""

import json
from pathlib import Path

import numpy as np

from realcustom_jax.training.logs import Logger
from realcustom_jax.training.meter import Meter
from realcustom_jax.weights.digest import params_sha256


def run(workdir: Path, first: int, last: int, loss: float) -> None:
    logger, meter = Logger(workdir, first, last), Meter(batch_size=2)
    for step in range(first + 1, last + 1):
        meter.step()
        logger.report(step, {"loss": np.float32(loss)}, meter)
    logger.write({"step": last, "sha256": "0" * 64})
    logger.close()


def test_a_resumed_run_reports_no_step_twice(tmp_path):
    """Stopped after step 4 in the middle of a line, resumed from the checkpoint of step 2."""
    path = tmp_path / "metrics.jsonl"
    run(tmp_path, 0, 4, loss=1.0)
    path.write_text(path.read_text() + '{"step": 5, "los')
    run(tmp_path, 2, 6, loss=2.0)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6, 6]
    assert [record["loss"] for record in records[:-1]] == [1.0, 1.0, 2.0, 2.0, 2.0, 2.0]
    assert "sha256" in records[-1]
    assert {p.name for p in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}


def test_the_hash_is_of_names_shapes_and_values():
    params = {"a": {"kernel": np.arange(4.0)}, "b": {"kernel": np.ones(2)}}
    digest = params_sha256(params)
    assert digest == params_sha256({"b": params["b"], "a": params["a"]})  # the order of the tree is no matter
    for other in (
        {"a": {"kernel": np.arange(4.0)}, "c": {"kernel": np.ones(2)}},
        {"a": {"kernel": np.arange(4.0).reshape(2, 2)}, "b": {"kernel": np.ones(2)}},
        {"a": {"kernel": np.arange(4.0)}, "b": {"kernel": np.asarray([1.0, 2.0])}},
        {"a": {"kernel": np.arange(4.0, dtype=np.float32)}, "b": {"kernel": np.ones(2)}},
    ):
        assert params_sha256(other) != digest
