"""A micro model that makes the toybox's 64×64 pixels, with a CLIP pair; a judge with random weights."""

import dataclasses

import jax
import pytest

from realcustom_jax.evaluation.judge import Judge, judge_shapes
from realcustom_jax.models.family import Models
from realcustom_jax.models.init import init_params


@pytest.fixture(scope="session")
def paired_pipe(micro_pipe, micro_configs):
    """`micro_pipe` with towers that count as a pair, at 64×64 pixels and 2 steps."""
    configs = {**micro_configs, "image_encoder": {**micro_configs["image_encoder"], "text_paired": True}}
    options = micro_pipe.defaults.changed({"height": 64, "width": 64, "steps": 2})
    return dataclasses.replace(micro_pipe, models=Models.from_configs(configs), defaults=options)


@pytest.fixture
def one_device(monkeypatch):
    """Commands see one of the 8 simulated devices, for which programs compile much faster."""
    first = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: first)
    return first


@pytest.fixture(scope="session")
def random_judge():
    return Judge(init_params(judge_shapes(), seed=0))
