"""Requests to images: encode, denoise, decode. `sample` is the public call."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from realcustom_jax.common.compile_cache import use_compilation_cache
from realcustom_jax.common.devices import Devices, memory_errors
from realcustom_jax.common.progress import Progress, check_progress
from realcustom_jax.diffusion.conditioning import Conditioning
from realcustom_jax.diffusion.denoiser import Contexts, Denoiser
from realcustom_jax.diffusion.sampler import Run, advance, begin
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.diffusion.solvers import make_table
from realcustom_jax.inputs.checks import check_fits, check_scope, check_used
from realcustom_jax.inputs.encode import choose_words, encode_requests
from realcustom_jax.inputs.prompts import warn_of_unknown_words
from realcustom_jax.inputs.requests import SEED, Request, requests_of
from realcustom_jax.inputs.sizes import latent_size
from realcustom_jax.inputs.subjects import Subject
from realcustom_jax.inputs.target_words import phrases_of
from realcustom_jax.models.family import Models
from realcustom_jax.options import SamplerConfig, SamplingOptions, documented
from realcustom_jax.outputs.decode import check_finite, finite_rows, images_of
from realcustom_jax.outputs.records import Record, with_files_read
from realcustom_jax.outputs.samples import Samples
from realcustom_jax.outputs.watching import Preview, Watch, check_preview
from realcustom_jax.pipeline import Pipeline

# (steps done, the z_0 predicted last, the images of it) → the step at which to call it again. The second and
# third are functions, called only where they are wanted; an offloaded UNet is read again after the third.
StepWatch = Callable[[int, Callable[[], Array], Callable[[], np.ndarray]], int]


@documented
def sample(
    pipe: Pipeline,
    prompt: str | Sequence[str],
    subjects: Sequence[Subject] | Sequence[Sequence[Subject]] | None = None,
    seed: int | Sequence[int] | None = None,
    *,
    negative_prompt: str | Sequence[str] | None = None,
    progress: bool | None = None,
    preview: Preview | None = None,
    every: int | None = None,
    **options: Any,
) -> Samples:
    """Images of the given subjects, as the prompts say.

    Args:
      pipe: from `load`.
      prompt: one, or a list: one request an image. One prompt with a list of seeds makes an image of each.
      subjects: of the prompt, or with a list of prompts a list of lists; None for text only.
      seed: from 0 to 2**64 − 1, one for each request or one for all (0); an image depends on its own request
        alone.
      negative_prompt: one for all, or one each; default none.
      progress: whether to report on stderr what takes long: compiling, step k of n. Default yes.
      preview: function of the number of steps done and of the images as they look then, uint8
        (B, H, W, 3). It changes nothing of the result. An offloaded pipeline puts the UNet away for
        each, to make room for the VAE, and reads it again: about ten seconds for SDXL.
      every: steps between previews (5).
      **options: fields of `SamplingOptions`. The defaults are the model's (`pipe.defaults`); in brackets
        stand SD1.5's, and SDXL's where it differs.

        {options}

    Raises:
      UserError: when an input is wrong: a target word that is not in its prompt or is cut off by the
        tokenizer's limit, an unreadable image, a size that the UNet can't halve, an unknown option; or when
        the result is not finite.
    """
    use_compilation_cache()
    requests = requests_of(prompt, subjects, negative_prompt, seed)
    shown = check_progress(progress)
    every = check_preview(preview, every)
    chosen, config = plan(pipe.models, pipe.schedule, pipe.defaults, options, requests)
    warn_of_unknown_words(pipe.tokenizers, [request.prompt for request in requests])
    with Progress(shown) as report, memory_errors():
        report.stage("encoding prompts and reference images")
        requests = choose_words(pipe, requests)
        conditioning = encode_requests(pipe, requests, chosen, config)
        records = _records(pipe, requests, chosen)
        watch = Watch(config.steps, report, preview, every)
        latents, masks = denoise(pipe, conditioning, request_keys([r.seed for r in requests]), config, watch)
        check_finite(finite_rows(latents))
        report.stage("decoding")
        images = images_of(pipe, latents)
    words = [[phrases_of(r.prompt, subject.words) for subject in r.subjects] for r in requests]
    return Samples(images, np.asarray(masks), words, records)


@dataclasses.dataclass(frozen=True)
class Generator:
    """Makes the images of many requests, in batches of one size.

    Attributes:
      pipe: the model.
      per_device: images that each device of the model's mesh makes at once.
    """

    pipe: Pipeline
    per_device: int

    @property
    def batch(self) -> int:
        return self.per_device * (1 if self.pipe.mesh is None else self.pipe.mesh.size)

    def __call__(
        self,
        requests: Sequence[Request],
        options: SamplingOptions,
        progress: Callable[[int], Any] = lambda count: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Make all images.

        Args:
          requests: with as many subjects each.
          options: of all.
          progress: called with the number of images made since the last call.

        Returns:
          images uint8 (n, H, W, 3), and the masks of the last step (n, R, h, w).

        Raises:
          UserError: as `sample`.
        """
        pipe = self.pipe
        config = options.sampler_config(*latent_size(pipe.models, options.height, options.width))
        images, masks = [], []
        for start in range(0, len(requests), self.batch):
            own = list(requests[start : start + self.batch])
            # An image depends on its own request alone, so the last batch may be filled up with any.
            filled = choose_words(pipe, own + own[-1:] * (self.batch - len(own)))
            conditioning = encode_requests(pipe, filled, options, config)
            latents, history = denoise(pipe, conditioning, request_keys([r.seed for r in filled]), config)
            images.append(images_of(pipe, latents)[: len(own)])
            masks.append(np.asarray(history[: len(own), -1]))
            progress(len(own))
        return np.concatenate(images), np.concatenate(masks)


def plan(
    models: Models,
    schedule: ScheduleConfig,
    defaults: SamplingOptions,
    changes: Mapping[str, Any],
    requests: Sequence[Request],
) -> tuple[SamplingOptions, SamplerConfig]:
    """The options of a batch of requests and the sampler's static part, checked without parameters.

    Raises:
      UserError: for options that are wrong alone, beside each other, or for the model.
    """
    options = defaults.changed(changes)
    check_used(changes, options)
    for name in SamplingOptions.scalars():
        options.scalar(name, len(requests))
    config = options.sampler_config(*latent_size(models, options.height, options.width))
    make_table(config.solver, config.steps, schedule, config.spacing, config.eta)
    check_fits(models, len(requests), config)
    check_scope(options, config, [request.subjects for request in requests])
    return options, config


def request_keys(seeds: Sequence[int]) -> Array:
    """Random keys (B,), a different one for every seed from 0 to 2**64 − 1.

    `jax.random.key` keeps 32 bits of a seed where 64-bit types are off, and follows the configured generator;
    these keys are the same everywhere, and below 2**32 those that it makes by default.

    Raises:
      UserError: for a seed that is no such number.
    """
    halves = [divmod(SEED.check("seed", seed), 2**32) for seed in seeds]
    return jax.random.wrap_key_data(jnp.asarray(halves, jnp.uint32), impl="threefry2x32")


def denoise(
    pipe: Pipeline,
    conditioning: Conditioning,
    keys: Array,
    config: SamplerConfig,
    watch: StepWatch | None = None,
) -> tuple[Array, Array]:
    """The denoising loop: z_0 (B, h, w, C) and the masks of all steps (B, steps, R, h', w').

    Args:
      pipe, conditioning, keys, config: see `sample_latents`.
      watch: called between steps. The same compiled program runs with and without it.
    """
    static = (pipe.models, pipe.schedule, config)
    devices = Devices.of(pipe.mesh, {"unet": pipe.params["unet"]}, len(keys))
    rows = devices.place((conditioning, keys))
    contexts, run = devices.run(begin_rows, static, rows)

    def latents() -> Array:
        return devices.collect(run.state.z0)

    def images() -> np.ndarray:
        nonlocal devices
        z0 = jax.block_until_ready(latents())
        if pipe.offloaded:  # the UNet makes room for the VAE
            devices = dataclasses.replace(devices, params=None)
        return images_of(pipe, z0)

    done, stop = 0, config.steps if watch is None else watch(0, latents, images)
    while done < config.steps:
        if devices.params is None:
            devices = Devices.of(pipe.mesh, {"unet": pipe.params["unet"]}, len(keys))
        span = devices.place(np.full((len(keys), 2), [done, stop], np.int32))
        run = devices.run(advance_rows, static, (*rows, contexts, run, span))
        done = stop
        if watch is not None:
            stop = watch(done, latents, images)
    out = devices.collect((run.state.z0, run.history))
    return jax.block_until_ready(out) if pipe.offloaded else out


def begin_rows(static: Any, params: Any, rows: tuple[Conditioning, Array]) -> tuple[Contexts, Run]:
    (models, schedule, config), (conditioning, keys) = static, rows
    static = {"unet": models.unet, "schedule": schedule, "config": config}
    denoiser = Denoiser.encode(params["unet"], conditioning, keys, **static)
    return denoiser.contexts, begin(denoiser)


def advance_rows(static: Any, params: Any, rows: tuple[Conditioning, Array, Contexts, Run, Array]) -> Run:
    (models, schedule, config), (conditioning, keys, contexts, run, span) = static, rows
    denoiser = Denoiser(models.unet, schedule, config, params["unet"], conditioning, contexts, keys)
    return advance(denoiser, run, (span[0, 0], span[0, 1]))  # every row's span is the same


def _records(pipe: Pipeline, requests: Sequence[Request], options: SamplingOptions) -> tuple[Record, ...]:
    """What makes each image again."""
    return tuple(
        Record(
            request.prompt, request.negative_prompt, request.seed,
            tuple(map(with_files_read, request.subjects)), options.of_request(i), dict(pipe.source),
        )
        for i, request in enumerate(requests)
    )  # fmt: skip
