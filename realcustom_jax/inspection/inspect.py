"""Samples one request and records what its steps attend to. `inspect` is the public function."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.progress import ProgressFunction, progress_of
from realcustom_jax.common.rules import shown
from realcustom_jax.diffusion.sampler import Narrowing
from realcustom_jax.generate import run_requests
from realcustom_jax.inputs.requests import requests_of
from realcustom_jax.inputs.subjects import Subject
from realcustom_jax.inputs.token_grid import token_grid
from realcustom_jax.inputs.transforms import load_image
from realcustom_jax.inputs.views import reference_views
from realcustom_jax.inspection.inspection import Inspection
from realcustom_jax.outputs.samples import Samples
from realcustom_jax.outputs.watching import Pause, StepWatch, Watch
from realcustom_jax.pipeline import Pipeline


def inspect(
    pipe: Pipeline,
    prompt: str,
    subjects: Sequence[Subject],
    seed: int | None = None,
    *,
    negative_prompt: str | None = None,
    progress: bool | ProgressFunction | None = None,
    **options: Any,
) -> Inspection:
    """Sample one image of the given subjects, and show how their words are narrowed.

    The image is that of `sample`, to the bit: the same program makes it. Between its steps, a second program
    computes the word maps and token scores of the next step; it takes about one pass per guided step. The
    text-only image is that of `sample` without subjects.

    Args:
      pipe: the model.
      prompt, subjects, seed, negative_prompt, progress, **options: as in `sample`, for one request.

    Raises:
      UserError: as `sample`; also for several prompts or seeds, or without a subject.
    """
    requests = requests_of(prompt, subjects, negative_prompt, seed)
    if not isinstance(prompt, str) or len(requests) != 1:
        raise UserError(f"inspect takes one prompt and one seed, not {shown(prompt)} and {shown(seed)}")
    if not requests[0].subjects:
        raise UserError("inspect needs a subject: without one, no word is narrowed")
    seen: list[Narrowing] = []
    reporter = progress_of(progress)

    def watch(steps: int) -> StepWatch:
        plain = Watch(steps, reporter, None, None)

        def record(pause: Pause) -> int:
            plain(pause)
            if pause.done < steps:
                seen.append(jax.device_get(pause.narrowing()))
            return pause.done + 1

        return record

    customized = run_requests(pipe, requests, options, reporter, watch)
    reporter = progress_of(progress)
    alone = [dataclasses.replace(requests[0], subjects=())]
    text_only = run_requests(pipe, alone, options, reporter, lambda steps: Watch(steps, reporter, None, None))
    return _inspection(pipe, customized, text_only, seen)


def _inspection(
    pipe: Pipeline, customized: Samples, text_only: Samples, seen: Sequence[Narrowing]
) -> Inspection:
    """The result; `seen` has one entry per step."""
    models, subjects = pipe.models, customized.records[0].subjects
    assert models.realcustom is not None  # the subjects were sampled
    word_maps: list[np.ndarray] = []
    for step in seen:  # step 0 always has word maps
        word_maps.append(word_maps[-1] if step.word_maps is None else np.asarray(step.word_maps[0]))
    kept = None
    if seen[0].token_bias is not None:
        kept = np.stack([np.asarray(step.token_bias)[0] == 0 for step in seen])
    fit, size = models.realcustom.reference_fit, models.image_configs[0].image_size
    references = tuple(
        tuple(reference_views(load_image(photo), size, models.high_res, fit)[0] for photo in subject.photos)
        for subject in subjects
    )
    grid = token_grid(models, max(map(len, references)))
    return Inspection(customized, text_only, np.stack(word_maps), customized.masks[0], kept, grid, references)
