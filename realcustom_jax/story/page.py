"""`Page`: a scene and its image."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from realcustom_jax.inputs.characters import Character
from realcustom_jax.outputs.samples import Samples
from realcustom_jax.story.batches import Place
from realcustom_jax.story.scene import Scene


@dataclasses.dataclass(frozen=True, eq=False)
class Page:
    """A scene of a story and its image.

    Attributes:
      scene: the scene; it has a seed.
      samples: its image; None if there is none yet.
      place: position in a batch that reproduces the image; see `batches`.
      made: inputs of the image; `Story.is_made` compares them with the story.
    """

    scene: Scene
    samples: Samples | None = None
    place: Place | None = None
    made: "Made | None" = None


@dataclasses.dataclass(frozen=True)
class Made:
    """Inputs of an image."""

    scene: Scene
    characters: tuple[Character, ...]
    style: str
    negative_prompt: str
    options: Mapping[str, Any]
