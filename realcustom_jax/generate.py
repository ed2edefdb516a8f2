"""Turns requests into images: encode, denoise, decode. `sample` is the public function."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from realcustom_jax.common.compile_cache import use_compilation_cache
from realcustom_jax.common.devices import Devices, memory_errors
from realcustom_jax.common.progress import FunctionProgress, Progress, ProgressFunction, progress_of
from realcustom_jax.diffusion.conditioning import Conditioning
from realcustom_jax.diffusion.denoiser import Contexts, Denoiser
from realcustom_jax.diffusion.phases import Phase, phase_of
from realcustom_jax.diffusion.sampler import Narrowing, Run, advance, begin, narrowing
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.diffusion.solvers import make_table
from realcustom_jax.inputs.checks import check_fits, check_has_effect, check_scope
from realcustom_jax.inputs.encode import encode_requests, resolve_auto_words
from realcustom_jax.inputs.prompts import warn_of_unknown_words
from realcustom_jax.inputs.requests import SEED, Request, requests_of
from realcustom_jax.inputs.sizes import latent_size
from realcustom_jax.inputs.subjects import Subject
from realcustom_jax.inputs.target_words import phrases_of
from realcustom_jax.models.family import Models
from realcustom_jax.options import SamplerConfig, SamplingOptions, documented
from realcustom_jax.outputs.decode import check_finite, finite_rows, images_of
from realcustom_jax.outputs.fast_preview import linear_decoder
from realcustom_jax.outputs.records import Record, with_files_read
from realcustom_jax.outputs.samples import Samples
from realcustom_jax.outputs.watching import Pause, Preview, StepWatch, Watch, check_preview
from realcustom_jax.pipeline import Pipeline

# (model, conditioning, keys, config) → latents and masks, as `denoise`.
Loop = Callable[[Pipeline, Conditioning, Array, SamplerConfig], tuple[Array, Array]]


@documented
def sample(
    pipe: Pipeline,
    prompt: str | Sequence[str],
    subjects: Sequence[Subject] | Sequence[Sequence[Subject]] | None = None,
    seed: int | Sequence[int] | None = None,
    *,
    negative_prompt: str | Sequence[str] | None = None,
    progress: bool | ProgressFunction | None = None,
    preview: Preview | None = None,
    every: int | None = None,
    fast_preview: bool = False,
    **options: Any,
) -> Samples:
    """Sample images of the given subjects in the scenes of the prompts.

    Args:
      pipe: the result of `load`.
      prompt: a prompt, or a list of prompts. Each prompt makes an image; one prompt with a list of seeds
        makes an image per seed.
      subjects: the subjects of the prompt; for a list of prompts, a list of lists. None for text only.
      seed: from 0 to 2**64 − 1, one for all requests or one per request (0). An image depends only on its own
        request, not on the others of the batch.
      negative_prompt: one for all requests, or one per request; default none.
      progress: whether to report long work on stderr: compiling, step k of n. Default True. Or a function of
        (stage, done, total), called at the start of each stage with 0 and None, and after every denoising
        step with "sampling", the number of finished steps and of all steps. What it raises ends the work.
      preview: function of (step, images): the number of finished steps, and the images predicted then, uint8
        (B, H, W, 3). Previews do not change the result. An offloaded pipeline frees the UNet for each preview
        and loads it again, which takes about ten seconds for SDXL.
      every: steps between previews (5).
      fast_preview: whether previews are of the latents' size, uint8 (B, h, w, 3), and made by a linear map of
        the latents instead of the VAE. That takes microseconds, and an offloaded pipeline keeps its UNet. The
        map is fitted once for a pipeline, before the first step.
      **options: fields of `SamplingOptions`. The defaults are the model's (`pipe.defaults`). The brackets
        show the defaults of SD1.5, and of SDXL if they differ.

        {options}

    Returns:
      The images, with the masks and target words of their subjects.

    Raises:
      UserError: for a wrong input, such as a target word that is not in its prompt or is cut off by the
        tokenizer's limit, an unreadable image, a size that the UNet cannot halve, or an unknown option; and
        for a result that is not finite.
    """
    reporter = progress_of(progress)
    every = check_preview(preview, every, fast_preview)

    def watch(steps: int) -> Watch:
        fast = None
        if fast_preview:
            reporter.stage("preparing previews")
            fast = linear_decoder(pipe)
        return Watch(steps, reporter, preview, every, fast)

    return run_requests(pipe, requests_of(prompt, subjects, negative_prompt, seed), options, reporter, watch)


def run_requests(
    pipe: Pipeline,
    requests: Sequence[Request],
    changes: Mapping[str, Any],
    reporter: Progress | FunctionProgress,
    watch: Callable[[int], StepWatch],
) -> Samples:
    """`sample`, with any `StepWatch`.

    Args:
      pipe: the model.
      requests: the batch.
      changes: sampling options; they override the model's defaults.
      reporter: shows the stages.
      watch: makes the watch for a number of steps. It is called before any component is loaded.

    Raises:
      UserError: as `sample`.
    """
    use_compilation_cache()
    chosen, config = plan(pipe.models, pipe.schedule, pipe.defaults, changes, requests)
    warn_of_unknown_words(pipe.tokenizers, [request.prompt for request in requests])
    with reporter, memory_errors():
        step_watch = watch(config.steps)
        reporter.stage("encoding prompts and reference images")
        requests = resolve_auto_words(pipe, requests)
        records: tuple[Record, ...] = ()

        def loop(*arguments: Any) -> tuple[Array, Array]:
            # The files are read for the records when encoding has checked them, and before they may change.
            nonlocal records
            records = _records(pipe, requests, chosen)
            return denoise(*arguments, watch=step_watch)

        latents, masks = generate_latents(pipe, requests, chosen, config, loop)
        check_finite(finite_rows(latents))
        reporter.stage("decoding")
        images = images_of(pipe, latents)
    # `requests` has the words that were chosen for "auto".
    words = [[phrases_of(r.prompt, subject.words) for subject in r.subjects] for r in requests]
    return Samples(images, np.asarray(masks), words, records)


@dataclasses.dataclass(frozen=True)
class Generator:
    """Samples images of many requests, in batches of a fixed size.

    Attributes:
      pipe: the model.
      per_device: images per batch on each device of the model's mesh.
    """

    pipe: Pipeline
    per_device: int

    @property
    def batch(self) -> int:
        """Images per batch."""
        return self.per_device * (1 if self.pipe.mesh is None else self.pipe.mesh.size)

    def __call__(
        self,
        requests: Sequence[Request],
        options: SamplingOptions,
        progress: Callable[[int], Any] = lambda count: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sample all images.

        Args:
          requests: n requests with the same number of subjects.
          options: sampling options for all of them.
          progress: called with the number of new images after each batch.

        Returns:
          The images uint8 (n, H, W, 3), and the masks of the last step (n, R, h, w).

        Raises:
          UserError: as `sample`.
        """
        pipe = self.pipe
        batches = [
            list(requests[start : start + self.batch]) for start in range(0, len(requests), self.batch)
        ]
        plans = [plan(pipe.models, pipe.schedule, options, {}, own) for own in batches]  # errors come first
        images, masks = [], []
        for own, (options, config) in zip(batches, plans, strict=True):
            # The last batch is padded, so one program makes all. The padding does not change the other
            # images.
            padded = resolve_auto_words(pipe, own + own[-1:] * (self.batch - len(own)))
            latents, history = generate_latents(pipe, padded, options, config)
            check_finite(finite_rows(latents))
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
    """Options of a batch of requests, and their static part, checked without loading parameters.

    Args:
      models, schedule, defaults: of the model.
      changes: the options that are given; they override the defaults.
      requests: the batch.

    Raises:
      UserError: for options that are invalid, contradict each other, or do not fit the model.
    """
    options = defaults.changed(changes)
    check_has_effect(changes, options)
    for name in SamplingOptions.scalars():
        options.scalar(name, len(requests))
    config = options.sampler_config(*latent_size(models, options.height, options.width))
    # Only for its errors: the sampler would raise them after minutes of loading.
    make_table(config.solver, config.steps, schedule, config.spacing, config.eta)
    check_fits(models, len(requests), config)
    check_scope(options, config, [request.subjects for request in requests])
    return options, config


def request_keys(seeds: Sequence[int]) -> Array:
    """Random keys (B,), with a different key for each seed from 0 to 2**64 − 1.

    Raises:
      UserError: for an invalid seed.
    """
    # Not `jax.random.key`: it drops the upper 32 bits of a seed if 64-bit types are off, and depends on the
    # configured generator. For seeds below 2**32 these keys equal its default keys.
    halves = [divmod(SEED.check("seed", seed), 2**32) for seed in seeds]
    return jax.random.wrap_key_data(jnp.asarray(halves, jnp.uint32), impl="threefry2x32")


def generate_latents(
    pipe: Pipeline,
    requests: Sequence[Request],
    options: SamplingOptions,
    config: SamplerConfig,
    loop: Loop | None = None,
) -> tuple[Array, Array]:
    """Encode a batch of requests and run the denoising loop; everything before decoding.

    Args:
      pipe: the model.
      requests: B requests, the result of `resolve_auto_words`.
      options, config: the result of `plan`.
      loop: runs the loop; default `denoise`.

    Returns:
      z_0 (B, h, w, C), and the masks of all steps (B, steps, R, h', w').
    """
    conditioning = encode_requests(pipe, requests, options, config)
    keys = request_keys([request.seed for request in requests])
    return (loop or denoise)(pipe, conditioning, keys, config)


def denoise(
    pipe: Pipeline,
    conditioning: Conditioning,
    keys: Array,
    config: SamplerConfig,
    watch: StepWatch | None = None,
) -> tuple[Array, Array]:
    """Run the denoising loop on the pipeline's devices.

    Args:
      pipe: the model.
      conditioning, keys, config: see `sample_latents`.
      watch: called before the first step, and between steps. It does not change the compiled program.

    Returns:
      z_0 (B, h, w, C), and the masks of all steps (B, steps, R, h', w').
    """
    static = (pipe.models, pipe.schedule, config)
    devices = Devices.choose(pipe.mesh, {"unet": pipe.params["unet"]}, len(keys))
    rows = devices.place((conditioning, keys))
    contexts, run = devices.run(begin_rows, static, rows)

    def loaded() -> Devices:
        nonlocal devices
        if devices.params is None:  # freed by a preview
            devices = Devices.choose(pipe.mesh, {"unet": pipe.params["unet"]}, len(keys))
        return devices

    def latents() -> Array:
        return devices.collect(run.state.z0)

    def images() -> np.ndarray:
        nonlocal devices
        z0 = jax.block_until_ready(latents())
        if pipe.offloaded:  # frees the UNet's parameters, to make room for the VAE
            devices = dataclasses.replace(devices, params=None)
        return images_of(pipe, z0)

    def next_narrowing() -> Narrowing:
        phase = phase_of(config, done, has_subjects=conditioning.flags.shape[1] > 0)
        index = devices.place(np.full(len(keys), done, np.int32))
        state = (*rows, contexts, run, index)
        return devices.collect(loaded().run(narrowing_rows, (*static, phase), state))

    done = 0
    stop = config.steps if watch is None else watch(Pause(0, latents, images, next_narrowing))
    while done < config.steps:
        # Rows are divided among devices, so the span is one row per request: (B, 2). It is traced: any span
        # runs in the same program.
        span = devices.place(np.full((len(keys), 2), [done, stop], np.int32))
        run = loaded().run(advance_rows, static, (*rows, contexts, run, span))
        done = stop
        if watch is not None:
            stop = watch(Pause(done, latents, images, next_narrowing))
    out = devices.collect((run.state.z0, run.history))
    return jax.block_until_ready(out) if pipe.offloaded else out


def begin_rows(static: Any, params: Any, rows: tuple[Conditioning, Array]) -> tuple[Contexts, Run]:
    """Program that runs before the loop: encodes the contexts and draws the initial noise."""
    (models, schedule, config), (conditioning, keys) = static, rows
    static = {"unet": models.unet, "schedule": schedule, "config": config}
    denoiser = Denoiser.encode(params["unet"], conditioning, keys, **static)
    return denoiser.contexts, begin(denoiser)


def advance_rows(static: Any, params: Any, rows: tuple[Conditioning, Array, Contexts, Run, Array]) -> Run:
    """Program that runs a span of steps of the loop."""
    (models, schedule, config), (conditioning, keys, contexts, run, span) = static, rows
    denoiser = Denoiser(models.unet, schedule, config, params["unet"], conditioning, contexts, keys)
    return advance(denoiser, run, (span[0, 0], span[0, 1]))  # equal in all rows


def narrowing_rows(
    static: tuple[Models, ScheduleConfig, SamplerConfig, Phase], params: Any, rows: tuple[Any, ...]
) -> Narrowing:
    """Program of `Pause.narrowing`: computes passes of the next step, apart from the loop's program."""
    (models, schedule, config, phase), (conditioning, keys, contexts, run, index) = static, rows
    denoiser = Denoiser(models.unet, schedule, config, params["unet"], conditioning, contexts, keys)
    return narrowing(denoiser, phase, run, index[0])  # equal in all rows


def _records(pipe: Pipeline, requests: Sequence[Request], options: SamplingOptions) -> tuple[Record, ...]:
    """The record of each request, which reproduces its image."""
    return tuple(
        Record(
            request.prompt, request.negative_prompt, request.seed,
            tuple(map(with_files_read, request.subjects)), options.of_request(i), dict(pipe.source),
        )
        for i, request in enumerate(requests)
    )  # fmt: skip
