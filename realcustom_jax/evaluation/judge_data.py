"""Training data of the judge: pairs of a reference photo and a scene of one identity, with exact masks."""

import dataclasses
import multiprocessing
import os
from functools import partial
from pathlib import Path

import numpy as np

from realcustom_jax.common.files import replacing
from realcustom_jax.common.progress import counted
from realcustom_jax.common.workers import end_with_parent
from realcustom_jax.toybox import (
    BACKGROUNDS,
    WORDS,
    random_identity,
    render_reference,
    render_scene,
)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of N identities for each of W words.

    Attributes:
      references: uint8 (W, N, 64, 64, 3).
      reference_masks: bool (W, N, 64, 64).
      scenes: uint8 (W, N, 64, 64, 3), the same identities on a background.
      scene_masks: bool (W, N, 64, 64).
      backgrounds: int (W, N), indices into `toybox.BACKGROUNDS`.
    """

    references: np.ndarray
    reference_masks: np.ndarray
    scenes: np.ndarray
    scene_masks: np.ndarray
    backgrounds: np.ndarray


def draw_pairs(count: int, seed: int, *, held_out: bool = False, processes: int | None = None) -> Pairs:
    """Draw `count` identities of each word. The same arguments give the same images.

    `processes` draw (default: one per core; 0 draws in this process), so a script must call this under
    `if __name__ == "__main__"`.
    """
    draw = partial(_draw_word, count=count, seed=seed, held_out=held_out)
    if processes == 0:
        rows = [draw(word) for word in WORDS]
    else:
        # "spawn", because a fork of a process with JAX's threads can hang.
        with multiprocessing.get_context("spawn").Pool(processes or os.cpu_count(), end_with_parent) as pool:
            rows = list(counted(pool.imap(draw, WORDS), len(WORDS), "drawing", "word"))
    return Pairs(*(np.stack(column) for column in zip(*rows, strict=True)))


def load_or_draw(path: Path, count: int, seed: int) -> Pairs:
    """Load training pairs from a file, or draw them and write the file."""
    if path.is_file():
        with np.load(path) as arrays:
            return Pairs(**arrays)
    pairs = draw_pairs(count, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {field.name: getattr(pairs, field.name) for field in dataclasses.fields(pairs)}
    with (
        replacing(path) as temporary,
        temporary.open("wb") as file,
    ):  # given a name, np.savez would append ".npz"
        np.savez(file, **arrays)
    return pairs


def _draw_word(word: str, count: int, seed: int, held_out: bool) -> tuple[np.ndarray, ...]:
    """Draw the pairs of one word: the fields of `Pairs` without their first axis."""
    # A generator for each word, so the images do not depend on the number of processes.
    rng = np.random.default_rng([seed, WORDS.index(word), int(held_out)])
    rows = []
    for i in range(count):
        identity = random_identity(rng, word, held_out=held_out)
        # All words on all backgrounds in equal numbers, so that neither predicts the other.
        place = (i + WORDS.index(word)) % len(BACKGROUNDS)
        reference = render_reference(identity, int(rng.integers(2**31)))
        scene = render_scene(BACKGROUNDS[place], [identity], int(rng.integers(2**31)))
        rows.append((reference.image, reference.masks[0], scene.image, scene.masks[0], place))
    # N rows of five values → five arrays (N, …)
    return tuple(np.stack(column) for column in zip(*rows, strict=True))
