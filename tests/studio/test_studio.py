"""The studio's model: it gets ready with a first image, whatever the model is."""

import dataclasses
import gc
import os
import subprocess
import sys
import threading

import pytest

import realcustom_jax.studio.__main__ as studio_command
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


def test_first_request_gives_way_to_a_user_once_the_sampler_is_compiled(flat_pipe, tmp_path, monkeypatch):
    """It compiles for the user, and then runs no more steps than one."""
    joined, reported = threading.Event(), []

    def all_steps(*args, progress, **rest):
        for stage, done in (("compiling the sampler", 0), ("sampling", 0), ("sampling", 1), ("sampling", 2)):
            if stage == "sampling":
                assert joined.wait(60)
            progress(stage, done, 2 if stage == "sampling" else None)
            reported.append((stage, done))

    monkeypatch.setattr(studio_module, "sample", all_steps)
    studio = Studio(lambda: flat_pipe, flat_pipe.defaults, tmp_path)
    studio.start()
    studio.wait_for_compiler()
    user = studio.jobs.run("user", lambda report: "image")
    assert next(user).text.startswith("waiting")
    joined.set()
    with pytest.raises(StopIteration) as end:
        while True:
            next(user)
    assert end.value.value == "image"
    assert studio._ready.wait(60) and studio.error == ""
    assert reported == [("compiling the sampler", 0), ("sampling", 0)]


def test_page_opens_with_garbage_collection_on(tmp_path, monkeypatch):
    """It is off while modules are imported and the page is made."""
    page = pytest.importorskip("realcustom_jax.studio.page")
    seen = []
    monkeypatch.setattr(os, "environ", dict(os.environ))  # the command sets variables
    monkeypatch.setattr(Studio, "start", lambda studio: None)
    monkeypatch.setattr(Studio, "wait_for_compiler", lambda studio: None)
    monkeypatch.setattr(page, "build_page", lambda studio: seen.append(gc.isenabled()))
    monkeypatch.setattr(page, "launch", lambda *args: seen.append(gc.isenabled()))
    args = studio_command._parser().parse_args(["--model", "toybox"])
    try:
        studio_command.serve(args, tmp_path)
    finally:
        gc.enable()
        gc.unfreeze()
    assert seen == [False, True]


def test_command_imports_transformers_after_it_chose_what_that_imports():
    """Importing it with PyTorch takes 1.5 s more."""
    code = (
        "import sys, realcustom_jax.studio.__main__ as command; command._parser(); "
        "print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr
