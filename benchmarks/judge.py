"""How far the toybox's judge can be trusted: `python benchmarks/judge.py [--requests 208]`.

Printed are its scores on real held-out scenes as they are, after the model's VAE (encoded and decoded, as
generated images look), and blurred by one pixel; and its floor: scenes of another identity of the word than
the one that was asked for, and noise.
"""

import argparse
from pathlib import Path

import jax
import numpy as np

import realcustom_jax as rc
from realcustom_jax.cli import run_command
from realcustom_jax.evaluation.judge import SHIPPED, Judge
from realcustom_jax.evaluation.judge_augment import blur
from realcustom_jax.evaluation.tables import table
from realcustom_jax.evaluation.toybox import Benchmark, Request, identities, make_requests, real_scene
from realcustom_jax.models.vae import VAE
from realcustom_jax.toybox import render_scene

MEASURES = ("identity_top1", "background_top1", "word_top1", "mask_iou")
CHUNK = 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=208)
    parser.add_argument("--model", default="toybox", help="whose VAE")
    parser.add_argument("--judge", type=Path, default=SHIPPED)
    args = parser.parse_args()
    requests = make_requests(args.requests)
    benchmark = Benchmark(requests, Judge.load(args.judge), None)
    scenes = [real_scene(request) for request in requests]
    images, masks = (np.stack(x) for x in ([s.image for s in scenes], [s.masks[0] for s in scenes]))
    noise = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    others = np.stack([_other_identity(request) for request in requests])
    kinds = {
        "real scenes": (images, masks),
        "through the VAE": (through_vae(args.model, images), masks),
        "blurred by one pixel": (_rounded(blur(images.astype(np.float32), np.ones(len(images)))), masks),
        "another identity": (others, None),
        "noise": (noise, None),
    }
    print(table({name: benchmark.measure(*x) for name, x in kinds.items()}, MEASURES, first="images"))


def through_vae(model: str, images: np.ndarray) -> np.ndarray:
    """Images as the model's VAE gives them back; its mean latents are decoded."""
    pipe = rc.load(model)

    @jax.jit
    def run(signed):
        variables = {"params": pipe.params["vae"]}
        latents = pipe.models.vae.apply(variables, signed, None, method=VAE.encode)
        return pipe.models.vae.apply(variables, latents, method=VAE.decode)

    padded = np.concatenate([images, np.repeat(images[-1:], -len(images) % CHUNK, axis=0)])
    signed = padded.astype(np.float32) / 127.5 - 1.0
    parts = [np.asarray(run(signed[i : i + CHUNK])) for i in range(0, len(signed), CHUNK)]
    return _rounded((np.concatenate(parts)[: len(images)] + 1.0) * 127.5)


def _rounded(images: np.ndarray) -> np.ndarray:
    return np.clip(np.round(images), 0, 255).astype(np.uint8)


def _other_identity(request: Request) -> np.ndarray:
    """The scene of the request, but of the next identity."""
    own = identities(request.word)
    return render_scene(request.background, [own[(request.number + 1) % len(own)]], request.seed).image


if __name__ == "__main__":
    run_command(main)
