"""One user's story without its layout: scenes, images and files."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import write_bytes
from realcustom_jax.common.rules import shown
from realcustom_jax.inputs.characters import Character, file_name
from realcustom_jax.inputs.subjects import STRENGTHS
from realcustom_jax.inputs.transforms import load_image, png_bytes
from realcustom_jax.outputs.samples import Samples
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.story.files import story_files
from realcustom_jax.story.scene import Scene
from realcustom_jax.story.story import Story
from realcustom_jax.studio.create import EVERY, check_prompt
from realcustom_jax.studio.fields import seed_of, uploads_named
from realcustom_jax.studio.jobs import Report
from realcustom_jax.studio.limits import check_size


@dataclasses.dataclass
class Script:
    """A user's story, and the files of the pictures that the page shows.

    Attributes:
      story: the story.
      chosen: index of the scene that the page chooses next; None to keep the choice.
    """

    story: Story = dataclasses.field(default_factory=Story)
    chosen: int | None = None
    # {id of an object: (the object, its picture's file)}; holding the object keeps its id in use.
    _files: dict[int, tuple[object, Path]] = dataclasses.field(default_factory=dict)

    def shelf(self, folder: Callable[[], Path]) -> list[tuple[str, str]]:
        """(file, name) of each character; `folder` makes folders for new files."""

        def picture(character: Character) -> bytes:
            return png_bytes(Image.fromarray(load_image(character.photos[0])))

        self._forget()
        return [
            (self._file(one, folder, file_name(one.name), functools.partial(picture, one)), one.name)
            for one in self.story.characters
        ]

    def pages(self, folder: Callable[[], Path]) -> list[tuple[str, str]]:
        """(file, caption) of each scene that has an image; `folder` makes folders for new files."""
        self._forget()
        made = []
        for number, page in enumerate(self.story.pages, 1):
            if page.samples is not None:
                note = "" if self.story.is_made(number - 1) else " (changed since)"
                file = self._file(page.samples, folder, "scene", functools.partial(_png, page.samples))
                made.append((file, f"{number}. {page.scene.prompt}{note}"))
        return made

    def add(self, fields: Mapping[str, Any]) -> int:
        """Add a scene at the end, from the result of `scene_of`; returns its index."""
        return self.story.add(Scene(**fields))

    def scenes(self) -> list[tuple[str, int]]:
        """(line, index) of each scene."""
        return [
            (f"{number}. {page.scene.prompt}" + (" ✓" if self.story.is_made(number - 1) else ""), number - 1)
            for number, page in enumerate(self.story.pages, 1)
        ]

    def _forget(self) -> None:
        """Let go of characters and images that the story has no more."""
        held = {*map(id, self.story.characters), *(id(page.samples) for page in self.story.pages)}
        self._files = {key: kept for key, kept in self._files.items() if key in held}

    def _file(self, key: object, folder: Callable[[], Path], name: str, content: Callable[[], bytes]) -> str:
        """The file of an object's picture, whose bytes `content` returns; written once."""
        if id(key) not in self._files:
            path = folder() / f"{name}.png"
            write_bytes(path, content())
            self._files[id(key)] = (key, path)
        return str(self._files[id(key)][1])


def _png(samples: Samples) -> bytes:
    return samples.png_files()[0]


# ---------------------------------------------------------------- scenes


def scene_of(prompt: str, seed: str, negative: str, wishes: str, strengths: str) -> dict[str, Any]:
    """The fields of a `Scene` from the page's fields.

    Args:
      prompt: the prompt.
      seed: as text; empty for the story's.
      negative: empty for the story's.
      wishes: lines "Mika: wearing a red scarf".
      strengths: lines "Mika: face 1, body 0.5".

    Raises:
      UserError: for a line without a name, or an unknown strength.
    """
    return {
        "prompt": check_prompt(prompt).strip(),
        "seed": seed_of(seed) if (seed or "").strip() else None,
        "negative_prompt": negative or None,
        "wishes": dict(_lines("wish", wishes)),
        "strengths": {name: _strengths(name, text) for name, text in _lines("strength", strengths)},
    }


def scene_fields(scene: Scene) -> tuple[str, str, str, str, str]:
    """Inverse of `scene_of`."""
    wishes = "\n".join(f"{name}: {' '.join(wish.split())}" for name, wish in scene.wishes.items())
    strengths = "\n".join(
        f"{name}: " + ", ".join(_strength_text(key, value) for key, value in own.items())
        for name, own in scene.strengths.items()
    )
    seed = "" if scene.seed is None else str(scene.seed)
    return scene.prompt, seed, scene.negative_prompt or "", wishes, strengths


def _strength_text(key: str, value: float) -> str:
    return f"{key.removesuffix('_strength')} {str(float(value)).removesuffix('.0')}"


def set_look(story: Story, style: str, negative: str, seed: str, same_seed: bool) -> None:
    """Change what all scenes share.

    Raises:
      UserError: for values that `Story` refuses.
    """
    checked = Story(
        seed=seed_of(seed), style=style or "", negative_prompt=negative or "", same_seed=bool(same_seed)
    )
    story.seed, story.same_seed = checked.seed, checked.same_seed
    story.style, story.negative_prompt = checked.style, checked.negative_prompt


def _lines(what: str, text: str | None) -> list[tuple[str, str]]:
    """(name, rest) of lines "Mika: with a hat"."""
    pairs = []
    for line in filter(str.strip, (text or "").splitlines()):
        name, colon, rest = line.partition(":")
        if not (colon and name.strip() and rest.strip()):
            raise UserError(f"a {what} must be a line such as Mika: …, not {shown(line)}")
        pairs.append((name.strip(), rest.strip()))
    return pairs


def _strengths(name: str, text: str) -> dict[str, float]:
    """{"face_strength": 1.0} from "face 1, body 0.5"; "strength 2" is that of the whole subject."""
    values = {}
    for part in filter(None, re.split(r"\s*[,;]\s*", text)):
        match = re.fullmatch(r"(face|body|strength)\s+(\d[\d.e+-]{0,30})", part.strip())
        try:
            value = float(match[2]) if match else None
        except ValueError:  # "1.2.3"
            value = None
        if match is None or value is None:
            raise UserError(f"the strengths of {name} must be such as face 1, body 0.5, not {shown(part)}")
        values[match[1] if match[1] in STRENGTHS else f"{match[1]}_strength"] = value
    return values


# ---------------------------------------------------------------- images and files


def generate(
    pipe: Pipeline, story: Story, report: Report, reroll: int | None = None, again: bool = False
) -> None:
    """Make the missing images of a story, all of them, or one with another seed.

    Args:
      pipe: the model.
      story: the story.
      report: shows progress.
      reroll: index of the scene to make with another seed; None: make what is missing.
      again: make all images again.

    Raises:
      UserError: for mistakes in scenes.
    """
    if not story.pages:
        raise UserError("the story has no scenes: add one, such as Mika on the beach")
    for scene in range(len(story.pages)):
        check_size(pipe, story.options_of(scene))
    shows: dict[str, Any] = {
        "progress": report.progress, "preview": report.preview, "every": EVERY, "fast_preview": True,
    }  # fmt: skip
    if reroll is None:
        story.generate(pipe, again=again, **shows)
    else:
        story.reroll(pipe, reroll, **shows)


def load_story(path: str) -> Story:
    """A story from an uploaded zip or story.json.

    Raises:
      UserError: if it is not a story.
    """
    with uploads_named(path):
        return Story.load(path)


def export_story(story: Story, folder: Path) -> list[Path]:
    """Write a story as a zip, and its contact sheet and PDF, if it has images, beside it.

    Raises:
      UserError: if the story is empty.
    """
    if not story.pages and not story.characters:
        raise UserError("the story is empty")
    files: Mapping[str, bytes] = story_files(story)
    paths = [story.save(folder / "story.zip")]
    for name in ("contact_sheet.png", "story.pdf"):
        if name in files:
            write_bytes(folder / name, files[name])
            paths.append(folder / name)
    return paths
