"""Batches of scenes: those of one size run together, and a scene can run again to the same pixels.

Rounding depends on the shape of a program, so on the number of images in a batch and of subject slots. So an
image remembers its place: size of the batch, row, and slots. To make it again, it runs there; the other
rows may hold anything.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.rules import Rule, shown
from realcustom_jax.inputs.requests import Request
from realcustom_jax.inputs.subjects import Subject

# Images in a batch, at most: more need more memory, and a laptop gains nothing.
LARGEST_BATCH = 4
_RULES = {
    "batch": Rule("", int, 1, 64),
    "row": Rule("", int, 0, 63),
    "slots": Rule("", int, 0, 64),
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Position of an image in a batch; the same place gives the same pixels.

    Attributes:
      batch: number of images in the batch.
      row: index of the image, from 0.
      slots: number of subject slots per image.
    """

    batch: int
    row: int
    slots: int

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
        return place


def new_places(sizes: Sequence[tuple[int, int]], subjects: Sequence[int]) -> list[Place]:
    """Places of images that run for the first time: those of one size, in batches.

    Args:
      sizes: (height, width) of each image.
      subjects: number of subjects of each.
    """
    places: dict[int, Place] = {}
    for size in dict.fromkeys(sizes):
        same = [i for i, other in enumerate(sizes) if other == size]
        for start in range(0, len(same), LARGEST_BATCH):
            rows = same[start : start + LARGEST_BATCH]
            slots = max(subjects[i] for i in rows)
            places |= {i: Place(len(rows), row, slots) for row, i in enumerate(rows)}
    return [places[i] for i in range(len(sizes))]


def fill_batches(
    requests: Sequence[Request], sizes: Sequence[tuple[int, int]], places: Sequence[Place]
) -> list[tuple[list[Request], list[int]]]:
    """The batches that put every request at its place.

    Returns:
      For each batch its requests, and for each row the index of the image that is wanted, or −1.
    """
    batches: list[tuple[tuple, dict[int, int]]] = []
    for i, place in enumerate(places):
        shape = (sizes[i], place.batch, place.slots)
        # Two images may have had the same place at different times; then each needs a batch.
        free = next((rows for other, rows in batches if other == shape and place.row not in rows), None)
        if free is None:
            free = {}
            batches.append((shape, free))
        free[place.row] = i
    filled = []
    for (_, count, slots), rows in batches:
        any_row = next(iter(rows.values()))
        indices = [rows.get(row, -1) for row in range(count)]
        chosen = [requests[any_row if i < 0 else i] for i in indices]
        if max(len(request.subjects) for request in chosen) < slots:
            chosen[0] = _with_slots(chosen[0], slots)
        filled.append((chosen, indices))
    return filled


def _with_slots(request: Request, slots: int) -> Request:
    """Add subjects of strength 0 to a request; they have no effect, like empty slots."""
    # Any word of the prompt will do, since a subject of strength 0 has no word map of its own.
    words = [word for word in request.prompt.split() if word.strip(".,;:!?")]
    words = request.subjects[0].words if request.subjects else words[0].strip(".,;:!?")
    black = Subject(np.zeros((8, 8, 3), np.uint8), words, strength=0)
    missing = slots - len(request.subjects)
    return dataclasses.replace(request, subjects=(*request.subjects, *[black] * missing))
