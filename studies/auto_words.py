"""Does `words="auto"` find the right word for a reference? `python studies/auto_words.py [--requests 96]`

Uses held-out subjects of all words. Each prompt names the subject's word and one other word. Prints how often
the choice is right, wrong or refused, and how often a prompt with two other words is refused. For several
sentence templates, it also prints how often the encoder pair alone prefers the right one of the two words.
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

    def choose(pairs: list[tuple[str, str]]) -> list[str]:
        """Word chosen for each image, or "" if all words are refused."""
        choices = []
        for image, pair, place in zip(images, pairs, places, strict=True):
            try:
                request = Request(prompt(list(pair), place), (rc.Subject(image, "auto"),))
                (resolved,) = resolve_auto_words(pipe, [request])
                choices.append(resolved.subjects[0].words)
            except rc.UserError:
                choices.append("")
        return choices

    choices = choose(list(zip(words, others, strict=True)))
    kinds = collections.Counter(
        "refused" if not choice else "right" if choice == word else "wrong"
        for choice, word in zip(choices, words, strict=True)
    )
    shares = (f"{kinds[kind] / count:.0%} {kind}" for kind in ("right", "wrong", "refused"))
    print(f"its word and another: {', '.join(shares)}")
    without = choose(list(zip(others, absent, strict=True)))
    print(f"two other words: {np.mean([not word for word in without]):.0%} refused")
    for template in TEMPLATES:
        logits = own_pair(pipe.models, pipe.params, pipe.tokenizers, template).logits(images, WORDS)
        own, other = (
            [row[WORDS.index(word)] for row, word in zip(logits, column, strict=True)]
            for column in (words, others)
        )
        print(f"the right one of two words, {template!r}: {np.mean(np.greater(own, other)):.0%}")


if __name__ == "__main__":
    run_command(main)
