"""Batches of scenes: those of one size run together, and a scene can run again to the same pixels.

Rounding depends on the shape of a program: the number of images, of subject slots, and of photos per slot. So
an image remembers its place. To make it again, it runs there; the other rows may hold anything.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.rules import Rule, shown
from realcustom_jax.inputs.characters import MOST_IMAGES
from realcustom_jax.inputs.requests import Request
from realcustom_jax.inputs.subjects import Subject

# Images in a batch, at most: more need more memory, and a laptop gains nothing.
LARGEST_BATCH = 4
# Photos of a batch that a place may ask for, with fillers: a story from elsewhere must not fill the memory.
_MOST_PHOTOS = 256
# Characters of a scene, at most.
MOST_SUBJECTS = 16
# A story.json may come from anyone, and its places decide how large a program is.
_RULES = {
    "batch": Rule("", int, 1, LARGEST_BATCH),
    "row": Rule("", int, 0, LARGEST_BATCH - 1),
    "slots": Rule("", int, 0, MOST_SUBJECTS),
    "photos": Rule("", int, 1, MOST_IMAGES),
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Position of an image in a batch; the same place gives the same pixels.

    Attributes:
      batch: number of images in the batch.
      row: index of the image, from 0.
      slots: number of subject slots per image.
      photos: number of photos per slot.
    """

    batch: int
    row: int
    slots: int
    photos: int = 1

    def values(self) -> dict[str, int]:
        """The place as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_values(cls, values: object, source: str) -> "Place":
        """A place from JSON values.

        Raises:
          UserError: for wrong values; the message begins with `source`.
        """
        if not isinstance(values, Mapping) or set(values) != set(_RULES):
            raise UserError(f"{source}: a scene's place needs {', '.join(_RULES)}, not {shown(values)}")
        place = cls(**{name: rule.check(f"{source}: {name}", values[name]) for name, rule in _RULES.items()})
        if place.row >= place.batch:
            raise UserError(f"{source}: row {place.row} is not in a batch of {place.batch}")
        if place.batch * place.slots * place.photos > _MOST_PHOTOS:
            raise UserError(f"{source}: a scene's place needs more than {_MOST_PHOTOS} photos in its batch")
        return place


def new_places(sizes: Sequence[tuple[int, int]], requests: Sequence[Request]) -> list[Place]:
    """Places of images that run for the first time: those of one size, in batches.

    Args:
      sizes: (height, width) of each image.
      requests: their requests.
    """
    places: dict[int, Place] = {}
    for size in dict.fromkeys(sizes):
        same = [i for i, other in enumerate(sizes) if other == size]
        for start in range(0, len(same), LARGEST_BATCH):
            rows = same[start : start + LARGEST_BATCH]
            slots, photos = _shape([requests[i] for i in rows])
            places |= {i: Place(len(rows), row, slots, photos) for row, i in enumerate(rows)}
    return [places[i] for i in range(len(sizes))]


def fits(place: Place, request: Request) -> bool:
    """Whether a request can run at a place; in a batch of one it has to fill it."""
    slots, photos = _shape([request])
    if place.batch == 1:
        return (slots, photos) == (place.slots, place.photos)
    return slots <= place.slots and photos <= place.photos


def fill_batches(
    requests: Sequence[Request], sizes: Sequence[tuple[int, int]], places: Sequence[Place]
) -> list[tuple[list[Request], list[int]]]:
    """The batches that put every request at its place.

    Args:
      requests: the requests; each fits its place.
      sizes: (height, width) of each image.
      places: the place of each.

    Returns:
      For each batch its requests, and for each row the index of the image, or −1 for a filler.
    """
    batches: list[tuple[tuple, dict[int, int]]] = []
    for i, place in enumerate(places):
        shape = (sizes[i], place.batch, place.slots, place.photos)
        # Two images may have had the same place at different times; then each needs a batch.
        rows = next((rows for other, rows in batches if other == shape and place.row not in rows), None)
        if rows is None:
            rows = {}
            batches.append((shape, rows))
        rows[place.row] = i
    filled = []
    for shape, rows in batches:
        _, count, slots, photos = shape
        if len(rows) == count and _shape([requests[i] for i in rows.values()]) != (slots, photos):
            # No request needs that shape any more, and no row is left for a filler: one image runs later.
            last = max(rows)
            batches.append((shape, {last: rows.pop(last)}))
        indices = [rows.get(row, -1) for row in range(count)]
        filled.append(([_filler(slots, photos) if i < 0 else requests[i] for i in indices], indices))
    return filled


def _shape(requests: Sequence[Request]) -> tuple[int, int]:
    """Subject slots and photos per slot of a batch."""
    subjects = [subject for request in requests for subject in request.subjects]
    slots = max((len(request.subjects) for request in requests), default=0)
    return slots, max((len(subject.photos) for subject in subjects), default=1)


def _filler(slots: int, photos: int) -> Request:
    """A request whose subjects have no effect, to give a batch its slots and photos."""
    black = [np.zeros((8, 8, 3), np.uint8)] * photos
    return Request("a", (Subject(images=black, words="a", strength=0),) * slots)
