"""Do characters stay themselves from scene to scene? `python studies/story_consistency.py`

40 stories of four scenes with held-out subjects of the toybox: 20 with one character, 20 with two. Each is
made with masks, without masks (every character acts everywhere), and from the text alone. In each scene the
judge looks for each character among the 20 subjects of its word; chance is 0.05.

With one character, the judge finds the subject's pixels itself. With two, its pixels are divided by the masks
of the story with masks: each goes to the nearer one. Brackets hold the bootstrap 95 % interval over stories.

Images are kept in --work, so that an interrupted study resumes. --docs replaces the table of that page.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from toybox_flags import flags
from two_subjects import nearer

import realcustom_jax as rc
from realcustom_jax.common.cli import run_command
from realcustom_jax.common.errors import UserError
from realcustom_jax.common.progress import counted
from realcustom_jax.evaluation.judge import Judge
from realcustom_jax.evaluation.metrics import rank
from realcustom_jax.evaluation.tables import cell
from realcustom_jax.evaluation.toybox import IDENTITIES, references, repeat_pixels
from realcustom_jax.toybox import BACKGROUNDS, WORDS
from realcustom_jax.toybox.backgrounds import PHRASES

SCENES = 4
NAMES = ("Mika", "Bolt")
WORD_OFFSET = 5  # distance of a story's two words in WORDS
# {setting: changes of the story}. Without masks every mask is 1 everywhere.
SETTINGS: dict[str, dict[str, Any]] = {
    "with masks": {},
    "without masks": {"options": {"gamma_scope": 1.0, "mask_kind": "binary", "mask_overlap": "shared"}},
    "text only": {"strength": 0.0},
}
_START, _END = "<!-- table of studies/story_consistency.py -->\n", "<!-- end of the table -->\n"


@dataclasses.dataclass(frozen=True)
class Case:
    """A story of held-out subjects, one or two, in four different places."""

    index: int
    count: int

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(WORDS[(self.index + k * WORD_OFFSET) % len(WORDS)] for k in range(self.count))

    @property
    def number(self) -> int:
        """Number of the identity, of each word."""
        return self.index % IDENTITIES

    def story(self, options: Mapping[str, Any] | None = None, strength: float = 1.0) -> rc.Story:
        names = NAMES[: self.count]
        cast = [
            rc.Character(name, references(word)[self.number].image, word)
            for name, word in zip(names, self.words, strict=True)
        ]
        places = [BACKGROUNDS[(self.index + 3 * k) % len(BACKGROUNDS)] for k in range(SCENES)]
        strengths = {} if strength == 1 else {name: {"strength": strength} for name in names}
        scenes = [
            rc.Scene(f"{' and '.join(names)} {PHRASES[place]}", strengths=strengths) for place in places
        ]
        return rc.Story(cast, scenes, seed=SCENES * self.index, options=options)


def main() -> None:
    parser = flags(__doc__ or "", 20, plots=False)
    parser.add_argument("--work", type=Path, default=Path("runs/studies/story_consistency"),
                        help="folder of the images (%(default)s)")  # fmt: skip
    parser.add_argument("--docs", type=Path, help="page whose table is replaced")
    args = parser.parse_args()
    if args.docs:
        replaced(args.docs.read_text(encoding="utf-8"), "")  # its error comes before the work
    pipe, judge = rc.load(args.model), Judge.load()
    rows = []
    for count in (1, 2):
        cases = [Case(index, count) for index in range(args.requests)]
        made = {setting: make_all(pipe, cases, setting, args.work) for setting in SETTINGS}
        masks = np.concatenate([masks for _, masks in made["with masks"]])
        correct = {
            setting: found(judge, cases, np.concatenate([images for images, _ in stories]), masks)
            for setting, stories in made.items()
        }
        rows += table_rows(count, correct)
    heading = ["", "judged", *SETTINGS]
    lines = [f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *rows)]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.docs:
        args.docs.write_text(replaced(args.docs.read_text(encoding="utf-8"), text), encoding="utf-8")


def make_all(
    pipe: rc.Pipeline, cases: Sequence[Case], setting: str, work: Path
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The images uint8 (4, H, W, 3) and last masks bool (4, R, H, W) of each story, from `work` if there."""
    made = []
    what = f"{cases[0].count} to a story, {setting}"
    for case in counted(cases, len(cases), what, "story"):
        path = work / f"{case.count}_{setting.replace(' ', '_')}_{case.index}.npz"
        if not path.is_file():
            pages = case.story(**SETTINGS[setting]).generate(pipe, progress=False)
            images = np.concatenate([page.images for page in pages])
            masks = np.concatenate([page.masks[:, -1] for page in pages]) > 0
            work.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"partial_{path.name}")
            np.savez(partial, images=images, masks=masks)
            partial.replace(path)
        with np.load(path) as arrays:
            masks = np.stack([repeat_pixels(arrays["masks"][:, k]) for k in range(case.count)], axis=1)
            made.append((arrays["images"], masks))
    return made


def found(judge: Judge, cases: Sequence[Case], images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Whether the judge finds each character in each scene, bool (stories, scenes, characters).

    Args:
      judge: the toybox's judge.
      cases: the stories.
      images: uint8 (stories·scenes, H, W, 3).
      masks: bool (stories·scenes, R, H, W).
    """
    verdict, count = judge.look(images), cases[0].count
    if count == 1:
        directions = [verdict.directions]
    else:
        parts = np.stack([nearer(pair) for pair in masks])
        directions = [judge.directions(images, parts[:, k] & verdict.regions) for k in range(count)]
    correct = []
    for k in range(count):
        candidates = np.stack([_candidates(judge, case.words[k], case.number) for case in cases])
        correct.append(rank(directions[k], candidates.repeat(SCENES, axis=0)) == 0)
    return np.stack(correct, axis=-1).reshape(len(cases), SCENES, count)


def _candidates(judge: Judge, word: str, number: int) -> np.ndarray:
    """Directions (20, C) of the word's subjects, the right one first."""
    photos = references(word)
    images, masks = np.stack([p.image for p in photos]), np.stack([p.masks[0] for p in photos])
    return np.roll(judge.directions(images, masks), -number, axis=0)


def table_rows(count: int, correct: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Rows of the table: single characters, whole scenes, and whole stories.

    Args:
      count: characters of each story.
      correct: {setting: bool (stories, scenes, characters)}.
    """
    kinds = {"a character in a scene": lambda x: x}
    if count > 1:
        kinds["both characters of a scene"] = lambda x: x.all(axis=2)
    kinds["a character in all four scenes"] = lambda x: x.all(axis=1)
    rows = []
    for name, reduce in kinds.items():
        values = {setting: reduce(x).astype(float) for setting, x in correct.items()}
        some = next(iter(values.values()))
        groups = [str(i) for i in range(len(some)) for _ in range(some[0].size)]
        cells = [f"{int(x.sum())}: {cell(x.ravel(), groups=groups)}" for x in values.values()]
        rows.append([f"{'one' if count == 1 else 'two'} to a story: {name}", str(some.size), *cells])
    return rows


def replaced(page: str, table: str) -> str:
    """A page with another table between its two marks.

    Raises:
      UserError: if the page has no marks.
    """
    if page.count(_START) != 1 or page.count(_END) != 1:
        raise UserError(f"the page needs the lines {_START.strip()} and {_END.strip()}")
    return re.sub(
        f"{re.escape(_START)}.*?{re.escape(_END)}",
        lambda _: f"{_START}\n{table}\n{_END}",
        page,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    run_command(main)
