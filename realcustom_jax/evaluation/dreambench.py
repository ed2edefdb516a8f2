"""The DreamBench runner: makes and scores what is not there yet, this host's share of it."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import write_json, write_whole
from realcustom_jax.common.progress import Counter
from realcustom_jax.evaluation.dreambench_data import Case
from realcustom_jax.evaluation.scores import Scorer
from realcustom_jax.generate import Generator
from realcustom_jax.inputs.requests import Request
from realcustom_jax.inputs.subjects import Subject
from realcustom_jax.inputs.transforms import load_image
from realcustom_jax.weights.digest import params_sha256

# What the command was given, known before a model is loaded; and the model's weights and options.
SETTINGS, MODEL = "settings.json", "model.json"


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Keep what the images beside a file are made with, and refuse to mix them with others.

    Raises:
      UserError: when the folder's images were made in another way.
    """
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
    if not path.is_file():
        write_json(path, settings)
        return
    there = json.loads(path.read_text())
    differing = [
        f"{key} {there.get(key)!r} there, {settings.get(key)!r} now"
        for key in sorted({*there, *settings})
        if there.get(key) != settings.get(key)
    ]
    if differing:
        raise UserError(
            f"{path.parent} has images that were made otherwise ({'; '.join(differing)}): use another --out"
        )


def own_share(cases: Sequence[Case]) -> list[Case]:
    """Every n-th case, of n hosts: equal shares, and a subject's images on all of them."""
    return list(cases[jax.process_index() :: jax.process_count()])


def make_missing(
    cases: Sequence[Case],
    out: Path,
    load: Callable[[], Generator],
    options: Mapping[str, Any],
    negative_prompt: str = "",
) -> int:
    """Make the images that are not there, a batch at a time: a run that is cut off loses one batch.

    Args:
      cases: of this host.
      out: for SUBJECT/NUMBER_SEED.png.
      load: the model, which is loaded only where images are missing.
      options: changes of its sampling options.
      negative_prompt: of all images.

    Returns:
      how many were made.

    Raises:
      UserError: when those that are there were made with other weights or options, though the model is
        called the same.
    """
    missing = [case for case in cases if not (out / f"{case.name}.png").is_file()]
    if not missing:
        return 0
    generator = load()
    chosen = generator.pipe.defaults.changed(options)
    weights = {"weights": params_sha256(generator.pipe.params)}
    check_settings(out / MODEL, {**weights, **dataclasses.asdict(chosen)})
    photos: dict[Path, np.ndarray] = {}
    with Counter(len(missing), "sampling", "image") as counter:
        for start in range(0, len(missing), generator.batch):
            batch = missing[start : start + generator.batch]
            for path in {case.photos[0] for case in batch} - photos.keys():
                photos[path] = load_image(path)
            # Equal photos are one object, so that each is encoded once.
            subjects = [(Subject(photos[case.photos[0]], case.word),) for case in batch]
            jobs = [
                Request(case.prompt, own, case.seed, negative_prompt)
                for case, own in zip(batch, subjects, strict=True)
            ]
            images, _ = generator(jobs, chosen, counter.update)
            for case, image in zip(batch, images, strict=True):
                path = out / f"{case.name}.png"
                write_whole(path, lambda half, image=image: Image.fromarray(image).save(half, "PNG"))
    return len(missing)


def score_missing(cases: Sequence[Case], out: Path, scorer: Scorer) -> int:
    """Score the images whose JSON lacks one of the scorer's measures, or has it by another tower.

    What else is in it is kept.

    Returns:
      how many were scored.
    """
    wanted = scorer.sources.items()
    missing = [case for case in cases if not wanted <= read_result(out, case).get("by", {}).items()]
    with Counter(len(missing), "scoring", "image") as counter:
        for _, group in itertools.groupby(missing, key=lambda case: case.subject):
            for batch in _chunks(group):
                images = [load_image(out / f"{case.name}.png") for case in batch]
                for case, scores in zip(batch, scorer.score(batch, images), strict=True):
                    before = read_result(out, case)
                    kept = {**before.get("scores", {}), **scores}
                    by = {**before.get("by", {}), **scorer.sources}
                    write_json(out / f"{case.name}.json", _result(case, kept, by))
                counter.update(len(batch))
    return len(missing)


def read_result(out: Path, case: Case) -> dict[str, Any]:
    """The JSON of an image, {} where there is none."""
    path = out / f"{case.name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _result(case: Case, scores: Mapping[str, float], by: Mapping[str, str]) -> dict[str, Any]:
    values = dataclasses.asdict(case) | {"photos": [path.name for path in case.photos]}
    return {**values, "scores": dict(scores), "by": dict(by)}


def _chunks(group: Any, size: int = 64) -> list[list[Case]]:
    rows = list(group)
    return [rows[i : i + size] for i in range(0, len(rows), size)]
