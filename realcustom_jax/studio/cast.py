"""A story's characters without their layout: from uploads or descriptions, with a face box, as files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image, ImageDraw

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import write_bytes
from realcustom_jax.inputs.background import cut_out
from realcustom_jax.inputs.characters import Character, file_name
from realcustom_jax.inputs.reference_hints import reference_hints
from realcustom_jax.inputs.subjects import Box
from realcustom_jax.inputs.transforms import load_image, png_bytes
from realcustom_jax.outputs.samples import Samples
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.story.create import candidates
from realcustom_jax.story.story import Story
from realcustom_jax.studio.create import EVERY, LONGEST_PROMPT
from realcustom_jax.studio.fields import box_of, seed_of
from realcustom_jax.studio.jobs import Report
from realcustom_jax.studio.shown import enlarged

_Read = TypeVar("_Read")
# Candidates of a description.
CANDIDATES = 4


def save_character(
    story: Story, name: str, photo: str | None, word: str, description: str = "", face: str = "",
    strengths: tuple[float, float] = (1.0, 1.0),
) -> Character:  # fmt: skip
    """Add a character to a story, or replace the one of that name.

    Args:
      story: the story.
      name, word, description: see `Character`.
      photo: path of the picture.
      face: the face box as text.
      strengths: of the face and of the body.

    Raises:
      UserError: for values that `Character` refuses.
    """
    if not photo:
        raise UserError("a character needs a picture: upload one, or make candidates from a description")
    character = Character(
        name, Path(photo).read_bytes(), word, description or "", box_of(face), strengths[0], strengths[1]
    )
    story.add_character(character)
    return character


def remove_character(story: Story, name: str) -> None:
    """Remove a character.

    Raises:
      UserError: if there is none of that name, or a scene names it.
    """
    character = story.character(name)
    for number in range(len(story.pages)):
        if name in story.write(number).words:
            raise UserError(f"scene {number + 1} names {name}: change it first")
    story.characters.remove(character)


def make_candidates(pipe: Pipeline, word: str, description: str, seed: Any, report: Report) -> Samples:
    """Candidates for a character that does not exist yet.

    Raises:
      UserError: as `story.create.candidates`.
    """
    for name, text in (("word", word), ("description", description)):
        if len(text or "") > LONGEST_PROMPT:
            raise UserError(f"the {name} has {len(text)} characters; at most {LONGEST_PROMPT} are allowed")
    first = seed_of(seed)
    return candidates(
        pipe, word or "", description or "", [(first + k) % 2**64 for k in range(CANDIDATES)],
        progress=report.progress, preview=report.preview, every=EVERY, fast_preview=True,
    )  # fmt: skip


def hints_for(photo: str) -> str:
    """What may be hard to copy of a picture, one line each; "" if nothing."""
    return "\n".join(f"- {hint}" for hint in reference_hints(photo))


def cut_out_file(photo: str, folder: Path) -> Path:
    """The subject of a picture on white, as a file.

    Raises:
      UserError: as `cut_out`.
    """
    path = folder / "cut_out.png"
    write_bytes(path, png_bytes(cut_out(photo)))
    return path


def face_picture(photo: str, box: Box | None) -> Image.Image:
    """A picture to draw the face box on: enlarged if it is small, with the box if there is one."""
    original = Image.fromarray(load_image(photo))
    picture = enlarged(original)
    if box is not None:
        scale = picture.width / original.width
        corners = [side * scale for side in box]
        for grow, colour in ((0, "black"), (1, "white"), (2, "black")):
            left, top, right, bottom = (
                corners[0] - grow,
                corners[1] - grow,
                corners[2] + grow,
                corners[3] + grow,
            )
            if left < right and top < bottom:
                ImageDraw.Draw(picture).rectangle((left, top, right, bottom), outline=colour)
    return picture


def box_of_clicks(photo: str, first: tuple[float, float], second: tuple[float, float]) -> Box:
    """The face box between two clicks on `face_picture`, in pixels of the original.

    Raises:
      UserError: if it has no area.
    """
    original = Image.fromarray(load_image(photo))
    scale = enlarged(original).width / original.width
    (left, right), (top, bottom) = (
        sorted((a / scale, b / scale)) for a, b in zip(first, second, strict=True)
    )
    if right - left < 1 or bottom - top < 1:
        raise UserError("the two corners are at one place: click two opposite corners of the face")
    return round(left), round(top), round(right), round(bottom)


def load_character(path: str) -> Character:
    """A character from an uploaded zip.

    Raises:
      UserError: if it is not a character.
    """
    return read_upload(path, lambda: Character.load(path))


def export_character(story: Story, name: str, folder: Path) -> Path:
    """Write a character as a zip.

    Raises:
      UserError: if there is none of that name.
    """
    character = story.character(name)
    return character.save(folder / f"{file_name(character.name)}.zip")


def read_upload(path: str, read: Callable[[], _Read]) -> _Read:
    """Read an upload; errors name the file, not where it is on this machine."""
    try:
        return read()
    except UserError as error:
        raise UserError(str(error).replace(f"{Path(path).parent}/", "")) from None
