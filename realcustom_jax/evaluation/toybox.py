"""The toybox benchmark: subjects in all places, measured against what the world's drawer knows."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from realcustom_jax.evaluation import metrics
from realcustom_jax.evaluation.judge import SIZE, Judge, Verdict
from realcustom_jax.generate import Generator
from realcustom_jax.inputs.encoder_pair import EncoderPair
from realcustom_jax.inputs.preprocess import segment
from realcustom_jax.inputs.requests import Request
from realcustom_jax.inputs.subjects import Subject
from realcustom_jax.options import SamplingOptions
from realcustom_jax.toybox import (
    BACKGROUNDS,
    WORDS,
    Identity,
    Scene,
    prompt,
    random_identity,
    render_reference,
    render_scene,
)

IDENTITIES = 20  # of each word, among which the judge must find the one that was asked for

# What `evaluate --json` prints, under these names.
CONTRACT = (
    "identity_top1",
    "background_top1",
    "word_top1",
    "mask_iou",
    "leakage",
    "clip_t",
    "clip_i",
)
MEASURES = (*CONTRACT, "clip_i_segmented")
Results = dict[str, np.ndarray | None]


@dataclasses.dataclass(frozen=True)
class Case:
    """One image of the benchmark: which subject, where, from which noise.

    Attributes:
      word: of the subject.
      number: of its identity, among the 20 of the word.
      background: the place.
      seed: of the noise.
      held_out: whether the identities are kept from training, as results need, or not, as choices need.
    """

    word: str
    number: int
    background: str
    seed: int
    held_out: bool = True

    @property
    def prompt(self) -> str:
        return prompt([self.word], self.background)


def make_cases(count: int, held_out: bool = True) -> list[Case]:
    """All words and all backgrounds in turn: 208 requests have each pair of them once, 320 each identity.

    Those that are not held out have seeds of their own too, so nothing chosen by them has seen the results'.
    """
    first = 0 if held_out else 5000  # more than there ever are requests
    return [
        Case(WORDS[i % 16], i // 16 % IDENTITIES, BACKGROUNDS[i % len(BACKGROUNDS)], first + i, held_out)
        for i in range(count)
    ]


@functools.cache
def identities(word: str, held_out: bool = True) -> tuple[Identity, ...]:
    """20 identities of a word."""
    stream = 20 if held_out else 77  # any two that differ; others would be other subjects
    rng = np.random.default_rng([WORDS.index(word), stream])
    return tuple(random_identity(rng, word, held_out=held_out) for _ in range(IDENTITIES))


@functools.cache
def references(word: str, held_out: bool = True) -> tuple[Scene, ...]:
    """Their reference photos."""
    return tuple(render_reference(identity, seed) for seed, identity in enumerate(identities(word, held_out)))


def identity(case: Case) -> Identity:
    """Who is asked for."""
    return identities(case.word, case.held_out)[case.number]


def reference(case: Case) -> Scene:
    return references(case.word, case.held_out)[case.number]


def real_scene(case: Case) -> Scene:
    """What was asked for, drawn: the judge's verdict on these is the ceiling of every measure."""
    return render_scene(case.background, [identity(case)], case.seed, SIZE)


def another_subject(case: Case) -> Scene:
    """The real scene of a request, but of the next identity of the word."""
    other = identities(case.word, case.held_out)[(case.number + 1) % IDENTITIES]
    return render_scene(case.background, [other], case.seed, SIZE)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A way to make the images.

    Attributes:
      options: changes of the model's sampling options.
      subject: whether the subject is given, or the text alone.
      masked: whether it acts only where its word is, or everywhere.
      negative_prompt: of all images.
    """

    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    subject: bool = True
    masked: bool = True
    negative_prompt: str = ""

    def request(self, case: Case) -> Request:
        # A mask of ones that stands instead of the guided one lets the subject act everywhere.
        mask = None if self.masked else np.ones((1, 1), np.float32)
        subject = Subject(reference(case).image, case.word, mask=mask)
        subjects = (subject,) if self.subject else ()
        return Request(case.prompt, subjects, case.seed, self.negative_prompt)


SETTINGS = {
    "text_only": Setting(subject=False),
    "no_mask": Setting(masked=False),
    "full": Setting(),
}


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Requests, the judge, and the model's own CLIP pair where it has one."""

    cases: Sequence[Case]
    judge: Judge
    pair: EncoderPair | None

    def make(
        self, generator: Generator, setting: Setting, progress: Callable[[int], Any] = lambda count: None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Images of a setting, uint8 (n, 64, 64, 3), and its last masks, bool (n, 64, 64), if it has any."""
        options: SamplingOptions = generator.pipe.defaults.changed(setting.options)
        requests = [setting.request(case) for case in self.cases]
        images, masks = generator(requests, options, progress)
        return images, enlarge(masks[:, 0] > 0) if setting.subject else None

    def measure(
        self, images: np.ndarray, masks: np.ndarray | None = None, plain: np.ndarray | None = None
    ) -> Results:
        """{measure: (n,)} of images of the requests; None for what cannot be said of them.

        Args:
          images: uint8 (n, 64, 64, 3).
          masks: bool (n, 64, 64), where the subject was allowed to act.
          plain: the text-only images of the same seeds.
        """
        verdict = self.judge.look(images)
        found = {
            "identity_top1": self._ranks(verdict) == 0,
            "background_top1": np.equal(verdict.backgrounds, [r.background for r in self.cases]),
            "word_top1": np.equal(verdict.words, [r.word for r in self.cases]),
            "mask_iou": None if masks is None else metrics.iou(masks, verdict.regions),
            "leakage": None,
            **self._clip(images, verdict.regions),
        }
        if plain is not None:
            inside = verdict.regions | self.judge.look(plain).regions
            found["leakage"] = metrics.leakage(images, plain, inside)
        return {name: None if found[name] is None else found[name].astype(float) for name in MEASURES}

    def ceiling(self) -> Results:
        """What the judge says of real scenes.

        `mask_iou` is that of its region with the exact one. `leakage` is against the same scenes with another
        subject of the word: what even an image has in which no more than the subject changes.
        """
        scenes = [real_scene(case) for case in self.cases]
        return self.measure(
            np.stack([scene.image for scene in scenes]),
            np.stack([scene.masks[0] for scene in scenes]),
            np.stack([another_subject(case).image for case in self.cases]),
        )

    def ranks(self, images: np.ndarray) -> np.ndarray:
        """(n,) ranks of the true subjects among the 20 of their word, 0 the best, of images of the requests.

        Args:
          images: uint8 (n, 64, 64, 3).
        """
        return self._ranks(self.judge.look(images))

    def _ranks(self, verdict: Verdict) -> np.ndarray:
        return metrics.rank(verdict.directions, self.candidates())

    def candidates(self) -> np.ndarray:
        """Directions (n, 20, C) of the identities of each request's word, the right one first."""
        sets = sorted({(case.word, case.held_out) for case in self.cases})
        photos = [photo for of_set in sets for photo in references(*of_set)]
        directions = self.judge.directions(
            np.stack([photo.image for photo in photos]), np.stack([photo.masks[0] for photo in photos])
        )
        by_set = dict(zip(sets, directions.reshape(len(sets), IDENTITIES, -1), strict=True))
        return np.stack([np.roll(by_set[r.word, r.held_out], -r.number, axis=0) for r in self.cases])

    def _clip(self, images: np.ndarray, regions: np.ndarray) -> Results:
        """CLIP-T with the whole prompt, CLIP-I with the reference, whole and with the subject alone."""
        if self.pair is None:
            return dict.fromkeys(("clip_t", "clip_i", "clip_i_segmented"))
        photos = [reference(case) for case in self.cases]
        see = self.pair.image.directions
        texts = self.pair.text.directions([case.prompt for case in self.cases])
        seen = see(images)
        alone = see([segment(image, region) for image, region in zip(images, regions, strict=True)])
        photos_alone = see([segment(photo.image, photo.masks[0]) for photo in photos])
        return {
            "clip_t": metrics.clip_t(seen, texts),
            # One photo each, so that the mean over all references is the similarity itself.
            "clip_i": (seen * see([photo.image for photo in photos])).sum(-1),
            "clip_i_segmented": (alone * photos_alone).sum(-1),
        }


def enlarge(masks: np.ndarray) -> np.ndarray:
    """Masks (n, h, w) at the size of the images, each pixel repeated."""
    return masks.repeat(SIZE // masks.shape[1], axis=1).repeat(SIZE // masks.shape[2], axis=2)


def means(results: Results, names: Sequence[str] = MEASURES) -> dict[str, float | None]:
    """The mean of each measure, None where there is none."""
    return {name: None if results[name] is None else float(np.mean(results[name])) for name in names}
