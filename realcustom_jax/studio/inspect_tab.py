"""The Inspect tab without its layout: one image, step by step."""

import dataclasses
from typing import Any

from PIL import Image

from realcustom_jax.common.errors import UserError
from realcustom_jax.inspection.inspect import inspect
from realcustom_jax.inspection.inspection import Inspection
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.studio.create import Form
from realcustom_jax.studio.fields import uploads_named
from realcustom_jax.studio.jobs import Report
from realcustom_jax.studio.limits import check_size
from realcustom_jax.studio.shown import Result


def look_inside(pipe: Pipeline, form: Form, report: Report) -> Inspection:
    """Make the first image of a form, and record its steps.

    Raises:
      UserError: for a mistake in the form, or a form without references.
      Stopped: if the user stopped it.
    """
    if not form.references:
        raise UserError("there is no reference: give a picture, because without one no word is narrowed")
    check_size(pipe, form.options)
    with uploads_named(*form.photos):
        return inspect(
            pipe,
            form.checked_prompt(),
            form.subjects(),
            form.seeds()[0],
            negative_prompt=form.negative_prompt or "",
            progress=report.progress,
            **form.options,
        )


def form_of_image(result: Result | None, index: int) -> Form:
    """The form that makes one image of the Create tab alone.

    Raises:
      UserError: if there is no image.
    """
    if result is None or result.form is None or not 0 <= index < len(result.samples.records):
        raise UserError("there is no image in the Create tab yet")
    return dataclasses.replace(result.form, seed=str(result.samples.records[index].seed), count=1)


def drawings(found: Inspection, step: int, subject: int) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Word map, mask, and kept visual tokens of a step, counted from 1."""
    own = step - 1, subject
    return found.draw_word_map(*own), found.draw_mask(*own), found.draw_tokens(*own)


def explained(found: Inspection, step: int, subject: int) -> str:
    """What the drawings of a step show, in words, with numbers."""
    words = ", ".join(found.customized.words[0][subject])
    share = float((found.masks[step - 1, subject] > 0).mean())
    text = f"Step {step} of {len(found.masks)}. “{words}” may act in {share:.0%} of the image"
    if found.kept is None:
        return f"{text}, with all visual tokens."
    kept = found.kept[step - 1, subject]
    return f"{text}, with {int(kept.sum())} of {kept.size} visual tokens."


def subjects_of(found: Inspection) -> list[tuple[str, int]]:
    """(words, index) of each subject."""
    return [(", ".join(words), index) for index, words in enumerate(found.customized.words[0])]


def numbers_of(found: Inspection) -> dict[str, Any]:
    """An inspection as JSON values: for each step and subject the word map, the mask, and the kept tokens."""
    return {
        "words": [list(words) for words in found.customized.words[0]],
        "word_maps": found.word_maps.round(4).tolist(),
        "masks": found.masks.round(4).tolist(),
        "kept": None if found.kept is None else found.kept.tolist(),
    }
