"""How well `words="auto"` finds what a reference shows: `python studies/auto_words.py [--requests 96]`.

Held-out subjects of all words, each with a prompt that names its word and one other. Printed are how often
the choice is right, wrong or refused; how often a prompt of two other words is refused; and how often the
pair of encoders alone prefers the right one of the two words, for some sentences around the word.
"""

import argparse
import collections

import numpy as np

import realcustom_jax as rc
from realcustom_jax.common.cli import run_command
from realcustom_jax.inputs.encode import resolve_auto_words
from realcustom_jax.inputs.encoder_pair import OWN_TEMPLATE, own_pair
from realcustom_jax.inputs.requests import Request
from realcustom_jax.toybox import BACKGROUNDS, WORDS, prompt, random_identity, render_reference

TEMPLATES = (OWN_TEMPLATE, "a {}", "a photo of a {}", "a photo of a {} on a plain background")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--model", default="toybox")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    pipe, count = rc.load(args.model), args.requests
    words = [WORDS[i % len(WORDS)] for i in range(count)]
    others = [WORDS[(i + 1 + i // len(WORDS)) % len(WORDS)] for i in range(count)]
    absent = [WORDS[(i + 7 + i // len(WORDS)) % len(WORDS)] for i in range(count)]
    images = [render_reference(random_identity(rng, word, held_out=True)).image for word in words]
    places = [BACKGROUNDS[i % len(BACKGROUNDS)] for i in range(count)]

    def chosen(pairs: list[tuple[str, str]]) -> list[str]:
        """The word taken for each image, "" where all are refused."""
        taken = []
        for image, pair, place in zip(images, pairs, places, strict=True):
            try:
                request = Request(prompt(list(pair), place), (rc.Subject(image, "auto"),))
                (chosen_request,) = resolve_auto_words(pipe, [request])
                taken.append(chosen_request.subjects[0].words)
            except rc.UserError:
                taken.append("")
        return taken

    taken = chosen(list(zip(words, others, strict=True)))
    kinds = collections.Counter(
        "refused" if not t else "right" if t == w else "wrong" for t, w in zip(taken, words, strict=True)
    )
    shares = (f"{kinds[kind] / count:.0%} {kind}" for kind in ("right", "wrong", "refused"))
    print(f"its word and another: {', '.join(shares)}")
    without = chosen(list(zip(others, absent, strict=True)))
    print(f"two other words: {np.mean([not word for word in without]):.0%} refused")
    for template in TEMPLATES:
        logits = own_pair(pipe.models, pipe.params, pipe.tokenizers, template).logits(images, WORDS)
        own, other = (
            [row[WORDS.index(word)] for row, word in zip(logits, of, strict=True)] for of in (words, others)
        )
        print(f"the right one of two words, {template!r}: {np.mean(np.greater(own, other)):.0%}")


if __name__ == "__main__":
    run_command(main)
