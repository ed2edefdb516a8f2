"""Does `words="auto"` find what a reference shows? `python studies/auto_words.py [--requests 60]`

Five kinds of requests with held-out subjects of the toybox's words, `--requests` of each:

  one noun        the prompt names the subject: its word must be chosen
  several nouns   it also names two other things: the subject's word must be chosen
  noun absent     it names a place only: the right word must be added
  other nouns     it names two other things only: the right word must be added
  unlike all      the reference shows a printed symbol: the answer must be a question

Prints how many are right, wrong, or asked for. With `--photos DIR` it does the same with photographs, for a
model with a CLIP: `--model MODEL --matcher openai/clip-vit-large-patch14 --photos DIR`. DIR has a folder of
photos for each word, such as dog/, and other/ with photos that show nothing of them.
"""

import argparse
import collections
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import realcustom_jax as rc
from realcustom_jax.common.cli import run_command
from realcustom_jax.inputs.encode import resolve_auto_words
from realcustom_jax.inputs.names import indefinite
from realcustom_jax.inputs.requests import Request
from realcustom_jax.toybox import WORDS, random_identity, render_reference
from realcustom_jax.toybox.backgrounds import PHRASES

# Things of DejaVu Sans that are none of the toybox's words.
SYMBOLS = "☂☃♞✂☎✈☠♫✿☀☁★☘⚓⚔⚖⚙⚛⚽♔♛♟⌚⌛☯☮✉✎✒✔✖❄❤➤☞♥♦♣♠☺"

Draw = Callable[[np.random.Generator, str], np.ndarray]


class Case(NamedTuple):
    """A request: the kind of question, the prompt, the reference, and its word ("" for none)."""

    kind: str
    prompt: str
    image: np.ndarray
    word: str


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--model", default="toybox")
    parser.add_argument("--matcher", default=None)
    parser.add_argument("--photos", type=Path, default=None)
    args = parser.parse_args()
    pipe = rc.load(args.model, matcher=args.matcher)
    if args.photos is None:
        words, draw = WORDS, draw_toybox
    else:
        words = sorted(path.name for path in args.photos.iterdir() if path.is_dir() and path.name != "other")
        draw = photo_of(args.photos)
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for case in cases(words, draw, args.requests):
        counts[case.kind][answer(pipe, case)] += 1
    print("| request | right | wrong | asked |\n|---|---|---|---|")
    total: collections.Counter = sum(counts.values(), collections.Counter())
    for kind, count in {**counts, "all": total}.items():
        shares = (f"{count[name] / count.total():.1%}" for name in ("right", "wrong", "asked"))
        print(f"| {kind} ({count.total()}) | {' | '.join(shares)} |")


def cases(words: Sequence[str], draw: Draw, count: int) -> Iterator[Case]:
    """The requests of all kinds."""
    rng, places = np.random.default_rng(0), list(PHRASES.values())
    for i in range(count):
        place = places[i % len(places)]
        word = words[i % len(words)]
        others = [str(x) for x in rng.choice([other for other in words if other != word], 2, replace=False)]
        several = [str(x) for x in rng.permutation([word, *others])]
        yield Case("one noun", f"{things([word])} {place}", draw(rng, word), word)
        yield Case("several nouns", f"{things(several)} {place}", draw(rng, word), word)
        yield Case("noun absent", place, draw(rng, word), word)
        yield Case("other nouns", f"{things(others)} {place}", draw(rng, word), word)
        # every second one has no noun at all
        prompt = f"{things(others)} {place}" if i % 2 else place
        yield Case("unlike all", prompt, draw(rng, ""), "")


def answer(pipe: rc.Pipeline, case: Case) -> str:
    """Whether the answer to a request is "right", "wrong", or the question which word it is ("asked")."""
    try:
        (found,) = resolve_auto_words(pipe, [Request(case.prompt, (rc.Subject(case.image, "auto"),))])
    except rc.UserError:
        return "asked" if case.word else "right"
    # The prompt grows only by the word that it lacks.
    added = found.prompt != case.prompt
    lacked = bool(case.word) and case.word not in case.prompt.split()
    return "right" if found.subjects[0].words == case.word and added == lacked else "wrong"


def things(words: Sequence[str]) -> str:
    """ "a cat and an owl"."""
    return " and ".join(f"{indefinite(word)}{word}" for word in words)


def draw_toybox(rng: np.random.Generator, word: str) -> np.ndarray:
    """A held-out subject of a word; for "", a symbol."""
    if word:
        identity = random_identity(rng, word, held_out=True)
        return render_reference(identity, int(rng.integers(2**31))).image
    import matplotlib  # it brings the font

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    ground, ink = (tuple(map(int, rng.integers(low, low + 128, 3))) for low in (128, 0))
    image = Image.new("RGB", (256, 256), ground)
    font = ImageFont.truetype(str(path), int(rng.integers(140, 220)))
    symbol = SYMBOLS[int(rng.integers(len(SYMBOLS)))]
    ImageDraw.Draw(image).text((128, 128), symbol, ink, font, anchor="mm")
    return np.asarray(image.reduce(4))


def photo_of(folder: Path) -> Draw:
    """Draws a random photo of a word's folder; for "", of other/."""

    def draw(rng: np.random.Generator, word: str) -> np.ndarray:
        files = sorted(path for path in (folder / (word or "other")).iterdir() if path.is_file())
        if not files:
            raise rc.UserError(f"{folder / (word or 'other')} has no photos")
        return np.asarray(Image.open(files[int(rng.integers(len(files)))]).convert("RGB"))

    return draw


if __name__ == "__main__":
    run_command(main)
