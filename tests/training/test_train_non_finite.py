"""Runs whose losses or parameters are not finite."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from realcustom_jax.common.errors import UserError

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("run_helpers.py"))))
train, losses = common.train, common.losses


def test_repeated_non_finite_steps_end_run(runs, tmp_path):
    """A huge learning rate makes the parameters, and the losses from step 2 on, not finite."""
    config = runs["vae"][0].copy_and_resolve_references()
    config.steps = 4
    config.optimizer.update({"learning_rate": 1e38, "most_skipped": 2, "max_norm": 1e38})
    with pytest.raises(UserError, match="was not finite in 2 steps in a row, from step 2 to 3; earlier"):
        train(config, tmp_path)


def test_non_finite_parameters_are_not_exported(runs, tmp_path, capsys):
    """The last step makes them not finite, while its loss is still finite."""
    config = runs["vae"][0].copy_and_resolve_references()
    config.steps = config.checkpoint_every = 1
    config.optimizer.update({"learning_rate": 1e38, "weight_decay": 1e38})
    with pytest.raises(UserError, match=r"parameters are not finite after the last step, 1: no model"):
        train(config, tmp_path)
    assert list(losses(tmp_path)) == [1] and np.isfinite(losses(tmp_path)[1])
    assert not (tmp_path / "model").exists() and not list((tmp_path / "checkpoints").iterdir())
    assert "not finite after step 1: no checkpoint is written" in capsys.readouterr().out
