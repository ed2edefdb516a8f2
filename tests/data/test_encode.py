"""Stored latents: what is stored, that training from them is training from pixels, and what is refused."""

import dataclasses
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax import pipeline
from realcustom_jax.data import encode as command
from realcustom_jax.data.buckets import make_buckets
from realcustom_jax.data.encode import encode_split, fingerprint, make_encoding, training_shapes
from realcustom_jax.data.encoded import encoded_folder, open_encoded, read_info
from realcustom_jax.data.image_text import Split, open_split
from realcustom_jax.data.loader import make_loader
from realcustom_jax.data.prepare import prepare
from realcustom_jax.data.recipe import Recipe
from realcustom_jax.data.transforms import center_crop_resize, to_float
from realcustom_jax.errors import UserError
from realcustom_jax.models.config import UNetConfig
from realcustom_jax.training.curriculum import Curriculum
from realcustom_jax.training.examples import MakeExample
from realcustom_jax.training.losses import make_loss
from realcustom_jax.weights.keys import flatten, unflatten

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("sources.py"))))
COUNT = 19  # no multiple of the batch of 8, nor of the chunk


@pytest.fixture(scope="module")
def model(micro_pipe, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("models") / "micro"
    pipeline.save(micro_pipe, path)
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Split:
    """Pictures of three proportions."""
    folder = tmp_path_factory.mktemp("data")
    sizes = [(32, 24), (20, 40), (26, 26)]
    samples = [
        {"jpg": common.encode(common.picture(i, *sizes[i % 3])), "txt": b"a cat"} for i in range(COUNT)
    ]
    common.write_tar(folder / "0.tar", samples)
    prepare([str(folder)], folder / "out", Recipe())
    return open_split(folder / "out", "train")


@pytest.fixture(scope="module", params=[False, True], ids=["squares", "buckets"])
def encoded(request, model, data):
    """(encoding, split with latents), the latents made in chunks of 5."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "_CHUNK", 5)
        encoding = make_encoding(model, 1, request.param, step=4, max_aspect=2.0)
        encode_split(data, encoding)
    yield encoding, open_encoded(data, encoding.vae, encoding.shapes, with_image=True)
    shutil.rmtree(encoded_folder(data))


def test_the_posterior_of_each_image_is_stored(encoded, micro_pipe):
    """Against the VAE on one image at a time: float16 has 11 bits, so 2e-3 of values up to 4.

    The last six images have all proportions and are of the last chunk, whose last batch is not full.
    """
    moments = jax.jit(
        lambda image: micro_pipe.models.vae.apply(
            {"params": micro_pipe.params["vae"]}, image, method="moments"
        )
    )
    encoding, split = encoded
    assert len(split) == COUNT
    shapes = set()
    for i in range(COUNT - 6, COUNT):
        example = split[i]
        ratio = example["image"].shape[0] / example["image"].shape[1]
        shape = min(encoding.shapes, key=lambda s, r=ratio: abs(np.log(s[0] / s[1] / r)))
        shapes.add(shape)
        image = to_float(center_crop_resize(example["image"], shape))[None]
        mean, log_variance = moments(image)
        assert example["mean"].dtype == np.float16
        np.testing.assert_allclose(example["mean"], mean[0], rtol=1e-3, atol=2e-3)
        np.testing.assert_allclose(example["log_variance"], log_variance[0], rtol=1e-3, atol=2e-3)
    assert len(shapes) == (1 if len(encoding.shapes) == 1 else 3)


def batches_of(encoded, data, pipe, side: int | None) -> list[dict]:
    """The first batch from pixels, and the same from latents."""
    encoding, split = encoded
    buckets = make_buckets(data.sizes(), encoding.shapes) if len(encoding.shapes) > 1 else None
    transform = MakeExample(pipe.tokenizers, 16, side, False, 4, Curriculum(start=1.0), 0.1, 0.1, 0.1, 0.5)
    return [
        next(make_loader(source, transform, batch_size=4, seed=3, buckets=buckets))
        for source in (data, split)
    ]


def test_a_batch_differs_in_nothing_but_the_latents(encoded, data, micro_pipe):
    """The reference is still drawn from the pixels, with the same augmentation."""
    pixels, latents = batches_of(encoded, data, micro_pipe, side=16)
    assert pixels.keys() == {"image", "ids", "reference", "flag"}
    assert latents.keys() == {"mean", "log_variance", "ids", "reference", "flag"}
    for name in ("ids", "reference", "flag"):
        np.testing.assert_array_equal(pixels[name], latents[name])


def test_the_loss_from_latents_is_the_loss_from_pixels(encoded, data, micro_pipe):
    """Same key, same draws: equal but for float16's 5e-4 of each latent; the loss is an average: 1e-3.

    With a UNet that halves its input, so the loss depends on the latents. Another key is off by more than
    three times the tolerance: the draw from the posterior is the same one.
    """
    text = SimpleNamespace(apply=lambda *_: SimpleNamespace(last=jnp.ones((4, 2, 3))))
    models = SimpleNamespace(
        vae=micro_pipe.models.vae, vae_config=micro_pipe.models.vae_config, unet_config=UNetConfig(),
        text_encoders={"text_encoder": text}, unet=Halves(),
    )  # fmt: skip
    loss = jax.jit(
        make_loss("base", models, micro_pipe.schedule, {"min_snr_gamma": 0.0, "timestep_shift": 1.0})
    )
    params = {"vae": micro_pipe.params["vae"], "text_encoder": None, "unet": None}
    batches = batches_of(encoded, data, micro_pipe, side=None)
    pixels, latents = (float(loss(params, batch, jax.random.key(1))[0]) for batch in batches)
    assert latents == pytest.approx(pixels, rel=1e-3)
    assert float(loss(params, batches[1], jax.random.key(2))[0]) != pytest.approx(pixels, rel=3e-3)


class Halves:
    """Stands for the UNet."""

    def apply(self, variables, *, method):
        return method(self)

    def encode_context(self, *args, **kwargs):
        return None

    def __call__(self, z, t, context, quantity=None):
        return 0.5 * z, None


def test_training_from_latents_alone_decodes_no_image(encoded, data):
    encoding, _ = encoded
    example = open_encoded(data, encoding.vae, encoding.shapes, with_image=False)[3]
    assert "image" not in example and example["caption"] == "a cat"


def test_work_that_was_cut_off_goes_on(encoded, data, monkeypatch):
    """Killed after two of four chunks: the other two are computed, and the latents are the same."""
    encoding, split = encoded
    expected = [split[i]["mean"] for i in range(COUNT)]
    folder = encoded_folder(data)
    kept = folder.rename(folder.with_name("kept"))
    calls = []
    monkeypatch.setattr(command, "_CHUNK", 5)
    latents = command._latents

    def stop(split, chunk, *rest):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(chunk)
        return latents(split, chunk, *rest)

    monkeypatch.setattr(command, "_latents", stop)
    with pytest.raises(KeyboardInterrupt):
        encode_split(data, encoding)
    assert read_info(folder) is None
    monkeypatch.setattr(command, "_latents", lambda *a: calls.append(a[1]) or latents(*a))
    encode_split(data, encoding)
    encode_split(data, encoding)  # there is nothing left to do
    assert calls == [range(5), range(5, 10), range(10, 15), range(15, 19)]
    again = open_encoded(data, encoding.vae, encoding.shapes, with_image=False)
    for i in range(COUNT):
        np.testing.assert_array_equal(again[i]["mean"], expected[i])
    shutil.rmtree(folder)
    kept.rename(folder)


def test_latents_of_another_kind_are_refused(encoded, data):
    encoding, _ = encoded
    with pytest.raises(UserError, match="are of another VAE than the model's"):
        open_encoded(data, "other", encoding.shapes, True)
    with pytest.raises(UserError, match=r"are of images of .*16×16.*, and training is of 32×32"):
        open_encoded(data, encoding.vae, ((32, 32),), True)
    with pytest.raises(UserError, match="holds latents of another VAE or other shapes; delete it first"):
        encode_split(data, dataclasses.replace(encoding, vae="other"))


def test_latents_that_are_not_there_are_asked_for(tmp_path):
    data = Split(None, tmp_path, "train")
    with pytest.raises(
        UserError, match=r"no stored latents in '.*encoded-train'.*realcustom_jax.data.encode"
    ):
        open_encoded(data, "x", ((16, 16),), True)


def test_the_fingerprint_is_of_the_encoder_in_half_precision(micro_params):
    vae = flatten(micro_params["vae"])
    half = {path: value.astype(np.float16).astype(np.float32) for path, value in vae.items()}
    decoder = {path: value * 2 if path.startswith("decoder/") else value for path, value in vae.items()}
    encoder = vae | {"encoder/conv_in/kernel": vae["encoder/conv_in/kernel"] * 1.01}
    own = fingerprint(micro_params["vae"])
    assert [fingerprint(unflatten(x)) == own for x in (half, decoder, encoder)] == [True, True, False]
    assert fingerprint(jax.tree.map(jnp.asarray, micro_params["vae"])) == own


def test_a_step_that_the_unet_cannot_halve_is_refused(micro_models):
    """Latents are half the pixels, and the UNet halves them once more: multiples of 4."""
    assert training_shapes(micro_models, False, 7, 2.0) == ((16, 16),)
    with pytest.raises(UserError, match="the bucket step 6 must be a multiple of 4 pixels"):
        training_shapes(micro_models, True, 6, 2.0)
