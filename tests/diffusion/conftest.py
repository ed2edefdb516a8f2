"""The requests of the sampler's tests, encoded."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

import realcustom_jax as rc

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("sampler_helpers.py"))))
PROMPTS, SUBJECTS, OPTIONS = common.PROMPTS, common.SUBJECTS, common.OPTIONS


@pytest.fixture(scope="module")
def conditioning(micro_pipe):
    """Two requests in one batch, with two subjects and with one (and an empty slot), for both UNets."""

    def make(**options):
        chosen = micro_pipe.defaults.changed({**OPTIONS, **options})
        made = rc.make_conditioning(micro_pipe, PROMPTS, SUBJECTS, ["", "a house"], chosen)
        return made, chosen.sampler_config(8, 8)

    return make
