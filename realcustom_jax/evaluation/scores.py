"""CLIP-T, CLIP-I, DINO-I and ImageReward of images, for whole images and for the subject alone."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from realcustom_jax.common.errors import UserError
from realcustom_jax.evaluation import metrics
from realcustom_jax.evaluation.dreambench_data import Case
from realcustom_jax.evaluation.reward import MODEL, image_reward
from realcustom_jax.inputs.encoder_pair import EncoderPair, ImageTower
from realcustom_jax.inputs.preprocess import segment
from realcustom_jax.inputs.transforms import load_image
from realcustom_jax.inputs.user_masks import load_mask

SEGMENTED = "_segmented"


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Computes the measures whose models are given.

    Attributes:
      clip: for CLIP-T and CLIP-I.
      dino: for DINO-I.
      reward: model of ImageReward.
      masks: folder of masks for the measures of the subject alone: SUBJECT/PHOTO.png for every photo and
        SUBJECT/NUMBER_SEED.png for every image.
      clip_name, dino_name: names of the models. They are stored with the scores, so that scores of different
        models are never mixed.
    """

    clip: EncoderPair | None = None
    dino: ImageTower | None = None
    reward: Any = None
    masks: Path | None = None
    clip_name: str = ""
    dino_name: str = ""

    @property
    def measures(self) -> list[str]:
        """Names of the measures that `score` computes."""
        by_tower = [name for name, tower in self._towers().items() if tower is not None]
        segmented = [name + SEGMENTED for name in by_tower] if self.masks else []
        clip_t, reward = ["clip_t"] * (self.clip is not None), ["image_reward"] * (self.reward is not None)
        return [*clip_t, *by_tower, *segmented, *reward]

    @property
    def sources(self) -> dict[str, str]:
        """{measure: name of its model, and of the masks}."""

        def source(measure: str) -> str:
            name = {"clip": self.clip_name, "dino": self.dino_name}.get(measure.split("_")[0], MODEL)
            return f"{name}, masks {self.masks}" if measure.endswith(SEGMENTED) else name

        return {measure: source(measure) for measure in self.measures}

    def score(self, cases: Sequence[Case], images: Sequence[np.ndarray]) -> list[dict[str, float]]:
        """{measure: value} of each image, uint8 (H, W, 3). All cases must have the same subject."""
        # The photos are the same for all cases, so each tower encodes them once.
        photos = [load_image(path) for path in cases[0].photos]
        prompts = [case.prompt for case in cases]
        values: dict[str, np.ndarray] = {}
        alone: tuple[list, list] | None = None
        if self.masks:
            photo_names = [f"{cases[0].subject}/{path.stem}" for path in cases[0].photos]
            case_names = [case.name for case in cases]
            alone = self._alone(self.masks, images, case_names), self._alone(self.masks, photos, photo_names)
        for name, tower in self._towers().items():
            if tower is None:
                continue
            seen = tower.directions(images)
            values[name] = metrics.image_similarity(seen, tower.directions(photos))
            if alone:
                values[name + SEGMENTED] = metrics.image_similarity(*map(tower.directions, alone))
            if name == "clip_i" and self.clip is not None:  # CLIP-T needs the same image vectors
                values["clip_t"] = metrics.clip_t(seen, self.clip.text.directions(prompts))
        if self.reward is not None:
            values["image_reward"] = image_reward(self.reward, prompts, images)
        return [{name: float(values[name][i]) for name in self.measures} for i in range(len(cases))]

    def _towers(self) -> dict[str, ImageTower | None]:
        """{measure: its image tower}."""
        return {"clip_i": self.clip.image if self.clip else None, "dino_i": self.dino}

    def _alone(self, masks: Path, images: Sequence[np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
        """Paint everything outside of the masks white; the masks are files in a folder."""
        paths = [masks / f"{name}.png" for name in names]
        return [segment(image, self._mask(path, image)) for image, path in zip(images, paths, strict=True)]

    def _mask(self, path: Path, image: np.ndarray) -> np.ndarray:
        """Read the mask of an image, bool (H, W)."""
        mask = load_mask(path) > 0.5
        if mask.shape != image.shape[:2]:
            raise UserError(f"the mask {path} has {mask.shape} pixels, but its image has {image.shape[:2]}")
        return mask
