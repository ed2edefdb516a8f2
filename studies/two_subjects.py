"""Do two subjects in one prompt keep their own looks? `python studies/two_subjects.py [--requests 52]`

Each request has two held-out subjects of different words. For each subject, the judge looks at the subject
pixels inside its mask from the full method. Two measures follow:

- identity top-1: does the judge pick the right one of the 20 subjects of the word?
- own look: is the image closer to the own reference than to a subject of the same word with the other
  subject's colours and pattern? Chance is one half.

Without masks a subject may be elsewhere in the image. So a third column computes own look from all subject
pixels, each assigned to the nearer mask. Real scenes show the judge's limit, with exact masks and with masks
of a quarter of the image, which are as wide as the method's. Brackets hold the bootstrap 95 % interval over
requests.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.ndimage
from toybox_flags import parse

import realcustom_jax as rc
from realcustom_jax.common.cli import run_command
from realcustom_jax.evaluation.judge import SIZE, Judge
from realcustom_jax.evaluation.metrics import rank
from realcustom_jax.evaluation.tables import cell
from realcustom_jax.evaluation.toybox import IDENTITIES, identities, references, repeat_pixels
from realcustom_jax.generate import Generator
from realcustom_jax.inputs.requests import Request
from realcustom_jax.inputs.subjects import Subject
from realcustom_jax.toybox import BACKGROUNDS, WORDS, Identity, Scene, prompt, render_reference, render_scene

WORD_OFFSET = 5  # distance of a request's two words in WORDS


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two held-out subjects of different words on one background."""

    words: tuple[str, str]
    number: int
    background: str
    seed: int

    def request(self, with_subjects: bool = True, masked: bool = True) -> Request:
        mask = None if masked else np.ones((1, 1), np.float32)
        subjects = tuple(Subject(references(word)[self.number].image, word, mask=mask) for word in self.words)
        return Request(prompt(self.words, self.background), subjects if with_subjects else (), self.seed)

    def real_scene(self) -> Scene:
        return render_scene(self.background, [self.identity(k) for k in range(2)], self.seed, SIZE)

    def identity(self, which: int) -> Identity:
        return identities(self.words[which])[self.number]

    def with_other_look(self, which: int) -> Scene:
        """Reference of a subject of the same word, with the other subject's colours and pattern."""
        other = self.identity(1 - which)
        seeds = range(10 * self.number + 9, 10**7, 10)  # seeds of held-out identities
        candidates = (Identity(self.words[which], seed) for seed in seeds)
        look = (other.colours, other.pattern)
        return render_reference(next(i for i in candidates if (i.colours, i.pattern) == look), self.number)


def main() -> None:
    args = parse(__doc__, 52, plots=False)
    pairs = [_pair(i) for i in range(args.requests)]
    judge, generator = Judge.load(), Generator(rc.load(args.model), args.batch)
    options = generator.pipe.defaults
    full, masks = generator([pair.request() for pair in pairs], options)
    masks = np.stack([repeat_pixels(masks[:, k] > 0) for k in range(2)], axis=1)
    no_mask, _ = generator([pair.request(masked=False) for pair in pairs], options)
    plain, _ = generator([pair.request(with_subjects=False) for pair in pairs], options)
    scenes = [pair.real_scene() for pair in pairs]
    real, exact = (np.stack([getattr(scene, name) for scene in scenes]) for name in ("image", "masks"))

    candidates = _candidates(judge, pairs)
    inputs = {
        "text only": (plain, masks),
        "visual tokens, no mask": (no_mask, masks),
        "full": (full, masks),
        "real scenes, exact masks": (real, exact),
        "real scenes, wide masks": (real, np.stack([*map(widened, exact)])),
    }
    rows = {name: scores(judge, *arrays, candidates) for name, arrays in inputs.items()}
    nearer_rows = {
        name: scores(judge, images, np.stack([*map(nearer, image_masks)]), candidates)
        for name, (images, image_masks) in inputs.items()
    }
    for table in (rows, nearer_rows):
        table["full less no mask"] = table["full"] - table["visual tokens, no mask"]
    print(f"{'':26}{'identity top-1':>24}{'own look':>24}{'own look, nearer mask':>24}")
    for name, (first, own) in rows.items():
        print(f"{name:26}{cell(first):>24}{cell(own):>24}{cell(nearer_rows[name][1]):>24}")


def _pair(i: int) -> Pair:
    words = (WORDS[i % len(WORDS)], WORDS[(i + WORD_OFFSET) % len(WORDS)])
    return Pair(words, i % IDENTITIES, BACKGROUNDS[i % len(BACKGROUNDS)], seed=i)


def widened(masks: np.ndarray) -> np.ndarray:
    """Grow two exact masks (2, H, W) to a quarter of the image each, without pixels nearer to the other."""
    distance = np.stack([scipy.ndimage.distance_transform_edt(~mask) for mask in masks])
    return nearer(masks) & (distance <= np.quantile(distance, 0.25, axis=(1, 2), keepdims=True))


def nearer(masks: np.ndarray) -> np.ndarray:
    """Assign every pixel to the nearer of two masks (2, H, W)."""
    distance = np.stack([scipy.ndimage.distance_transform_edt(~mask) for mask in masks])
    return distance <= distance[::-1]


def scores(
    judge: Judge, images: np.ndarray, masks: np.ndarray, candidates: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Identity top-1 and own look, each averaged over a request's two subjects: (2, n).

    Args:
      judge: the toybox's judge.
      images: uint8 (n, H, W, 3).
      masks: bool (n, 2, H, W); the judge ignores each subject's pixels outside its mask.
      candidates: directions (2, n, 20, C) and (2, n, 2, C), the right one first.
    """
    regions = judge.look(images).regions
    directions = np.stack([judge.directions(images, masks[:, k] & regions) for k in range(2)])
    correct = [[rank(directions[k], choices[k]) == 0 for k in range(2)] for choices in candidates]
    return np.mean(correct, axis=1)


def _candidates(judge: Judge, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """Directions (2, n, 20, C) of the word's subjects and (2, n, 2, C) of both looks, the right one first."""
    by_word = {word: _directions(judge, references(word)) for word in WORDS}
    subjects = np.stack(
        [[np.roll(by_word[pair.words[k]], -pair.number, axis=0) for pair in pairs] for k in range(2)]
    )
    other_look = np.stack([_directions(judge, [pair.with_other_look(k) for pair in pairs]) for k in range(2)])
    return subjects, np.stack([subjects[:, :, 0], other_look], axis=2)


def _directions(judge: Judge, photos: Sequence[Scene]) -> np.ndarray:
    return judge.directions(
        np.stack([photo.image for photo in photos]), np.stack([photo.masks[0] for photo in photos])
    )


if __name__ == "__main__":
    run_command(main)
