"""DreamBench on disk: the folder of google/dreambooth, and the cases of the benchmark."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from realcustom_jax.common.errors import UserError

PROMPTS = "prompts_and_classes.txt"
# The classes with the second list of prompts, which dresses pets instead of floating them in milk.
LIVE = frozenset({"cat", "dog"})

_PHOTOS = (".jpg", ".jpeg", ".png", ".webp")
# Prompts are lines of Python: 'a {0} {1} in the jungle'.format(unique_token, class_token),
_TEMPLATE = re.compile(r"""^\s*['"](?P<text>.*)['"]\.format\(""")
_WORD = "{0} {1}"  # DreamBooth's unique token, and the class


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The contents of `prompts_and_classes.txt`.

    Attributes:
      classes: {subject: its class, a real word or phrase}.
      objects, live: prompt templates with "{}" for the word. DreamBooth's unique token is removed, because
        RealCustom narrows the real word itself.
    """

    classes: Mapping[str, str]
    objects: tuple[str, ...]
    live: tuple[str, ...]

    def for_subject(self, subject: str) -> list[str]:
        """Prompts of a subject."""
        word = self.classes[subject]
        return [template.format(word) for template in (self.live if word in LIVE else self.objects)]


@dataclasses.dataclass(frozen=True)
class Case:
    """One image of the benchmark.

    Attributes:
      subject: name of the subject's folder.
      word: target word.
      number: number of the prompt, from 0.
      prompt: the prompt with the word.
      seed: seed of the noise.
      photos: all photos of the subject. The first one conditions the image; the image is compared with all.
    """

    subject: str
    word: str
    number: int
    prompt: str
    seed: int
    photos: tuple[Path, ...]

    @property
    def name(self) -> str:
        """Path of the case's files in the results, without extension."""
        return f"{self.subject}/{self.number:02d}_{self.seed}"


def read_prompts(path: Path) -> Prompts:
    """Parse `prompts_and_classes.txt`.

    Raises:
      UserError: the file is missing or lacks one of its three lists.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    classes: dict[str, str] = {}
    lists: dict[str, list[str]] = {"object prompts": [], "live subject prompts": []}
    section = ""
    # The file has titles ("Classes", "Object Prompts", …), and Python code around the prompts.
    for line in lines:
        title = line.strip().rstrip(":").lower()
        if title in ("classes", "prompts", *lists):
            section = title
        elif section == "classes" and "," in line and title != "subject_name,class":
            subject, word = line.split(",", 1)
            classes[subject.strip()] = word.strip()
        elif section in lists and (match := _TEMPLATE.match(line)):
            lists[section].append(_without_token(match["text"], path))
    for name, entries in {"classes": classes, **lists}.items():
        if not entries:
            raise UserError(f"{path} has no {name}; it must be the file of google/dreambooth")
    return Prompts(classes, *(tuple(entries) for entries in lists.values()))


def _without_token(template: str, path: Path) -> str:
    """The template with "{}" for the word, without the unique token."""
    if template.count(_WORD) != 1 or template.count("{") != 2:
        raise UserError(f"{path}: the prompt {template!r} must have {_WORD!r} once")
    return template.replace(_WORD, "{}")


def read_cases(folder: Path, subjects: Sequence[str] | None, seeds: Sequence[int]) -> list[Case]:
    """All cases of the benchmark: 30 subjects × 25 prompts × the seeds.

    Args:
      folder: folder with the prompts file and one folder of photos per subject, or the repository's root,
        which has it in `dataset/`.
      subjects: names of the subjects; None for all.
      seeds: seeds of the noise, the same for every prompt.

    Raises:
      UserError: a file is missing, a subject is unknown, or a subject has no photos.
    """
    if (folder / "dataset" / PROMPTS).is_file():
        folder = folder / "dataset"
    prompts = read_prompts(folder / PROMPTS)
    names = list(prompts.classes) if subjects is None else list(subjects)
    cases = []
    for subject in names:
        if subject not in prompts.classes:
            known = ", ".join(prompts.classes)
            raise UserError(f"DreamBench has no subject {subject!r}; there are: {known}")
        photos = sorted(path for path in (folder / subject).glob("*") if path.suffix.lower() in _PHOTOS)
        if not photos:
            raise UserError(f"{folder / subject} has no photos of the subject {subject!r}")
        word = prompts.classes[subject]
        for number, prompt in enumerate(prompts.for_subject(subject)):
            cases += [Case(subject, word, number, prompt, seed, tuple(photos)) for seed in seeds]
    return cases
