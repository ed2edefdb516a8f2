"""A story's characters without their layout: from uploads or descriptions, with a face box, as files."""

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import reading, write_bytes
from realcustom_jax.inputs.background import cut_out
from realcustom_jax.inputs.characters import Character, check_name, file_name
from realcustom_jax.inputs.face_detection import find_face
from realcustom_jax.inputs.reference_hints import reference_hints
from realcustom_jax.inputs.subjects import Box
from realcustom_jax.inputs.transforms import load_image, png_bytes
from realcustom_jax.outputs.samples import Samples
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.story.create import candidates
from realcustom_jax.story.story import Story
from realcustom_jax.studio.create import EVERY, LONGEST_PROMPT
from realcustom_jax.studio.fields import box_of, seed_of, uploads_named
from realcustom_jax.studio.jobs import Report
from realcustom_jax.studio.shown import enlarged

# Candidates of a description.
CANDIDATES = 4
# Longer side, in pixels, of the picture on which a face box is drawn.
_LARGEST = 1024


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
    with uploads_named(photo), reading():
        content = Path(photo).read_bytes()
    character = Character(name, content, word, description or "", box_of(face), *strengths)
    story.add_character(character)
    return character


def remove_character(story: Story, name: str) -> None:
    """Remove a character.

    Raises:
      UserError: if there is none of that name, or a scene names it.
    """
    character = story.character(check_name(name))
    for number in range(len(story.pages)):
        if character.name in story.write(number).words:
            raise UserError(f"scene {number + 1} names {character.name}: change it first")
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
    with uploads_named(photo):
        return "\n".join(f"- {hint}" for hint in reference_hints(photo))


def cut_out_file(photo: str, folder: Path) -> Path:
    """The subject of a picture on white, as a file.

    Raises:
      UserError: as `cut_out`.
    """
    with uploads_named(photo):
        content = png_bytes(cut_out(photo))
    path = folder / "cut_out.png"
    write_bytes(path, content)
    return path


def face_of(photo: str) -> Box:
    """The box of the face on a picture.

    Raises:
      UserError: if none is found.
    """
    with uploads_named(photo):
        box = find_face(photo)
    if box is None:
        raise UserError("no face is found: draw the box, or leave it empty for one strength")
    return box


def face_picture(photo: str, box: Box | None) -> Image.Image:
    """A picture to draw the face box on, of a size that suits a page, with the box if there is one."""
    picture, scales = _drawn(photo)
    if box is not None:
        # Beyond the edges nothing is drawn, and PIL takes no infinite corners.
        limits = (*picture.size, *picture.size)
        corners = [
            min(max(side * scale, -9), limit + 9)
            for side, scale, limit in zip(box, (*scales, *scales), limits, strict=True)
        ]
        for grow, colour in ((0, "black"), (1, "white"), (2, "black")):
            left, top, right, bottom = (
                c + d for c, d in zip(corners, (-grow, -grow, grow, grow), strict=True)
            )
            if left < right and top < bottom:
                ImageDraw.Draw(picture).rectangle((left, top, right, bottom), outline=colour)
    return picture


def box_of_clicks(photo: str, first: tuple[float, float], second: tuple[float, float]) -> Box:
    """The face box between two clicks on `face_picture`, in pixels of the original.

    Raises:
      UserError: if it has no area.
    """
    _, scales = _drawn(photo)
    (left, right), (top, bottom) = (
        sorted((a / scale, b / scale)) for a, b, scale in zip(first, second, scales, strict=True)
    )
    if right - left < 1 or bottom - top < 1:
        raise UserError("the two corners are at one place: click two opposite corners of the face")
    return round(left), round(top), round(right), round(bottom)


def _drawn(photo: str) -> tuple[Image.Image, tuple[float, float]]:
    """A picture, enlarged if it is small and shrunk if it is large, and its scales along x and y."""
    with uploads_named(photo):
        original = Image.fromarray(load_image(photo))
    picture = enlarged(original)
    picture.thumbnail((_LARGEST, _LARGEST))
    return picture, (picture.width / original.width, picture.height / original.height)


def load_character(path: str) -> Character:
    """A character from an uploaded zip.

    Raises:
      UserError: if it is not a character.
    """
    with uploads_named(path):
        return Character.load(path)


def export_character(story: Story, name: str, folder: Path) -> Path:
    """Write a character as a zip.

    Raises:
      UserError: if there is none of that name.
    """
    character = story.character(check_name(name))
    return character.save(folder / f"{file_name(character.name)}.zip")
