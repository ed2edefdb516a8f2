"""Can the toybox's judge be trusted? `python studies/judge.py [--requests 208]`

Prints the judge's scores on real held-out scenes: unchanged, after the model's VAE (encoded and decoded,
because generated images are decoded too), and blurred by one pixel. Two more rows show its lowest scores:
scenes with another identity of the word, and noise.
"""

from pathlib import Path

import jax
import numpy as np
from noised_scenes import encode
from toybox_flags import flags

from realcustom_jax.common.cli import run_command
from realcustom_jax.evaluation.judge import SHIPPED, Judge
from realcustom_jax.evaluation.tables import table
from realcustom_jax.evaluation.toybox import Benchmark, another_subject, make_cases, real_scene
from realcustom_jax.outputs.decode import decode
from realcustom_jax.pipeline import load
from realcustom_jax.toybox.augment import blur

MEASURES = ("identity_top1", "background_top1", "word_top1", "mask_iou")


def main() -> None:
    parser = flags(__doc__, 208, plots=False)
    parser.add_argument(
        "--judge", type=Path, default=SHIPPED, help="folder of the judge (default: the shipped one)"
    )
    args = parser.parse_args()
    requests = make_cases(args.requests)
    benchmark = Benchmark(requests, Judge.load(args.judge), None)
    scenes = [real_scene(request) for request in requests]
    images, masks = (np.stack(x) for x in ([s.image for s in scenes], [s.masks[0] for s in scenes]))
    noise = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    others = np.stack([another_subject(request).image for request in requests])
    kinds = {
        "real scenes": (images, masks),
        "through the VAE": (through_vae(args.model, images, args.batch), masks),
        "blurred by one pixel": (_rounded(blur(images.astype(np.float32), np.ones(len(images)))), masks),
        "another identity": (others, None),
        "noise": (noise, None),
    }
    print(table({name: benchmark.measure(*x) for name, x in kinds.items()}, MEASURES, first="images"))


def through_vae(model: str, images: np.ndarray, batch: int) -> np.ndarray:
    """Encode images by the model's VAE and decode the mean latents."""
    pipe = load(model)

    @jax.jit
    def run(part: jax.Array) -> jax.Array:
        return decode(pipe.models, pipe.params["vae"], encode(pipe.models, pipe.params, part))

    return np.concatenate([np.asarray(run(images[i : i + batch])) for i in range(0, len(images), batch)])


def _rounded(images: np.ndarray) -> np.ndarray:
    return np.clip(np.round(images), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    run_command(main)
