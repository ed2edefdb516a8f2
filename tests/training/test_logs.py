"""metrics.jsonl across stop and resume, progress in logs and on terminals, and the hash of parameters."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from realcustom_jax.training import logs
from realcustom_jax.training.logs import Lines, Logger, Meter
from realcustom_jax.weights.digest import params_sha256


def run(workdir: Path, first: int, last: int, loss: float) -> None:
    logger, meter = Logger(workdir, first, last), Meter(batch_size=2)
    for step in range(first + 1, last + 1):
        meter.step()
        logger.report(step, {"loss": np.float32(loss)}, meter)
    logger.write({"step": last, "sha256": "0" * 64})
    logger.close()


def test_resumed_run_replaces_later_steps_in_log(tmp_path):
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


def test_log_has_one_line_per_minute(monkeypatch):
    """Steps take 4 s, after a compiling one of 100 s; reports every fifth step, resumed after step 10."""
    now, log = [0.0], io.StringIO()
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: now[0]))
    lines = Lines(total=60, initial=10, stream=log)
    for step in range(11, 61):
        now[0] += 100 if step == 11 else 4
        lines.update()
        if step % 5 == 0:
            lines.set_postfix_str(f"loss {step}")
    lines.close()
    assert log.getvalue().splitlines() == [
        "training: 10 of 60 steps are done, the next one compiles first",
        "training: step 11 of 60",
        "training: step 15 of 60, loss 15, 3 min left",  # the first report
        "training: step 30 of 60, loss 25, 2 min left",
        "training: step 45 of 60, loss 40, 60 s left",
        "training: step 60 of 60, loss 60",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_only_terminal_gets_progress_bar(tmp_path, monkeypatch, terminal):
    """A log has whole lines, a few of them."""
    log = io.StringIO()
    monkeypatch.setattr(log, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", log)
    logger, meter = Logger(tmp_path, 0, 500), Meter(batch_size=2)
    for step in range(1, 501):
        meter.step()
        logger.advance()
        if step % 100 == 0:
            logger.report(step, {"loss": np.float32(0.25)}, meter)
    logger.close()
    text = log.getvalue()
    assert ("\r" in text) == terminal and "loss 0.2500, " in text and text.endswith("\n")
    if not terminal:
        first, report, last = text.splitlines()
        assert first.startswith("training: 0 of 500") and report.startswith("training: step 100 of 500, loss")
        assert last.startswith("training: step 500 of 500, loss 0.2500, ") and last.endswith("images/s")


def test_params_hash_covers_names_shapes_and_values():
    params = {"a": {"kernel": np.arange(4.0)}, "b": {"kernel": np.ones(2)}}
    digest = params_sha256(params)
    assert digest == params_sha256(
        {"b": params["b"], "a": params["a"]}
    )  # the order of the tree does not matter
    for other in (
        {"a": {"kernel": np.arange(4.0)}, "c": {"kernel": np.ones(2)}},
        {"a": {"kernel": np.arange(4.0).reshape(2, 2)}, "b": {"kernel": np.ones(2)}},
        {"a": {"kernel": np.arange(4.0)}, "b": {"kernel": np.asarray([1.0, 2.0])}},
        {"a": {"kernel": np.arange(4.0, dtype=np.float32)}, "b": {"kernel": np.ones(2)}},
    ):
        assert params_sha256(other) != digest
