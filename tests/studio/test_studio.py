"""The studio's model: it gets ready with a first image, whatever the model is."""

import dataclasses
import threading

import pytest

import realcustom_jax.studio.studio as studio_module
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


def test_page_waits_until_the_first_request_compiles(flat_pipe, tmp_path, monkeypatch):
    """Not until its end: importing Gradio shares the cores with the compiler."""
    load, go_on = threading.Event(), threading.Event()

    def compile_only(*args, progress, **rest):
        progress("encoding prompts and reference images", 0, None)
        load.wait(60)
        progress("compiling the sampler", 0, None)
        go_on.wait(60)

    monkeypatch.setattr(studio_module, "sample", compile_only)
    studio = Studio(lambda: flat_pipe, flat_pipe.defaults, tmp_path)
    studio.start()
    waiting = threading.Thread(target=studio.wait_for_compiler)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    load.set()
    waiting.join(60)
    assert not waiting.is_alive() and not studio.ready
    go_on.set()
    assert studio._ready.wait(60)
