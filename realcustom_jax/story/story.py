"""`Story`: ordered scenes, their images, and the requests that make them."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.progress import ProgressFunction
from realcustom_jax.common.rules import is_list, shown
from realcustom_jax.inputs.characters import Character
from realcustom_jax.inputs.names import Written, write_words
from realcustom_jax.inputs.requests import SEED, Request
from realcustom_jax.outputs.samples import Samples
from realcustom_jax.outputs.watching import Preview
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.story.batches import MOST_SUBJECTS, Place
from realcustom_jax.story.files import StoryFiles, story_files, write_story
from realcustom_jax.story.page import Made, Page
from realcustom_jax.story.run import run_scenes
from realcustom_jax.story.scene import Scene, check_text

# A re-roll moves the seed so far that it does not meet the seeds of other scenes.
_REROLL = 1000
MAX_SCENES = 200


class Story:
    """Ordered scenes whose prompts name characters.

    A change to the scenes or characters keeps the images of all scenes that it does not touch: `generate`
    makes only those that are missing.

    Attributes:
      characters: the characters, with different names.
      seed: seed of the first scene; the others follow, unless `same_seed`.
      style: text at the end of every prompt, "watercolour", for one look.
      negative_prompt: what no image should show.
      same_seed: whether new scenes get the story's seed, which makes layouts alike.
      options: fields of `SamplingOptions` for all scenes.
      pages: the scenes in order, with their images.
      model: arguments of `load` of the model that made the images; empty if unknown.
    """

    def __init__(
        self,
        characters: Sequence[Character] = (),
        scenes: Iterable[str | Scene] = (),
        *,
        seed: int = 0,
        style: str = "",
        negative_prompt: str = "",
        same_seed: bool = False,
        options: Mapping[str, Any] | None = None,
    ):
        """Make a story. Raises `UserError` for wrong types, two characters of one name, and unknown names."""
        self.seed = SEED.check("the story's seed", seed)
        for name, text in (("style", style), ("negative_prompt", negative_prompt)):
            check_text(f"the story's {name}", text)
        if not isinstance(same_seed, bool):
            raise UserError(f"same_seed must be True or False, not {shown(same_seed)}")
        if options is not None and not isinstance(options, Mapping):
            raise UserError(f"the story's options must be a dict, not {shown(options)}")
        self.style, self.negative_prompt, self.same_seed = style.strip(), negative_prompt, same_seed
        self.options = dict(options or {})
        self.model: dict[str, Any] = {}
        self.characters: list[Character] = []
        self.pages: list[Page] = []
        if isinstance(scenes, str) or not isinstance(scenes, Iterable):
            raise UserError(f"scenes must be a list of prompts, not {shown(scenes)}")
        if not is_list(characters):
            raise UserError(f"characters must be a list of rc.Character, not {shown(characters)}")
        for character in characters:
            self.add_character(character)
        for scene in scenes:
            self.add(scene)

    @property
    def scenes(self) -> list[Scene]:
        """The scenes in order."""
        return [page.scene for page in self.pages]

    def __repr__(self) -> str:
        names = ", ".join(character.name for character in self.characters) or "no characters"
        made = sum(map(self.is_made, range(len(self.pages))))
        lines = [f"Story({names}; {len(self.pages)} scenes, {made} made)"]
        lines += [f"  {i}: {scene.prompt[:60]!r}, seed {scene.seed}" for i, scene in enumerate(self.scenes)]
        return "\n".join(lines[:20])

    # ---------------------------------------------------------------- editing

    def add_character(self, character: Character) -> None:
        """Add a character, or replace the one of that name.

        Raises:
          UserError: if it is not a character, or if its name differs from another name by case alone.
        """
        if not isinstance(character, Character):
            raise UserError(f"a character must be rc.Character, not {type(character).__name__}")
        others = [other for other in self.characters if other.name != character.name]
        for other in others:
            if other.name.lower() == character.name.lower():
                raise UserError(f"two characters are called {other.name} and {character.name}")
        if len(others) < len(self.characters):
            place = [other.name for other in self.characters].index(character.name)
            self.characters[place] = character
        else:
            self.characters.append(character)

    def character(self, name: str) -> Character:
        """The character of a name.

        Raises:
          UserError: if there is none.
        """
        for character in self.characters:
            if character.name == name:
                return character
        names = ", ".join(character.name for character in self.characters) or "none"
        raise UserError(f"the story has no character {shown(name)}; it has: {names}")

    def add(self, scene: str | Scene, at: int | None = None) -> int:
        """Insert a scene, at the end by default, and give it a seed if it has none.

        Returns:
          Its index.

        Raises:
          UserError: for another type, or too many scenes.
        """
        scene = Scene(scene) if isinstance(scene, str) else scene
        if not isinstance(scene, Scene):
            raise UserError(f"a scene must be a prompt or a Scene, not {shown(scene)}")
        if len(self.pages) >= MAX_SCENES:
            raise UserError(f"a story has at most {MAX_SCENES} scenes")
        scene.check_names([character.name for character in self.characters])
        if scene.seed is None:
            scene = dataclasses.replace(scene, seed=self._next_seed())
        at = len(self.pages) if at is None else self._index(at, len(self.pages) + 1)
        self.pages.insert(at, Page(scene))
        return at

    def change(self, scene: int, **changes: Any) -> None:
        """Change fields of a scene; its image is made again by `generate`.

        Raises:
          UserError: for an unknown scene, field or value.
        """
        at = self._index(scene)
        known = [field.name for field in dataclasses.fields(Scene)]
        for name in changes:
            if name not in known:
                raise UserError(f"a scene has no field {shown(name)}; it has: {', '.join(known)}")
        page = self.pages[at]
        changed = dataclasses.replace(page.scene, **changes)
        changed.check_names([character.name for character in self.characters])
        if changed != page.scene:
            self.pages[at] = dataclasses.replace(page, scene=changed, place=None)

    def move(self, scene: int, to: int) -> None:
        """Move a scene, with its image, to another place."""
        at, to = self._index(scene), self._index(to)
        self.pages.insert(to, self.pages.pop(at))

    def remove(self, scene: int) -> None:
        """Remove a scene and its image."""
        del self.pages[self._index(scene)]

    def put(self, old: Page, new: Page) -> None:
        """Put a page in the place of another one; nothing happens if that was removed or changed."""
        at = next((i for i, page in enumerate(self.pages) if page is old), None)
        if at is not None:
            self.pages[at] = new

    def _index(self, scene: Any, count: int | None = None) -> int:
        """The index of a scene, from 0, checked."""
        count = len(self.pages) if count is None else count
        if isinstance(scene, bool) or not isinstance(scene, int) or not 0 <= scene < count:
            raise UserError(f"there is no scene {shown(scene)}; the story has {len(self.pages)}, from 0")
        return scene

    def _next_seed(self) -> int:
        """The story's seed, or the first after it that no scene has."""
        used = set() if self.same_seed else {scene.seed for scene in self.scenes}
        return next(seed for k in range(MAX_SCENES + 1) if (seed := (self.seed + k) % 2**64) not in used)

    # ---------------------------------------------------------------- generating

    def write(self, scene: int) -> Written:
        """The prompt of a scene for the model, with words instead of names, and the words of each character.

        Raises:
          UserError: for an unknown scene, or a wish for a character that it does not name.
        """
        own = self.pages[self._index(scene)].scene
        return write_words(own.prompt, self.characters, own.wishes, self.style)

    def request(self, scene: int) -> Request:
        """The request of a scene.

        Raises:
          UserError: as `write`; also for a scene without text, or with too many characters.
        """
        own, written = self.pages[self._index(scene)].scene, self.write(scene)
        if not own.prompt.strip():
            raise UserError(f"scene {scene} has no prompt")
        if len(written.words) > MOST_SUBJECTS:
            raise UserError(
                f"scene {scene} names {len(written.words)} characters; at most {MOST_SUBJECTS} are allowed"
            )
        subjects = tuple(
            self.character(name).subject(words, **own.strengths.get(name, {}))
            for name, words in written.words.items()
        )
        negative = self.negative_prompt if own.negative_prompt is None else own.negative_prompt
        return Request(written.prompt, subjects, self.seed if own.seed is None else own.seed, negative)

    def options_of(self, scene: int) -> dict[str, Any]:
        """The sampling options of a scene: the story's, with its own size."""
        own = self.pages[self._index(scene)].scene
        size = {name: value for name in ("height", "width") if (value := getattr(own, name)) is not None}
        return {**self.options, **size}

    def is_made(self, scene: int) -> bool:
        """Whether a scene has an image that is up to date."""
        page = self.pages[self._index(scene)]
        return page.samples is not None and page.made == self.made_from(scene)

    def made_from(self, scene: int) -> Made:
        """Inputs of a scene's image."""
        # Characters are compared by identity, so a replaced one makes its scenes again.
        cast = tuple(self.character(name) for name in self.write(scene).words)
        return Made(self.pages[scene].scene, cast, self.style, self.negative_prompt, dict(self.options))

    def generate(
        self,
        pipe: Pipeline,
        *,
        again: bool = False,
        progress: bool | ProgressFunction | None = None,
        preview: Preview | None = None,
        every: int | None = None,
        fast_preview: bool = False,
    ) -> list[Samples]:
        """Make the images that are missing; scenes of one size run in one batch.

        If a progress function ends the work, the story keeps the images of the batches before.

        Args:
          pipe: the model.
          again: make all images again, to the same pixels.
          progress, preview, every, fast_preview: as in `sample`; a preview has the scenes of one batch, in
            order.

        Returns:
          One result per scene.

        Raises:
          UserError: as `sample`. Mistakes in requests are found before any image is made.
        """
        missing = [i for i in range(len(self.pages)) if again or not self.is_made(i)]
        run_scenes(self, pipe, missing, progress, preview, every, fast_preview)
        return [page.samples for page in self.pages if page.samples is not None]

    def reroll(
        self,
        pipe: Pipeline,
        scene: int,
        seed: int | None = None,
        *,
        progress: bool | ProgressFunction | None = None,
        preview: Preview | None = None,
        every: int | None = None,
        fast_preview: bool = False,
    ) -> Samples:
        """Make one scene again with another seed; the others keep their pixels.

        Args:
          pipe: the model.
          scene: index of the scene, from 0.
          seed: default: the scene's seed + 1000.
          progress, preview, every, fast_preview: as in `sample`.

        Raises:
          UserError: as `sample`; the scene keeps its image then.
        """
        at = self._index(scene)
        before = self.pages[at]
        new = ((before.scene.seed or 0) + _REROLL) % 2**64 if seed is None else SEED.check("seed", seed)
        self.change(at, seed=new)
        asked = self.pages[at]
        try:
            (page,) = run_scenes(self, pipe, [at], progress, preview, every, fast_preview)
        except BaseException:
            self.put(asked, before)
            raise
        assert page.samples is not None  # made above
        return page.samples

    # ---------------------------------------------------------------- using results

    def restore(self, scene: int, samples: Samples, place: Place) -> None:
        """Give a scene an image that was made before, by the same request."""
        at = self._index(scene)
        self.pages[at] = Page(self.pages[at].scene, samples, place, self.made_from(at))

    def use_as_reference(self, scene: int, name: str, word: str, **fields: Any) -> Character:
        """A new character from the image of a scene, for the next round with other words.

        Args:
          scene: index of a scene that has an image.
          name: name of the character.
          word: its word or phrase, such as "dog with the pink hat".
          **fields: other fields of `Character`.

        Raises:
          UserError: if the scene has no image.
        """
        samples = self.pages[self._index(scene)].samples
        if samples is None:
            raise UserError(f"scene {scene} has no image yet")
        return Character(name, samples.pil()[0], word, **fields)

    # ---------------------------------------------------------------- files

    def save(self, path: str | os.PathLike) -> Path:
        """Write the story as a zip if the path ends in ".zip", else into a folder; see `files`.

        A story that is there is replaced.

        Raises:
          UserError: if it cannot be written, or if the folder holds other files than a story.
        """
        write_story(story_files(self), Path(path))
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Story":
        """Read a story: the folder or zip that `save` wrote, or a story.json alone.

        A story.json written by hand needs only "scenes", and "characters" where prompts name some; folders of
        characters are relative to it.

        Raises:
          UserError: if it cannot be read or is not a story.
        """
        files = StoryFiles.open(Path(path))
        files.check_images()
        plain = ("seed", "style", "negative_prompt", "same_seed", "options")
        characters = files.characters()
        try:
            story = cls(characters, **{name: files.values[name] for name in plain})
        except UserError as error:
            raise UserError(f"{files.source}: {error}") from None
        story.model = dict(files.values["model"])
        for number, values in enumerate(files.values["scenes"], 1):
            story._read_scene(files, values, f"{files.source}, scene {number}")
        return story

    def _read_scene(self, files: StoryFiles, values: Any, where: str) -> None:
        """Add a scene of story.json, with its image if there is one."""
        values = {"prompt": values} if isinstance(values, str) else values
        if not isinstance(values, Mapping):
            raise UserError(f"{where}: a scene must be a prompt or a JSON object, not {shown(values)}")
        rest = {key: value for key, value in values.items() if key not in ("place", "image")}
        scene = Scene.from_values(rest, where)
        try:
            at = self.add(scene)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if "place" in values:
            place = Place.from_values(values["place"], where)
            self.pages[at] = Page(self.pages[at].scene, None, place)
            if "image" in values:
                self.restore(at, files.samples(values["image"], where), place)
