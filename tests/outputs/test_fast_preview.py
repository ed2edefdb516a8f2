"""Fast previews: the linear map against the VAE itself, on one device, several, and offloaded."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import realcustom_jax as rc
from realcustom_jax.common.pixels import to_signed
from realcustom_jax.generate import generate_latents, plan
from realcustom_jax.inputs.requests import requests_of
from realcustom_jax.models.vae import VAE
from realcustom_jax.outputs.decode import images_of
from realcustom_jax.outputs.fast_preview import linear_decoder
from realcustom_jax.pipeline import Offloaded
from realcustom_jax.toybox import Identity, render_reference

SUBJECT = rc.Subject(render_reference(Identity("cat", 9)).image, "cat")


def shrunk(images: np.ndarray, size: int) -> np.ndarray:
    """Block means: (B, H, W, 3) → (B, size, size, 3)."""
    rows = np.stack(np.split(images.astype(np.float32), size, axis=1), axis=1).mean(axis=2)
    return np.stack(np.split(rows, size, axis=2), axis=2).mean(axis=3)


def psnr(images: np.ndarray, expected: np.ndarray) -> float:
    return 10 * np.log10(255**2 / ((images - expected) ** 2).mean())


def test_map_gives_the_colours_of_the_decoded_images():
    """Drawings, encoded by the toybox's VAE: nearly as close as the best linear map of these drawings."""
    pipe = rc.load("toybox", progress=False)
    drawings = np.stack(
        [render_reference(Identity(word, 3)).image for word in ("cat", "boat", "cup", "tree")]
    )
    latents = pipe.models.vae.apply({"params": pipe.params["vae"]}, to_signed(drawings), method=VAE.encode)
    small, expected = linear_decoder(pipe)(latents), shrunk(images_of(pipe, latents), 16)
    assert small.shape == (4, 16, 16, 3) and small.dtype == np.uint8
    rows = np.concatenate([latents.reshape(-1, 8), np.ones((4 * 16 * 16, 1))], axis=1)
    best = rows @ np.linalg.lstsq(rows, expected.reshape(-1, 3))[0]
    assert psnr(small, expected) > psnr(best.reshape(expected.shape), expected) - 2 > 20


def test_previews_are_of_the_predicted_latents_and_change_nothing(flat_pipe):
    """The last preview is the map of the latents that become the image."""
    request, seen = (flat_pipe, "a cat", [SUBJECT], [1, 2]), []
    plain = rc.sample(*request, steps=4, progress=False)
    fast = rc.sample(*request, steps=4, progress=False, every=3, fast_preview=True,
                     preview=lambda step, images: seen.append((step, images)))  # fmt: skip
    np.testing.assert_array_equal(fast.images, plain.images)
    requests = requests_of("a cat", [SUBJECT], None, [1, 2])
    options, config = plan(flat_pipe.models, flat_pipe.schedule, flat_pipe.defaults, {"steps": 4}, requests)
    latents, _ = generate_latents(flat_pipe, requests, options, config)
    assert [step for step, _ in seen] == [3, 4]
    np.testing.assert_array_equal(seen[1][1], linear_decoder(flat_pipe)(latents))
    assert not np.array_equal(seen[0][1], seen[1][1])


def test_map_of_a_linear_decoder_is_exact(micro_pipe, monkeypatch):
    """A VAE that is linear within 0 … 255 is recovered: only the rounding to bytes is left."""
    channels = micro_pipe.models.vae_config.latent_channels
    matrix = np.random.default_rng(1).uniform(-0.05, 0.05, (channels, 3)).astype(np.float32)

    def decode(self, latents):
        return jnp.repeat(jnp.repeat(latents @ matrix + 0.2, 2, axis=1), 2, axis=2)

    monkeypatch.setattr(VAE, "decode", decode)
    found = linear_decoder(micro_pipe.replace()).matrix
    np.testing.assert_allclose(found[:-1], matrix * 127.5, atol=0.05)
    np.testing.assert_allclose(found[-1], (0.2 * 0.5 + 0.5) * 255, atol=0.05)


def test_map_is_fitted_once_and_before_an_offloaded_unet_is_loaded(micro_pipe, tmp_path, monkeypatch):
    rc.save(micro_pipe, tmp_path)
    asked, seen, get = [], [], Offloaded.__getitem__

    def spy(params, name):
        asked.append(name)
        return get(params, name)

    monkeypatch.setattr(Offloaded, "__getitem__", spy)
    pipe = rc.load(tmp_path, offload=True, progress=False)
    for k in range(2):
        rc.sample(pipe, "a cat", seed=[1, 2], steps=4, every=1, fast_preview=True, progress=False,
                  preview=lambda step, images: seen.append(images))  # fmt: skip
        big = [name for name in asked if name in ("unet", "vae")]
        assert big == [["vae", "unet", "vae"], ["vae", "unet", "vae", "unet", "vae"]][k]
    assert len(seen) == 8 and {x.shape for x in seen} == {(2, 8, 8, 3)}


def test_fast_previews_of_several_devices_have_no_padding(flat_pipe):
    pipe, seen = flat_pipe.on_mesh(Mesh(np.asarray(jax.devices()[:2]), ("data",))), []
    rc.sample(pipe, "a cat", [SUBJECT], [1, 2, 3], steps=2, every=1, fast_preview=True, progress=False,
              preview=lambda step, images: seen.append(images))  # fmt: skip
    assert [images.shape for images in seen] == [(3, 8, 8, 3)] * 2
    np.testing.assert_allclose(
        linear_decoder(pipe).matrix, linear_decoder(flat_pipe).matrix, rtol=1e-2, atol=0.1
    )


def test_story_passes_fast_previews_on(micro_pipe):
    seen = []
    story = rc.Story(
        [rc.Character("Mika", SUBJECT.image, "cat")], ["Mika on the beach"], options={"steps": 2}
    )
    watching = {"every": 1, "fast_preview": True, "progress": False}
    story.generate(micro_pipe, preview=lambda step, images: seen.append(images.shape), **watching)
    story.reroll(micro_pipe, 0, preview=lambda step, images: seen.append(images.shape), **watching)
    rc.candidates(micro_pipe, "cat", seeds=[1], steps=2, **watching,
                  preview=lambda step, images: seen.append(images.shape))  # fmt: skip
    assert seen == [(1, 8, 8, 3)] * 6
