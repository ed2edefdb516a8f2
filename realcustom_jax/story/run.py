"""Makes the images of a story's scenes, in batches."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from realcustom_jax.common.progress import ProgressFunction
from realcustom_jax.generate import plan, sample
from realcustom_jax.inputs.requests import Request
from realcustom_jax.inputs.sizes import image_size
from realcustom_jax.outputs.samples import Samples
from realcustom_jax.outputs.watching import Preview
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.story.batches import Place, fill_batches, fits, new_places
from realcustom_jax.story.page import Made, Page
from realcustom_jax.story.scene import Scene

if TYPE_CHECKING:
    from realcustom_jax.story.story import Story


def run_scenes(
    story: "Story",
    pipe: Pipeline,
    scenes: Sequence[int],
    progress: bool | ProgressFunction | None = None,
    preview: Preview | None = None,
    every: int | None = None,
    fast_preview: bool = False,
) -> list[Page]:
    """Make the images of some scenes, and put them into the story.

    Args:
      story: the story; its pages are changed.
      pipe: the model.
      scenes: indices of scenes.
      progress, preview, every, fast_preview: as in `sample`; a preview has the scenes of one batch, in order.

    Returns:
      The new pages.

    Raises:
      UserError: as `sample`. Mistakes in requests are found before any image is made.
    """
    # Another thread may change the story meanwhile, as the studio can. An image belongs to the page that
    # asked for it, wherever that is then, and to the characters of now.
    pages = [story.pages[i] for i in scenes]
    inputs = [story.made_from(i) for i in scenes]
    requests = [story.request(i) for i in scenes]
    sizes = [_size(story, pipe, i) for i in scenes]
    for request, (height, width) in zip(requests, sizes, strict=True):  # errors before any work
        changes = {**story.options, "height": height, "width": width}
        plan(pipe.models, pipe.schedule, pipe.defaults, changes, [request])
    places = _places(story, scenes, requests, sizes)
    for batch, rows in fill_batches(requests, sizes, places):
        index = next(k for k in rows if k >= 0)
        height, width = sizes[index]
        made = sample(
            pipe,
            [request.prompt for request in batch],
            [request.subjects for request in batch],
            [request.seed for request in batch],
            negative_prompt=[request.negative_prompt for request in batch],
            progress=progress,
            preview=_of_scenes(preview, rows),
            every=every,
            fast_preview=fast_preview,
            **{**story.options, "height": height, "width": width},
        )
        for row, k in enumerate(rows):
            if k >= 0:
                new = _page(pages[k].scene, made[row], requests[k], places[k], inputs[k])
                story.put(pages[k], new)
                pages[k] = new
                story.model = dict(made.records[row].model)
    return pages


def _of_scenes(preview: Preview | None, rows: Sequence[int]) -> Preview | None:
    """A preview of a batch that sees the images of scenes only, in their order.

    Args:
      preview: the caller's.
      rows: for each image of the batch the number of its scene, or −1 for a filler.
    """
    if not callable(preview):  # None, or a mistake that `sample` reports
        return preview
    own = sorted((row for row, k in enumerate(rows) if k >= 0), key=lambda row: rows[row])
    return lambda step, images: preview(step, images[own])


def _page(scene: Scene, samples: Samples, request: Request, place: Place, made: Made) -> Page:
    """A scene with its image, without the empty slots of its batch."""
    count = len(request.subjects)
    record = samples.records[0]
    own = dataclasses.replace(
        samples,
        masks=samples.masks[:, :, :count],
        words=[samples.words[0][:count]],
        records=(dataclasses.replace(record, subjects=record.subjects[:count]),),
    )
    return Page(scene, own, place, made)


def _places(
    story: "Story", scenes: Sequence[int], requests: Sequence[Request], sizes: Sequence[tuple[int, int]]
) -> list[Place]:
    """Places of scenes: their previous ones where these still fit, or new ones."""
    places: dict[int, Place] = {}
    for k, scene in enumerate(scenes):
        place = story.pages[scene].place
        if place and fits(place, requests[k]):
            places[k] = place
    new = [k for k in range(len(scenes)) if k not in places]
    made = new_places([sizes[k] for k in new], [requests[k] for k in new])
    places |= dict(zip(new, made, strict=True))
    return [places[k] for k in range(len(scenes))]


def _size(story: "Story", pipe: Pipeline, scene: int) -> tuple[int, int]:
    """Height and width of a scene in pixels."""
    return image_size(pipe.models, pipe.defaults.changed(story.options_of(scene)))
