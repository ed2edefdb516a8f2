"""Saves and reads stories, as a folder or as one zip:

story.json                     scenes, seeds, style, options, the model, and where each image ran
characters/NAME/               see `Character.save`
scenes/scene_1.png …           the images; each file holds its own record, for `sample --from`
contact_sheet.png, story.pdf   all scenes with their prompts
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import check_local, make_folder, reading, write_bytes
from realcustom_jax.common.rules import shown
from realcustom_jax.common.zips import read_zip, unpacked_limit, zipped
from realcustom_jax.inputs.characters import FILE as CHARACTER_FILE
from realcustom_jax.inputs.characters import Character, character_files, character_of, file_name
from realcustom_jax.inputs.target_words import phrases_of
from realcustom_jax.inputs.transforms import load_image, png_bytes, stored_size
from realcustom_jax.outputs.records import read_record
from realcustom_jax.outputs.samples import Samples
from realcustom_jax.story.sheets import contact_sheet, story_pdf

if TYPE_CHECKING:
    from realcustom_jax.story.story import Story

FILE = "story.json"
_VERSION = 1
# Bytes of all images of a story: 350 of SDXL.
_MOST_UNPACKED = 2**30
_KEYS = {
    "version": int,
    "characters": list,
    "scenes": list,
    "seed": int,
    "style": str,
    "negative_prompt": str,
    "same_seed": bool,
    "options": dict,
    "model": dict,
}


def write_story(files: Mapping[str, bytes], path: Path) -> None:
    """Write the files of a story as a zip if the path ends in ".zip", else into a folder.

    An older story in the folder is replaced.

    Raises:
      UserError: if it cannot be written, or if the folder holds other files than a story.
    """
    check_local(path, "story's path")
    if path.suffix.lower() == ".zip":
        write_bytes(path, zipped(files))
        return
    make_folder(path, "story's folder")
    if not (path / FILE).exists() and any(path.iterdir()):
        raise UserError(f"the story's folder {str(path)!r} holds other files, and no {FILE}")
    for name, content in files.items():
        if name != FILE:
            write_bytes(path / name, content)
    # Last: until then, the folder holds the older story.
    write_bytes(path / FILE, files[FILE])
    for old in (*path.glob("scenes/scene_*.png"), *path.glob("characters/*/*")):
        if old.relative_to(path).as_posix() not in files and old.is_file():
            old.unlink()


def story_files(story: "Story") -> dict[str, bytes]:
    """The files of a story, {name: content}."""
    files: dict[str, bytes] = {}
    folders = _folders(story)
    for character in story.characters:
        folder = folders[character.name]
        files |= {f"{folder}/{name}": content for name, content in character_files(character).items()}
    scenes = []
    for number, page in enumerate(story.pages, 1):
        values = page.scene.values()
        if page.place is not None:
            values["place"] = page.place.values()
        if page.samples is not None and story.is_made(number - 1):
            values["image"] = f"scenes/scene_{number}.png"
            files[values["image"]] = page.samples.png_files()[0]
        scenes.append(values)
    if any("image" in values for values in scenes):
        files["contact_sheet.png"] = png_bytes(contact_sheet(story))
        files["story.pdf"] = story_pdf(story)
    values = {
        "version": _VERSION, "characters": list(folders.values()), "scenes": scenes, "seed": story.seed,
        "style": story.style, "negative_prompt": story.negative_prompt, "same_seed": story.same_seed,
        "options": story.options, "model": story.model,
    }  # fmt: skip
    files[FILE] = (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
    return files


@dataclasses.dataclass(frozen=True)
class StoryFiles:
    """The files of a story that is read.

    Attributes:
      values: the content of story.json, with the defaults of missing keys.
      read: gives the content of another file of the story, or None.
      source: where it comes from, for errors.
    """

    values: Mapping[str, Any]
    read: Callable[[str], bytes | None]
    source: str

    @classmethod
    def open(cls, path: Path) -> "StoryFiles":
        """Open the folder or zip that `write_story` wrote, or a story.json alone.

        Raises:
          UserError: if it cannot be read or is not a story.
        """
        check_local(path, "story's path")
        if path.suffix.lower() == ".zip" and path.is_file():
            files = read_zip(path)
            return cls(_parse(files.get(FILE), str(path)), files.get, str(path))
        folder, name = (path, FILE) if path.is_dir() else (path.parent, path.name)

        def read(inner: str) -> bytes | None:
            with reading():
                file = folder / inner
                return file.read_bytes() if file.is_file() else None

        source = str(folder / name)
        return cls(_parse(read(name), source), read, source)

    def characters(self) -> list[Character]:
        """The characters of the story."""
        characters = []
        for name in self.values["characters"]:
            _check_inside(name, self.source)
            text = self.read(f"{name}/{CHARACTER_FILE}")
            read = functools.partial(lambda folder, file: self.read(f"{folder}/{file}"), name)
            characters.append(character_of(text, read, f"{self.source}: {name}"))
        return characters

    def check_images(self) -> None:
        """Check, before any image is decoded, that all of them fit in memory.

        Raises:
          UserError: if they have more pixels than images of so many bytes can have.
        """
        packed = unpacked = 0
        for number, values in enumerate(self.values["scenes"], 1):
            if isinstance(values, Mapping) and "image" in values and "place" in values:
                content = self._image(values["image"], f"{self.source}, scene {number}")
                height, width = stored_size(content)
                packed, unpacked = packed + len(content), unpacked + 3 * height * width
        if unpacked > min(_MOST_UNPACKED, unpacked_limit(packed)):
            raise UserError(
                f"{self.source}: its images have {packed} bytes and unpack to {unpacked}, which is too much"
            )

    def _image(self, name: Any, where: str) -> bytes:
        """The file of a scene's image."""
        _check_inside(name, where)
        content = self.read(name)
        if content is None:
            raise UserError(f"{where}: the image {shown(name)} is missing")
        return content

    def samples(self, name: Any, where: str) -> Samples:
        """The image of a scene, with its record and without masks.

        Args:
          name: its file, as story.json names it.
          where: the scene, for errors.
        """
        content = self._image(name, where)
        record = read_record(content, f"{where}: {name}")
        image = load_image(content)
        words = [[phrases_of(record.prompt, subject.words) for subject in record.subjects]]
        masks = np.zeros((1, 0, len(record.subjects), 1, 1), np.float32)
        return Samples(image[None], masks, words, (record,))


def _parse(text: bytes | None, source: str) -> dict[str, Any]:
    """The content of story.json with the defaults of missing keys, and types checked."""
    if text is None:
        raise UserError(f"{source} holds no story: there is no {FILE}")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{source} is not valid JSON") from None
    if not isinstance(values, dict) or "scenes" not in values:
        raise UserError(f"{source} is not a story: it needs a list of scenes")
    unknown = [key for key in values if key not in _KEYS]
    if unknown:
        raise UserError(f"{source} has the unknown key {shown(unknown[0])}; known: {', '.join(_KEYS)}")
    for key, kind in _KEYS.items():
        if key in values and type(values[key]) is not kind:
            raise UserError(f"{source}: {key} must be {kind.__name__}, not {shown(values[key])}")
    if values.get("version", _VERSION) > _VERSION:
        raise UserError(f"{source} is of version {values['version']}; this package reads up to {_VERSION}")
    return {key: values.get(key, kind()) for key, kind in _KEYS.items()}


def _check_inside(name: Any, source: str) -> None:
    """Raise `UserError` unless a name is a relative path that stays in its folder."""
    parts = name.split("/") if isinstance(name, str) else [".."]
    # Longer names than 255 are no file's.
    if any(
        part in ("", ".", "..") or len(part) > 255 or "\\" in part or ":" in part or "\0" in part
        for part in parts
    ):
        raise UserError(f"{source}: {shown(name)} is not the name of a file of the story")


def _folders(story: "Story") -> dict[str, str]:
    """{name of a character: its folder}, with a number where two names give one folder."""
    folders: dict[str, str] = {}
    for character in story.characters:
        stem = f"characters/{file_name(character.name)}"
        folder, number = stem, 2
        while folder.lower() in {other.lower() for other in folders.values()}:
            folder, number = f"{stem}_{number}", number + 1
        folders[character.name] = folder
    return folders
