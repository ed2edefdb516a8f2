"""The sample images of a training run, against `sample` of the same model."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import realcustom_jax as rc
from realcustom_jax.common.errors import UserError
from realcustom_jax.inputs.transforms import center_crop_resize
from realcustom_jax.options import SamplingOptions
from realcustom_jax.toybox import Identity, render_reference
from realcustom_jax.training import partition
from realcustom_jax.training.config import read_config
from realcustom_jax.training.samples import SampleGrid

TINY = Path(__file__).resolve().parents[2] / "configs" / "tiny.py"
TRAINABLE = ("^unet/",)


@pytest.fixture
def config(tmp_path):
    config = runpy.run_path(str(TINY))["get_config"]("customize")
    config.seed, config.samples.every = 3, 1
    config.samples.requests = (
        ("a bird in the snow", "bird", "toybox:bird:29"),
        ("a cat on the beach", "cat", str(tmp_path / "photo.png")),
        ("a dog and a cup", "cup", "toybox:cup:9"),
    )
    return config


@pytest.fixture(scope="module")
def few_steps(flat_pipe):
    return flat_pipe.replace(defaults=SamplingOptions(steps=2, image_weight=40.0))


def picture(config, pipe):
    """The sample grid from parameters sharded over a 2×4 mesh, with a trainable UNet."""
    mesh = partition.make_mesh(data=2, fsdp=4)
    rules = (("kernel$", ("fsdp", None)), (".*", ()))
    place = partition.placer(TRAINABLE, np.float32, rules, mesh)
    params = partition.unflatten({path: place(path, x) for path, x in partition.flatten(pipe.params).items()})
    trained, frozen = partition.split_trainable(params, TRAINABLE, (".*",))
    return SampleGrid(read_config(config), pipe.replace(params={}), mesh)(trained, frozen)


def test_row_shows_reference_text_only_and_customized_image(config, few_steps, tmp_path):
    """References from the toybox and a file; six images on eight devices.

    1 of 255: float32 sums in another order may round differently.
    """
    prompts = [prompt for prompt, _, _ in config.samples.requests]
    photos = [render_reference(Identity(word, seed)).image for word, seed in (("bird", 29), ("cup", 9))]
    photos.insert(1, np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8))
    Image.fromarray(photos[1]).save(tmp_path / "photo.png")
    subjects = [
        [rc.Subject(photo, words)]
        for photo, (_, words, _) in zip(photos, config.samples.requests, strict=True)
    ]
    plain = rc.sample(few_steps, prompts, seed=3).images
    custom = rc.sample(few_steps, prompts, subjects=subjects, seed=3).images
    shown = picture(config, few_steps)
    assert shown.shape == (3 * 16, 3 * 16, 3) and shown.dtype == np.uint8
    for row, photo, *wanted in zip(np.split(shown, 3), photos, plain, custom, strict=True):
        reference, *made = np.split(row, 3, axis=1)
        np.testing.assert_array_equal(reference, center_crop_resize(photo, 16))
        for image, expected in zip(made, wanted, strict=True):
            assert np.abs(image.astype(int) - expected.astype(int)).max() <= 1
    assert np.abs(plain.astype(int) - custom.astype(int)).max() > 4, "the subject shows"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (("a cat", "cat", "toybox:unicorn:9"), "'toybox:unicorn:9' is not a toybox subject"),
        (("a cat", "cat", "toybox:cat"), "'toybox:cat' is not a toybox subject"),
        (("a cat", "auto", "toybox:cat:9"), "'a cat' must name its subject's words, not 'auto'"),
        (("a cat", "cat", "nowhere.png"), "nowhere.png' does not exist"),
        (("a cat", "dog", "toybox:dog:9"), "dog"),
    ],
)
def test_invalid_sample_request_raises_at_start(config, few_steps, request_, message):
    config.samples.requests = (request_,)
    with pytest.raises(UserError, match=message):
        SampleGrid(read_config(config), few_steps.replace(params={}), partition.make_mesh())


@pytest.mark.parametrize(
    ("stage", "requests", "message"),
    [
        ("customize", (), "config.samples.requests is empty"),
        ("customize", (("a cat", "cat"),), r"\('a cat', 'cat'\) is not a prompt"),
        ("customize", (("a cat", "cat", 7),), "is not a prompt"),
        (
            "vae",
            (("a cat", "cat", "x.png"),),
            "samples.every is for the stages base and customize, not for vae",
        ),
    ],
)
def test_invalid_samples_config_raises(stage, requests, message):
    config = runpy.run_path(str(TINY))["get_config"](stage)
    read_config(config)
    config.samples.every, config.samples.requests = 5, requests
    with pytest.raises(UserError, match=message):
        read_config(config)
