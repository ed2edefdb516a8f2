"""Characters: subjects with a name, a description and strengths, kept to be used again.

A character is saved as a folder, or as one zip with the same files:

  character.json   name, word, description, face boxes, strengths
  image_0.png …    the reference images
"""

import dataclasses
import json
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import check_local, reading, write_bytes
from realcustom_jax.common.folders import replacing_folder
from realcustom_jax.common.rules import is_list, shown
from realcustom_jax.common.zips import read_zip, zipped
from realcustom_jax.inputs.subjects import Box, Subject
from realcustom_jax.inputs.transforms import ImageLike, load_image, png_bytes, read_once

FILE = "character.json"
# Longest texts, so that a name fits a file name and a label.
LONGEST_NAME, LONGEST_TEXT = 40, 300
# Reference images of a character, at most.
MOST_IMAGES = 16


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Character:
    """A subject with a name. Prompts of a story use the name; the image shows the subject.

    Attributes:
      name: how prompts call it, such as "Mika".
      image: the reference image, as in `Subject`.
      word: the real word that it narrows, such as "cat", or a phrase, "dog with the pink hat".
      description: subject and key appearance, "a round orange cat with a green scarf". For people who read
        the character, and for `story.candidates`; prompts do not repeat it.
      face: box of the face on the image, as in `Subject`.
      face_strength: weight of the identity: factor on the visual tokens inside the face box.
      body_strength: weight of the rest; without a face box, of the whole subject.
      images: several images of the character, instead of `image`.

    Raises:
      UserError: for an empty or too long text, an unreadable image, too many images, or values that
        `Subject` refuses.
    """

    name: str
    image: ImageLike | None = None
    word: str = ""
    description: str = ""
    face: Box | Sequence[Box | None] | None = None
    face_strength: float = 1.0
    body_strength: float = 1.0
    images: Sequence[ImageLike] = ()

    def __post_init__(self):
        changes = {
            "name": check_name(self.name),
            "word": _text("word", self.word, LONGEST_TEXT),
            "description": _text("description", self.description, LONGEST_TEXT, empty=True),
            "image": read_once(self.image),
            "images": tuple(map(read_once, self.images)) if is_list(self.images) else self.images,
        }
        for name, value in changes.items():
            object.__setattr__(self, name, value)
        if is_list(self.images) and len(self.images) > MOST_IMAGES:
            raise UserError(f"a character has {len(self.images)} images; at most {MOST_IMAGES} are allowed")
        subject = self.subject(self.word)  # checks images, boxes and strengths
        for photo in subject.photos:
            load_image(photo)
        object.__setattr__(self, "face", subject.face)

    def subject(self, words: str | Sequence[str], **changes: Any) -> Subject:
        """The character as the subject of one prompt.

        Args:
          words: target words of the prompt.
          **changes: other values for fields of `Subject`, such as `body_strength`.
        """
        strengths = {"face_strength": self.face_strength, "body_strength": self.body_strength}
        return Subject(self.image, words, images=self.images, face=self.face, **{**strengths, **changes})

    @property
    def photos(self) -> tuple[ImageLike, ...]:
        """All reference images, one or more."""
        return tuple(self.images) if self.image is None else (self.image,)

    def save(self, path: str | os.PathLike) -> Path:
        """Write the character as a zip if the path ends in ".zip", else as a folder.

        A folder must be absent or empty; a zip is overwritten.

        Raises:
          UserError: if it cannot be written.
        """
        check_local(path, "character's path")
        path, files = Path(path), character_files(self)
        if path.suffix.lower() == ".zip":
            write_bytes(path, zipped(files))
        else:
            with replacing_folder(path, "the character's folder") as folder:
                for name, content in files.items():
                    (folder / name).write_bytes(content)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Character":
        """Read a character that `save` wrote, a folder or a zip.

        Raises:
          UserError: if it cannot be read, or is not a character.
        """
        check_local(path, "character's path")
        path = Path(path)
        if not path.is_dir():
            files = read_zip(path)
            return character_of(files.get(FILE), files.get, str(path))

        def read(name: str) -> bytes | None:
            with reading():
                return (path / name).read_bytes() if (path / name).is_file() else None

        return character_of(read(FILE), read, str(path))

    def __repr__(self) -> str:
        parts = [repr(self.name), f"word={self.word!r}"]
        parts += [f"images={len(self.images)}"] if self.images else []
        parts += [f"description={self.description!r}"] if self.description else []
        parts += [f"face={self.face!r}"] if self.face else []
        for name in ("face_strength", "body_strength"):
            parts += [f"{name}={getattr(self, name):g}"] if getattr(self, name) != 1 else []
        return f"Character({', '.join(parts)})"


def check_name(name: Any) -> str:
    """A character's name, with single spaces.

    Raises:
      UserError: for text that is empty, too long, or has no letter.
    """
    name = _text("name", name, LONGEST_NAME)
    if not re.search(r"[^\W\d_]", name):
        raise UserError(f"a character's name needs a letter: {shown(name)}")
    return name


def file_name(name: str) -> str:
    """A name as the name of a file: letters, digits, "-" and "_" stay, anything else becomes "_"."""
    return re.sub(r"[^\w-]+", "_", name).strip("_") or "character"


def character_files(character: Character) -> dict[str, bytes]:
    """The files of a character, {name: content}."""
    images = [_image_name(number) for number in range(len(character.photos))]
    plain = ("name", "word", "description", "face", "face_strength", "body_strength")
    values = {**{name: getattr(character, name) for name in plain}, "images": images}
    files = {FILE: (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()}
    # Encoded anew, without the metadata of the photo, which may say where it was taken.
    pictures = [Image.fromarray(load_image(photo)) for photo in character.photos]
    return files | {name: png_bytes(picture) for name, picture in zip(images, pictures, strict=True)}


def character_of(text: bytes | None, read: Callable[[str], bytes | None], source: str) -> Character:
    """A character from its files.

    Args:
      text: content of character.json; None if it is missing.
      read: gives the content of another file of the character, or None.
      source: where it comes from, for errors.

    Raises:
      UserError: if it is not a character.
    """
    kinds = {"name": str, "word": str, "description": str, "images": list}
    try:
        values = None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{source}: {FILE} is not valid JSON") from None
    if not isinstance(values, Mapping) or any(type(values.get(k)) is not kind for k, kind in kinds.items()):
        missing = f"there is no {FILE}" if text is None else f"{FILE} needs {', '.join(kinds)}"
        raise UserError(f"{source} is not a character: {missing}")
    if len(values["images"]) > MOST_IMAGES:
        raise UserError(
            f"{source}: a character has at most {MOST_IMAGES} images, not {len(values['images'])}"
        )
    images = []
    for name in values["images"]:
        # Only files beside character.json: the file may come from anyone.
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
            raise UserError(f"{source}: the image {shown(name)} is not a file of the character")
        content = read(name)
        if content is None:
            raise UserError(f"{source}: the image {shown(name)} is missing")
        images.append(content)
    rest = {name: values[name] for name in ("face", "face_strength", "body_strength") if name in values}
    one = {"image": images[0]} if len(images) == 1 else {"images": images}
    texts = {name: values[name] for name in ("name", "word", "description")}
    try:
        return Character(**texts, **one, **rest)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _image_name(number: int) -> str:
    return f"image_{number}.png"


def _text(what: str, text: Any, longest: int, empty: bool = False) -> str:
    """A text in one line, normalised to NFC."""
    if not isinstance(text, str):
        raise UserError(f"a character's {what} must be a text, not {shown(text)}")
    text = " ".join(unicodedata.normalize("NFC", text).split())
    if not text and not empty:
        raise UserError(f"a character's {what} is empty")
    if len(text) > longest:
        raise UserError(f"a character's {what} has {len(text)} characters; at most {longest} are allowed")
    if not text.isprintable() or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError(f"a character's {what} holds characters that cannot be shown: {text[:40]!a}")
    return text
