"""Do two subjects in one prompt keep their own looks? `python studies/two_subjects.py [--requests 52]`

Each request has two held-out subjects of different words. The judge looks at each where it sees a subject
inside the mask that this one had in the full method, and says which of the 20 of its word it is, and whether
it looks like its own reference rather than like one of its word with the other's colours and pattern: half of
them by chance. Without masks a subject may lie elsewhere, so own look is also told of all that the judge sees
of subjects, each part counted to the nearer of those masks. Real scenes tell what the judge can see, with the
exact masks and with masks of a quarter of the image, as wide as those of the method. In brackets is the
bootstrap 95 % interval over requests.
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

APART = 5  # places between the two words of a request


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two held-out subjects of different words in one place."""

    words: tuple[str, str]
    number: int
    background: str
    seed: int

    def job(self, subjects: bool = True, masked: bool = True) -> Request:
        mask = None if masked else np.ones((1, 1), np.float32)
        given = tuple(Subject(references(word)[self.number].image, word, mask=mask) for word in self.words)
        return Request(prompt(self.words, self.background), given if subjects else (), self.seed)

    def real_scene(self) -> Scene:
        return render_scene(self.background, [self.identity(k) for k in range(2)], self.seed, SIZE)

    def identity(self, which: int) -> Identity:
        return identities(self.words[which])[self.number]

    def exchanged(self, which: int) -> Scene:
        """A photo of one of the word that has the other's colours and pattern."""
        other = self.identity(1 - which)
        seeds = range(10 * self.number + 9, 10**7, 10)  # of held-out ones too
        alike = (Identity(self.words[which], seed) for seed in seeds)
        wanted = (other.colours, other.pattern)
        return render_reference(next(i for i in alike if (i.colours, i.pattern) == wanted), self.number)


def main() -> None:
    args = parse(__doc__, 52, plots=False)
    pairs = [_pair(i) for i in range(args.requests)]
    judge, generator = Judge.load(), Generator(rc.load(args.model), args.batch)
    options = generator.pipe.defaults
    full, masks = generator([pair.request() for pair in pairs], options)
    masks = np.stack([repeat_pixels(masks[:, k] > 0) for k in range(2)], axis=1)
    no_mask, _ = generator([pair.request(masked=False) for pair in pairs], options)
    plain, _ = generator([pair.request(subjects=False) for pair in pairs], options)
    scenes = [pair.real_scene() for pair in pairs]
    real, exact = (np.stack([getattr(scene, name) for scene in scenes]) for name in ("image", "masks"))

    candidates = _candidates(judge, pairs)
    looked_at = {
        "text only": (plain, masks),
        "visual tokens, no mask": (no_mask, masks),
        "full": (full, masks),
        "real scenes, exact masks": (real, exact),
        "real scenes, wide masks": (real, np.stack([*map(widened, exact)])),
    }
    rows = {name: verdict(judge, *seen, candidates) for name, seen in looked_at.items()}
    whole = {
        name: verdict(judge, images, np.stack([*map(nearer, where)]), candidates)
        for name, (images, where) in looked_at.items()
    }
    for found in (rows, whole):
        found["full less no mask"] = found["full"] - found["visual tokens, no mask"]
    print(f"{'':26}{'identity top-1':>24}{'own look':>24}{'own look, nearer mask':>24}")
    for name, (first, own) in rows.items():
        print(f"{name:26}{cell(first):>24}{cell(own):>24}{cell(whole[name][1]):>24}")


def _pair(i: int) -> Pair:
    words = (WORDS[i % len(WORDS)], WORDS[(i + APART) % len(WORDS)])
    return Pair(words, i % IDENTITIES, BACKGROUNDS[i % len(BACKGROUNDS)], seed=i)


def widened(masks: np.ndarray) -> np.ndarray:
    """Two exact masks (2, H, W) grown to a quarter of the image each, without what is nearer to the other."""
    distance = np.stack([scipy.ndimage.distance_transform_edt(~mask) for mask in masks])
    return nearer(masks) & (distance <= np.quantile(distance, 0.25, axis=(1, 2), keepdims=True))


def nearer(masks: np.ndarray) -> np.ndarray:
    """All pixels, parted between two masks (2, H, W) by which is nearer."""
    distance = np.stack([scipy.ndimage.distance_transform_edt(~mask) for mask in masks])
    return distance <= distance[::-1]


def verdict(
    judge: Judge, images: np.ndarray, masks: np.ndarray, candidates: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """(2, n): the share of a request's two subjects that are the right one of 20, and that look like it.

    Args:
      judge: who says so.
      images: uint8 (n, H, W, 3).
      masks: bool (n, 2, H, W), where each subject is at most.
      candidates: directions (2, n, 20, C) and (2, n, 2, C), the right one first.
    """
    regions = judge.look(images).regions
    seen = np.stack([judge.directions(images, masks[:, k] & regions) for k in range(2)])
    found = [[rank(seen[k], of_subject[k]) == 0 for k in range(2)] for of_subject in candidates]
    return np.mean(found, axis=1)


def _candidates(judge: Judge, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """Directions (2, n, 20, C) of each word, right one first; (2, n, 2, C) of it and the exchanged one."""
    of_word = {word: _directions(judge, references(word)) for word in WORDS}
    all_of_word = np.stack(
        [[np.roll(of_word[pair.words[k]], -pair.number, axis=0) for pair in pairs] for k in range(2)]
    )
    exchanged = np.stack([_directions(judge, [pair.exchanged(k) for pair in pairs]) for k in range(2)])
    return all_of_word, np.stack([all_of_word[:, :, 0], exchanged], axis=2)


def _directions(judge: Judge, photos: Sequence[Scene]) -> np.ndarray:
    return judge.directions(
        np.stack([photo.image for photo in photos]), np.stack([photo.masks[0] for photo in photos])
    )


if __name__ == "__main__":
    run_command(main)
