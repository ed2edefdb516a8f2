"""The studio's model: it gets ready with a first image, whatever the model is."""

import dataclasses

import pytest

from realcustom_jax.studio.studio import Studio
from realcustom_jax.weights.keys import split_added


def ready(load, defaults, folder) -> Studio:
    studio = Studio(load, defaults, folder)
    studio.start()
    assert studio._ready.wait(120)
    return studio


@pytest.mark.parametrize("takes_subjects", [True, False])
def test_model_gets_ready_with_and_without_realcustom(flat_pipe, tmp_path, takes_subjects):
    pipe = flat_pipe
    if not takes_subjects:
        params = {**pipe.params, "unet": split_added(pipe.params["unet"])[0]}
        pipe = pipe.replace(models=dataclasses.replace(pipe.models, realcustom=None), params=params)
    pipe = pipe.replace(defaults=pipe.defaults.changed({"steps": 1, "mask_steps": 1}))
    studio = ready(lambda: pipe, pipe.defaults, tmp_path)
    assert studio.error == "" and studio.pipe() is pipe


def test_model_that_cannot_be_loaded_is_said(flat_pipe, tmp_path):
    def fail():
        raise OSError("no such disk")

    assert ready(fail, flat_pipe.defaults, tmp_path).error == "the model cannot be used: no such disk"
