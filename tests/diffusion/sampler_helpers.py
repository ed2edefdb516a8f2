"""Requests and helpers of the sampler's tests; loaded by `runpy`, as tests are no package."""

import jax
import jax.numpy as jnp
import numpy as np

import realcustom_jax as rc
from realcustom_jax.diffusion.sampler import sample_latents
from realcustom_jax.toybox import Identity, render_reference

PROMPTS = ["a cat and a robot on the beach", "a dog in the snow"]
STEPS = 5
OPTIONS = {"steps": STEPS, "text_weight": 3.0, "image_weight": 2.0, "gamma_scope": 0.3, "gamma_num": 0.6}


def reference(word: str, seed: int = 9) -> rc.Subject:
    return rc.Subject(render_reference(Identity(word, seed)).image, word)


SUBJECTS = [[reference("cat"), reference("robot", 19)], [reference("dog", 29)]]
DRAWN = np.arange(64).reshape(8, 8) % 8 < 5  # the left five columns
SAMPLE = jax.jit(sample_latents, static_argnames=("unet", "schedule", "config"))


def compiled(pipe, conditioning, config, seeds):
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    return SAMPLE(
        pipe.params["unet"], conditioning, keys, unet=pipe.models.unet, schedule=pipe.schedule, config=config
    )


def relative(a, b) -> float:
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b)))
