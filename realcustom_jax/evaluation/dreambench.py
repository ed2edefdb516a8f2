"""The DreamBench runner: makes and scores the images that are still missing, this host's share of them."""

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

# The options of the command, known before a model is loaded; and the hash and options of the loaded model.
SETTINGS, MODEL = "settings.json", "model.json"


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Store how the images of a folder are made, or check that they are made in the same way.

    Args:
      path: the file for the settings, in the folder.
      settings: everything that the images depend on.

    Raises:
      UserError: the folder's images were made with other settings.
    """
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
    if not path.is_file():
        write_json(path, settings)
        return
    before = json.loads(path.read_text())
    differing = [
        f"{key} {before.get(key)!r} there, {settings.get(key)!r} now"
        for key in sorted({*before, *settings})
        if before.get(key) != settings.get(key)
    ]
    if differing:
        raise UserError(
            f"{path.parent} has images that were made otherwise ({'; '.join(differing)}): use another --out"
        )


def own_share(cases: Sequence[Case]) -> list[Case]:
    """This host's share of the cases: every n-th one of n hosts."""
    return list(cases[jax.process_index() :: jax.process_count()])


def make_missing(
    cases: Sequence[Case],
    out: Path,
    load: Callable[[], Generator],
    options: Mapping[str, Any],
    negative_prompt: str = "",
) -> int:
    """Make the missing images, batch by batch. An interrupted run loses one batch at most.

    Args:
      cases: cases of this host.
      out: folder for SUBJECT/NUMBER_SEED.png.
      load: loads the model; called only if images are missing.
      options: changes of the model's sampling options.
      negative_prompt: negative prompt of all images.

    Returns:
      the number of images made.

    Raises:
      UserError: existing images were made with other weights or options of a model with the same name.
    """
    missing = [case for case in cases if not (out / f"{case.name}.png").is_file()]
    if not missing:
        return 0
    generator = load()
    chosen = generator.pipe.defaults.changed(options)
    # The path of a model does not identify it: training again writes other weights to the same folder.
    weights = {"weights": params_sha256(generator.pipe.params)}
    check_settings(out / MODEL, {**weights, **dataclasses.asdict(chosen)})
    photos: dict[Path, np.ndarray] = {}
    with Counter(len(missing), "sampling", "image") as counter:
        for start in range(0, len(missing), generator.batch):
            batch = missing[start : start + generator.batch]
            # DreamBench's methods get one photo; the first one conditions the image.
            for path in {case.photos[0] for case in batch} - photos.keys():
                photos[path] = load_image(path)
            # Equal photos are the same object, so each is encoded only once.
            subjects = [(Subject(photos[case.photos[0]], case.word),) for case in batch]
            jobs = [
                Request(case.prompt, own, case.seed, negative_prompt)
                for case, own in zip(batch, subjects, strict=True)
            ]
            images, _ = generator(jobs, chosen, counter.update)
            for case, image in zip(batch, images, strict=True):
                path = out / f"{case.name}.png"
                write_whole(
                    path, lambda temporary, image=image: Image.fromarray(image).save(temporary, "PNG")
                )
    return len(missing)


def score_missing(cases: Sequence[Case], out: Path, scorer: Scorer) -> int:
    """Score the images whose JSON lacks a measure of the scorer, or has it from another model.

    Other measures in the JSON are kept.

    Returns:
      the number of images scored.
    """
    # An image is done if its JSON names the same model for every measure.
    required = scorer.sources.items()
    missing = [case for case in cases if not required <= read_result(out, case).get("by", {}).items()]
    with Counter(len(missing), "scoring", "image") as counter:
        # By subject, because all images of a subject are compared with the same photos.
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
    """The JSON of an image; {} if there is none."""
    path = out / f"{case.name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _result(case: Case, scores: Mapping[str, float], by: Mapping[str, str]) -> dict[str, Any]:
    """The JSON of an image: its case, its scores, and the model of each score."""
    values = dataclasses.asdict(case) | {"photos": [path.name for path in case.photos]}
    return {**values, "scores": dict(scores), "by": dict(by)}


def _chunks(group: Any, size: int = 64) -> list[list[Case]]:
    # Limits the images in memory, and the work that an interrupted run loses.
    rows = list(group)
    return [rows[i : i + size] for i in range(0, len(rows), size)]
