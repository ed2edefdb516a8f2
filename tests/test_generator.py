"""`Generator` in batches of one size over several devices, against `sample`."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import realcustom_jax as rc
from realcustom_jax.generate import Generator
from realcustom_jax.inputs import checks
from realcustom_jax.inputs.requests import Request


def test_generator_batches_over_devices_equal_sample(micro_pipe):
    """5 requests in batches of 4 on 2 devices, the last padded, against one call.

    Sharding and batching change the order of float32 sums, which may round a pixel to its neighbour.
    """
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    prompts = ["a cat on the beach", "a robot in the snow", "a cup at sunset"]
    words = ["cat", "robot", "cup"]
    requests = [Request(prompts[i % 3], (rc.Subject(photos[i % 3], words[i % 3]),), seed=i) for i in range(5)]
    options = micro_pipe.defaults.changed({"steps": 2})
    counts = []
    pipe = micro_pipe.on_mesh(Mesh(np.asarray(jax.devices()[:2]), ("data",)))
    generator = Generator(pipe, per_device=2)
    assert generator.batch == 4
    images, masks = generator(requests, options, counts.append)
    expected = rc.sample(
        micro_pipe, [r.prompt for r in requests], [list(r.subjects) for r in requests],
        [r.seed for r in requests],
        steps=2,
    )  # fmt: skip
    assert counts == [4, 1]
    assert images.shape == expected.images.shape and len(np.unique(images)) > 20
    assert np.abs(images.astype(int) - expected.images).max() <= 1
    np.testing.assert_allclose(masks, expected.masks[:, -1], atol=1e-3)
    assert (images[0] != images[3]).mean() > 0.5  # the same request with other noise


def test_generator_checks_memory_of_a_batch_and_not_of_all_requests(micro_pipe, monkeypatch):
    requests = [Request("a cat", seed=i) for i in range(6)]
    options = micro_pipe.defaults.changed({"steps": 1, "mask_steps": 1})
    config = micro_pipe.models.unet_config
    numbers = (
        8 * 8 * config.block_out_channels[0] * (config.layers_per_block + 2)
    )  # of one image, see check_fits
    monkeypatch.setattr(checks, "_memory", lambda: 2 * numbers * 2)
    images, _ = Generator(micro_pipe, per_device=2)(requests, options)
    assert len(images) == 6
    with pytest.raises(rc.UserError, match="3 images of"):
        Generator(micro_pipe, per_device=3)(requests, options)


def test_generator_finds_mistakes_before_the_first_image(micro_pipe, monkeypatch):
    subject = rc.Subject(np.zeros((16, 16, 3), np.uint8), "cat")
    requests = [
        Request("a cat", (rc.Subject(subject.image, "cat", strength=0),)),
        Request("a cat", (subject,)),
    ]
    options = micro_pipe.defaults.changed({"steps": 1, "mask_steps": 1, "gamma_scope": 1e-4})
    monkeypatch.setattr("realcustom_jax.generate.denoise", lambda *_, **__: pytest.fail("sampled"))
    with pytest.raises(rc.UserError, match="leaves no pixel"):
        Generator(micro_pipe, per_device=1)(requests, options)
