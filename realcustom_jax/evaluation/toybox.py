"""The toybox benchmark: subjects on all backgrounds, measured against exact ground truth."""

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

IDENTITIES = 20  # candidates of each word, among which the judge must find the right one

# The measures that `evaluate --json` prints, with these names.
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
Results = dict[str, np.ndarray | None]  # {measure: a value for each case, or None}


@dataclasses.dataclass(frozen=True)
class Case:
    """One image of the benchmark.

    Attributes:
      word: target word.
      number: number of the identity, among the 20 of the word.
      background: the background in the prompt.
      seed: seed of the noise.
      held_out: True for identities that no training has seen, for reported results; False for training
        identities, for choosing options.
    """

    word: str
    number: int
    background: str
    seed: int
    held_out: bool = True

    @property
    def prompt(self) -> str:
        """The text prompt."""
        return prompt([self.word], self.background)


def make_cases(count: int, held_out: bool = True) -> list[Case]:
    """Make cases that use all words and backgrounds in turn.

    208 cases (16 words × 13 backgrounds) have each pair once; 320 cases (16 × 20) have each identity once.
    """
    # Training identities get other seeds, above any number of requests: options chosen with them have then
    # never seen the noise of the reported results.
    first = 0 if held_out else 5000
    return [
        Case(WORDS[i % 16], i // 16 % IDENTITIES, BACKGROUNDS[i % len(BACKGROUNDS)], first + i, held_out)
        for i in range(count)
    ]


# Cached, because every setting of a report draws the same subjects.
@functools.cache
def identities(word: str, held_out: bool = True) -> tuple[Identity, ...]:
    """The 20 identities of a word."""
    stream = 20 if held_out else 77  # fixed: other numbers would give other subjects, and other results
    rng = np.random.default_rng([WORDS.index(word), stream])
    return tuple(random_identity(rng, word, held_out=held_out) for _ in range(IDENTITIES))


@functools.cache
def references(word: str, held_out: bool = True) -> tuple[Scene, ...]:
    """Reference photos of `identities`."""
    return tuple(render_reference(identity, seed) for seed, identity in enumerate(identities(word, held_out)))


def identity(case: Case) -> Identity:
    """The subject of a case."""
    return identities(case.word, case.held_out)[case.number]


def reference(case: Case) -> Scene:
    """The reference photo of a case."""
    return references(case.word, case.held_out)[case.number]


def real_scene(case: Case) -> Scene:
    """The drawn scene of a case. The judge's results on these scenes are the ceiling of every measure."""
    return render_scene(case.background, [identity(case)], case.seed, SIZE)


def another_subject(case: Case) -> Scene:
    """The drawn scene of a case with the next identity of the word."""
    other = identities(case.word, case.held_out)[(case.number + 1) % IDENTITIES]
    return render_scene(case.background, [other], case.seed, SIZE)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to make the images.

    Attributes:
      options: changes of the model's sampling options.
      subject: whether the model gets the subject, or only the text.
      masked: whether the influence scope limits the subject, or it acts everywhere.
      negative_prompt: negative prompt of all images.
    """

    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    subject: bool = True
    masked: bool = True
    negative_prompt: str = ""

    def request(self, case: Case) -> Request:
        """The request for a case."""
        # A user's mask replaces the guided one. A mask of ones lets the subject act everywhere.
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
    """The benchmark: its cases, the judge, and the model's own CLIP pair, or None."""

    cases: Sequence[Case]
    judge: Judge
    pair: EncoderPair | None

    def make(
        self, generator: Generator, setting: Setting, progress: Callable[[int], Any] = lambda count: None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Make images, uint8 (n, 64, 64, 3), and their last masks, bool (n, 64, 64), or None."""
        options: SamplingOptions = generator.pipe.defaults.changed(setting.options)
        requests = [setting.request(case) for case in self.cases]
        images, masks = generator(requests, options, progress)
        return images, repeat_pixels(masks[:, 0] > 0) if setting.subject else None

    def measure(
        self, images: np.ndarray, masks: np.ndarray | None = None, plain: np.ndarray | None = None
    ) -> Results:
        """Measure images of the cases: {measure: (n,)}, None for measures that need an absent argument.

        Args:
          images: uint8 (n, 64, 64, 3).
          masks: bool (n, 64, 64), the influence scope.
          plain: text-only images with the same seeds.
        """
        verdict = self.judge.look(images)
        results = {
            "identity_top1": self._ranks(verdict) == 0,
            "background_top1": np.equal(verdict.backgrounds, [r.background for r in self.cases]),
            "word_top1": np.equal(verdict.words, [r.word for r in self.cases]),
            "mask_iou": None if masks is None else metrics.iou(masks, verdict.regions),
            "leakage": None,
            **self._clip(images, verdict.regions),
        }
        if plain is not None:
            # The text-only image has another subject, at another position: outside means outside of both.
            inside = verdict.regions | self.judge.look(plain).regions
            results["leakage"] = metrics.leakage(images, plain, inside)
        return {name: None if results[name] is None else results[name].astype(float) for name in MEASURES}

    def ceiling(self) -> Results:
        """Measure drawn scenes, which limits what any image can reach.

        `mask_iou` compares the judge's region with the exact one. `leakage` compares with the same scenes
        with another subject of the word: even an image in which only the subject changes has this much.
        """
        scenes = [real_scene(case) for case in self.cases]
        return self.measure(
            np.stack([scene.image for scene in scenes]),
            np.stack([scene.masks[0] for scene in scenes]),
            np.stack([another_subject(case).image for case in self.cases]),
        )

    def ranks(self, images: np.ndarray) -> np.ndarray:
        """Ranks (n,) of the true subjects among the 20 of their word; 0 is the best.

        Args:
          images: uint8 (n, 64, 64, 3) of the cases.
        """
        return self._ranks(self.judge.look(images))

    def _ranks(self, verdict: Verdict) -> np.ndarray:
        """`ranks` from the judge's verdict."""
        return metrics.rank(verdict.directions, self.candidates())

    def candidates(self) -> np.ndarray:
        """Directions (n, 20, C) of the identities of each case's word, the right one first."""
        # Each word's photos are judged once, whatever the number of cases.
        sets = sorted({(case.word, case.held_out) for case in self.cases})
        photos = [photo for identity_set in sets for photo in references(*identity_set)]
        directions = self.judge.directions(
            np.stack([photo.image for photo in photos]), np.stack([photo.masks[0] for photo in photos])
        )
        by_set = dict(zip(sets, directions.reshape(len(sets), IDENTITIES, -1), strict=True))
        return np.stack([np.roll(by_set[r.word, r.held_out], -r.number, axis=0) for r in self.cases])

    def _clip(self, images: np.ndarray, regions: np.ndarray) -> Results:
        """CLIP-T with the whole prompt; CLIP-I with the reference, for whole images and the subject alone."""
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
            # There is one photo per subject, so CLIP-I's mean over photos is this similarity.
            "clip_i": (seen * see([photo.image for photo in photos])).sum(-1),
            "clip_i_segmented": (alone * photos_alone).sum(-1),
        }


def repeat_pixels(masks: np.ndarray) -> np.ndarray:
    """Enlarge masks (n, h, w) to the size of the images by repeating pixels."""
    return masks.repeat(SIZE // masks.shape[1], axis=1).repeat(SIZE // masks.shape[2], axis=2)


def means(results: Results, names: Sequence[str] = MEASURES) -> dict[str, float | None]:
    """Mean of each measure; None without values."""
    chosen = {name: results[name] for name in names}
    return {name: None if values is None else float(np.mean(values)) for name, values in chosen.items()}
