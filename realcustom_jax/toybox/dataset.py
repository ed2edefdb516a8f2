"""The toybox as a data set on disk."""

import io
import multiprocessing
import os
from collections.abc import Iterator
from functools import partial
from multiprocessing.pool import Pool

from PIL import Image

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.progress import counted
from realcustom_jax.common.rules import Rule
from realcustom_jax.common.workers import end_with_parent
from realcustom_jax.data.cut_outs import mark
from realcustom_jax.data.image_text import Example, write
from realcustom_jax.toybox import sample_scene

SEEDS_PER_DATASET = 10**8  # half of them for each split
# Version of drawings, captions and metadata. Raise it when a change of the toybox changes the result of a
# seed, so that older data sets are not mixed with newer ones.
WORLD_VERSION = 3

SIZE = Rule("", int, 16, 1024)


def write_dataset(
    data_dir: str | os.PathLike, *, train: int = 20000, validation: int = 500, seed: int = 0, size: int = 64
) -> None:
    """Draw scenes and write them as the splits "train" and "validation" of an image_text data set.

    The subjects of "validation" are held out: no training scene shows them. An example's metadata has
    {"scene_seed", "background", "words", "identities"}, from which the scene can be drawn again, and
    "subjects" with the masks (see `data.cut_outs`). One process per core draws, so a script must call this
    under `if __name__ == "__main__"`.

    Args:
      data_dir: folder of the data set.
      train: number of training scenes.
      validation: number of validation scenes; 0 for none.
      seed: seed of the whole data set, at least 0. The same seed gives the same images.
      size: side of the images in pixels.

    Raises:
      UserError: a count is out of range, or `data_dir` holds a data set already.
    """
    SIZE.check("size", size)
    limit = SEEDS_PER_DATASET // 2
    if not (1 <= train <= limit and 0 <= validation <= limit and seed >= 0):
        raise UserError(
            f"a toybox needs 1 to {limit} training scenes, 0 to {limit} validation scenes and a seed of at "
            f"least 0, not train={train}, validation={validation}, seed={seed}"
        )
    ranges = {"train": _scene_seeds(seed, train)}
    if validation:
        ranges["validation"] = _scene_seeds(seed, validation, limit)
    # "spawn", because a fork of a process with JAX's threads can hang.
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), end_with_parent) as pool:
        splits = {name: _draw(pool, name, seeds, size) for name, seeds in ranges.items()}
        write(data_dir, splits)


def make_example(scene_seed: int, held_out: bool, size: int = 64) -> Example:
    """Draw one scene: a PNG of (size, size), its caption, and metadata to draw it again."""
    scene = sample_scene(scene_seed, held_out=held_out, size=size)
    png = io.BytesIO()
    Image.fromarray(scene.image).save(png, "PNG")
    metadata = {
        "scene_seed": scene_seed,
        "background": scene.background,
        "words": [identity.word for identity in scene.identities],
        "identities": [int(identity.seed) for identity in scene.identities],
        "subjects": [mark(i.word, mask) for i, mask in zip(scene.identities, scene.masks, strict=True)],
    }
    return Example(key=f"{scene_seed:012d}", image=png.getvalue(), caption=scene.caption, metadata=metadata)


def _scene_seeds(seed: int, count: int, offset: int = 0) -> range:
    """Seeds of the scenes of a split."""
    # Data sets with other seeds share no scene, and a larger data set contains all scenes of a smaller one.
    first = seed * SEEDS_PER_DATASET + offset
    return range(first, first + count)


def _draw(pool: Pool, name: str, seeds: range, size: int) -> Iterator[Example]:
    """Draw the scenes of a split in parallel, in order."""
    draw = partial(make_example, held_out=name == "validation", size=size)
    examples = pool.imap(draw, seeds, chunksize=16)
    yield from counted(examples, len(seeds), f"drawing {name}", "scene")
