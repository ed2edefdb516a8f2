"""How far a subject's colours reach its word: `python benchmarks/colour_takeover.py [--requests 32]`.

Held-out subjects of all words are put on all backgrounds, with and without the subject, from the same noise.
Printed are, inside the final mask, how much of the reference's colour histogram is found again (4x4x4 bins,
intersection, 0 to 1), for how many requests the subject raises that, and how much the image changes inside
and outside the mask.
"""

import argparse

import numpy as np

import realcustom_jax as rc
from realcustom_jax.cli import run_command
from realcustom_jax.toybox import BACKGROUNDS, WORDS, prompt, random_identity, render_reference


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--model", default="toybox")
    parser.add_argument("--image-weight", type=float, help="guidance weight of the subject")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    count = args.requests
    words = [WORDS[i % len(WORDS)] for i in range(count)]
    references = [render_reference(random_identity(rng, word, held_out=True)) for word in words]
    prompts = [prompt([word], BACKGROUNDS[i % (len(BACKGROUNDS) - 1)]) for i, word in enumerate(words)]
    subjects = [[rc.Subject(r.image, word)] for r, word in zip(references, words, strict=True)]
    pipe, seeds = rc.load(args.model), list(range(count))
    text_only = rc.sample(pipe, prompts, seed=seeds).images
    options = {} if args.image_weight is None else {"image_weight": args.image_weight}
    customized = rc.sample(pipe, prompts, subjects=subjects, seed=seeds, **options)

    rows = []
    for i, reference in enumerate(references):
        size = reference.image.shape[0]
        mask = customized.masks[i, -1, 0] > 0
        mask = mask.repeat(size // mask.shape[0], axis=0).repeat(size // mask.shape[1], axis=1)
        target = histogram(reference.image[reference.masks[0]])
        change = np.abs(customized.images[i].astype(float) - text_only[i]).mean(axis=-1)
        found = [
            np.minimum(histogram(image[i][mask]), target).sum() for image in (text_only, customized.images)
        ]
        rows.append([*found, change[mask].mean(), change[~mask].mean()])
    text, custom, inside, outside = np.mean(rows, axis=0)
    closer = np.mean([row[1] > row[0] for row in rows])
    print(f"reference colours found again: text only {text:.3f}, customized {custom:.3f}")
    print(f"requests where the subject brings its colours closer: {closer:.0%} of {count}")
    print(f"mean change of a pixel (0-255): inside the mask {inside:.1f}, outside {outside:.1f}")


def histogram(pixels: np.ndarray) -> np.ndarray:
    """Colour histogram (64,) of pixels (n, 3) uint8, summing to 1."""
    bins = (pixels // 64).astype(int) @ np.array([16, 4, 1])
    return np.bincount(bins, minlength=64) / max(len(bins), 1)


if __name__ == "__main__":
    run_command(main)
