"""Many requests through one model: batches of one size, sharded over the devices of this host."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from realcustom_jax import pipeline
from realcustom_jax.diffusion.sampler import Conditioning, sample_latents
from realcustom_jax.diffusion.sampler_config import SamplerConfig
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.models.family import Models
from realcustom_jax.options import SamplingOptions
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.sampling import decode, latent_size, make_conditioning, request_keys
from realcustom_jax.subjects import Subject


@dataclasses.dataclass(frozen=True)
class Job:
    """One image to make."""

    prompt: str
    subjects: tuple[Subject, ...]
    seed: int


@dataclasses.dataclass(frozen=True)
class Generator:
    """A model, copied to every device that takes part, and how many images each makes at once.

    Attributes:
      pipe: with the UNet and VAE on all devices of the mesh.
      mesh: one axis, "data".
      per_device: images that a device makes at once.
    """

    pipe: Pipeline
    mesh: Mesh
    per_device: int

    @classmethod
    def load(cls, path: str | Path, per_device: int, devices: Sequence[Any] | None = None) -> "Generator":
        """As `pipeline.load`, each tensor straight to all devices; default those of this host."""
        mesh = _mesh(devices)
        everywhere = NamedSharding(mesh, P())

        def place(name: str, shape: tuple[int, ...]) -> NamedSharding | None:
            return everywhere if name.startswith(_SPREAD) else None

        return cls(pipeline.load(path, sharding=place), mesh, per_device)

    @classmethod
    def of(cls, pipe: Pipeline, per_device: int, devices: Sequence[Any] | None = None) -> "Generator":
        """Of a pipeline that is loaded already."""
        mesh = _mesh(devices)
        spread = {name: pipe.params[name] for name in ("unet", "vae")}
        params = {**pipe.params, **jax.device_put(spread, NamedSharding(mesh, P()))}
        return cls(pipe.replace(params=params).with_flash(), mesh, per_device)

    @property
    def batch(self) -> int:
        return self.per_device * self.mesh.size

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

    def _batch(self, jobs: Sequence[Job], options: SamplingOptions) -> tuple[Array, Array]:
        pipe = self.pipe
        config = options.sampler_config(*latent_size(pipe.models, options.height, options.width))
        prompts, subjects = [job.prompt for job in jobs], [job.subjects for job in jobs]
        conditioning = make_conditioning(pipe, prompts, subjects, [""] * len(jobs), options)
        keys = request_keys([job.seed for job in jobs])
        rows = NamedSharding(self.mesh, P("data"))
        conditioning, keys = jax.device_put((conditioning, keys), rows)
        params = {name: pipe.params[name] for name in ("unet", "vae")}
        return _make(params, conditioning, keys, pipe.models, pipe.schedule, config)


# Components that run on all devices; the encoders run once a batch, on the first.
_SPREAD = ("unet/", "vae/")


def _mesh(devices: Sequence[Any] | None) -> Mesh:
    return Mesh(np.asarray(jax.local_devices() if devices is None else devices), ("data",))


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _make(
    params: Any,
    conditioning: Conditioning,
    keys: Array,
    models: Models,
    schedule: ScheduleConfig,
    config: SamplerConfig,
) -> tuple[Array, Array]:
    """uint8 images (B, H, W, 3) and the last masks (B, R, h, w)."""
    latents, masks = sample_latents(
        params["unet"], conditioning, keys, unet=models.unet, schedule=schedule, config=config
    )
    return decode(models, params["vae"], latents), masks[:, -1]
