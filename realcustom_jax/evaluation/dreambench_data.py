"""DreamBench on disk: the folder of google/dreambooth, and the images that it asks for."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from realcustom_jax.common.errors import UserError

PROMPTS = "prompts_and_classes.txt"
# The classes that get the second list of prompts, with clothes in place of floating in milk.
LIVE = frozenset({"cat", "dog"})

_PHOTOS = (".jpg", ".jpeg", ".png", ".webp")
_TEMPLATE = re.compile(r"""^\s*['"](?P<text>.*)['"]\.format\(""")
_WORD = "{0} {1}"  # the invented token of other methods, and the class


@dataclasses.dataclass(frozen=True)
class Prompts:
    """What `prompts_and_classes.txt` holds.

    Attributes:
      classes: {subject: its real word or phrase}.
      objects, live: templates with "{}" for the word, without the invented token: we narrow the word itself.
    """

    classes: Mapping[str, str]
    objects: tuple[str, ...]
    live: tuple[str, ...]

    def of(self, subject: str) -> list[str]:
        """The prompts of a subject."""
        word = self.classes[subject]
        return [template.format(word) for template in (self.live if word in LIVE else self.objects)]


@dataclasses.dataclass(frozen=True)
class Case:
    """One image of the benchmark.

    Attributes:
      subject: its folder's name.
      word: that the subject narrows.
      number: of the prompt, from 0.
      prompt: with the word.
      seed: of the noise.
      photos: all reference photos; the first conditions the image, all are compared with.
    """

    subject: str
    word: str
    number: int
    prompt: str
    seed: int
    photos: tuple[Path, ...]

    @property
    def name(self) -> str:
        """Path of its files in the results, without an ending."""
        return f"{self.subject}/{self.number:02d}_{self.seed}"


def read_prompts(path: Path) -> Prompts:
    """Parse the file.

    Raises:
      UserError: when it is missing or lacks one of its three lists.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    classes: dict[str, str] = {}
    lists: dict[str, list[str]] = {"object prompts": [], "live subject prompts": []}
    section = ""
    for line in lines:
        title = line.strip().rstrip(":").lower()
        if title in ("classes", "prompts", *lists):
            section = title
        elif section == "classes" and "," in line and title != "subject_name,class":
            subject, word = line.split(",", 1)
            classes[subject.strip()] = word.strip()
        elif section in lists and (match := _TEMPLATE.match(line)):
            lists[section].append(_without_token(match["text"], path))
    for name, found in {"classes": classes, **lists}.items():
        if not found:
            raise UserError(f"{path} has no {name}; expected is the file of google/dreambooth")
    return Prompts(classes, *(tuple(found) for found in lists.values()))


def _without_token(template: str, path: Path) -> str:
    if template.count(_WORD) != 1 or template.count("{") != 2:
        raise UserError(f"{path}: the prompt {template!r} must have {_WORD!r} once")
    return template.replace(_WORD, "{}")


def read_cases(folder: Path, subjects: Sequence[str] | None, seeds: Sequence[int]) -> list[Case]:
    """All images that the benchmark asks for: 30 subjects × 25 prompts × the seeds.

    Args:
      folder: with the prompts' file and a folder of photos for each subject; or the one above, whose
        `dataset/` is such a one.
      subjects: that are wanted; None for all.
      seeds: of the noise, for every prompt the same.

    Raises:
      UserError: for a missing file, an unknown subject, or a subject without photos.
    """
    if (folder / "dataset" / PROMPTS).is_file():
        folder = folder / "dataset"
    prompts = read_prompts(folder / PROMPTS)
    wanted = list(prompts.classes) if subjects is None else list(subjects)
    cases = []
    for subject in wanted:
        if subject not in prompts.classes:
            known = ", ".join(prompts.classes)
            raise UserError(f"DreamBench has no subject {subject!r}; there are: {known}")
        photos = sorted(path for path in (folder / subject).glob("*") if path.suffix.lower() in _PHOTOS)
        if not photos:
            raise UserError(f"{folder / subject} has no photos of the subject {subject!r}")
        word = prompts.classes[subject]
        for number, prompt in enumerate(prompts.of(subject)):
            cases += [Case(subject, word, number, prompt, seed, tuple(photos)) for seed in seeds]
    return cases
