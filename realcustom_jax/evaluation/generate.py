"""Many requests through one model, in batches of one size."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from realcustom_jax import pipeline
from realcustom_jax.generate import latent_size, make_conditioning, request_keys
from realcustom_jax.inputs.subjects import Subject
from realcustom_jax.options import SamplingOptions
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.programs import images_of, latents_and_masks


@dataclasses.dataclass(frozen=True)
class Job:
    """One image to make."""

    prompt: str
    subjects: tuple[Subject, ...]
    seed: int
    negative_prompt: str = ""


@dataclasses.dataclass(frozen=True)
class Generator:
    """A model, and how many images each device of its mesh makes at once."""

    pipe: Pipeline
    per_device: int

    @classmethod
    def load(cls, path: str | Path, per_device: int, **options: Any) -> "Generator":
        """A model on the devices of this process; `options` go to `pipeline.load`."""
        return cls(pipeline.load(path, **options), per_device)

    @classmethod
    def of(cls, pipe: Pipeline, per_device: int, devices: Sequence[Any] | None = None) -> "Generator":
        """Of a pipeline that is loaded already."""
        mesh = _mesh(devices)
        return cls(pipe.on_mesh(mesh), per_device)

    @property
    def batch(self) -> int:
        return self.per_device * self.pipe.mesh.size

    def __call__(
        self,
        jobs: Sequence[Job],
        options: SamplingOptions,
        progress: Callable[[int], Any] = lambda count: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Make all images.

        Args:
          jobs: with as many subjects each.
          options: of all.
          progress: called with the number of images made since the last call.

        Returns:
          images uint8 (n, H, W, 3), and the masks of the last step (n, R, h, w).

        Raises:
          UserError: as `sample`.
        """
        images, masks = [], []
        for start in range(0, len(jobs), self.batch):
            chunk = list(jobs[start : start + self.batch])
            # An image depends on its own request alone, so the last batch may be filled up with any.
            made = self._batch(chunk + chunk[-1:] * (self.batch - len(chunk)), options)
            images.append(np.asarray(made[0])[: len(chunk)])
            masks.append(np.asarray(made[1])[: len(chunk)])
            progress(len(chunk))
        return np.concatenate(images), np.concatenate(masks)

    def _batch(self, jobs: Sequence[Job], options: SamplingOptions) -> tuple[np.ndarray, Array]:
        """uint8 images (B, H, W, 3) and the last masks (B, R, h, w)."""
        pipe = self.pipe
        config = options.sampler_config(*latent_size(pipe.models, options.height, options.width))
        prompts, subjects = [job.prompt for job in jobs], [job.subjects for job in jobs]
        negatives = [job.negative_prompt for job in jobs]
        conditioning = make_conditioning(pipe, prompts, subjects, negatives, options)
        keys = request_keys([job.seed for job in jobs])
        latents, masks = latents_and_masks(pipe, conditioning, keys, config)
        return images_of(pipe, latents), masks[:, -1]


def _mesh(devices: Sequence[Any] | None) -> Mesh:
    return Mesh(np.asarray(jax.local_devices() if devices is None else devices), ("data",))
