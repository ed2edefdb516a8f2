"""Training images of the toybox's recogniser: its words, and images that show none of them."""

import multiprocessing
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from realcustom_jax.common.files import make_folder, replacing
from realcustom_jax.common.progress import counted
from realcustom_jax.common.workers import end_with_parent
from realcustom_jax.toybox.backgrounds import BACKGROUNDS, paint_background
from realcustom_jax.toybox.palette import WORDS, random_identity
from realcustom_jax.toybox.scenes import render_reference, render_scene

SIZE = 64
_PART = 64  # images that a process draws at a time

Generator = np.random.Generator


def load_or_draw(path: Path, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 64, 64, 3) and labels int32 (N,), from a file or drawn and written to it.

    Label 0 is "none of the words", label 1 + i is `WORDS[i]`; a third of the images show none. One process
    per core draws, so a script must call this under `if __name__ == "__main__"`.

    Args:
      path: the file, .npz.
      count: number of images.
      seed: seed of the drawings.
    """
    if path.is_file():
        with np.load(path) as arrays:
            return arrays["images"], arrays["labels"]
    draw = partial(draw_part, seed=seed)
    parts = range(-(-count // _PART))
    # "spawn", because a fork of a process with JAX's threads can hang.
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), end_with_parent) as pool:
        drawn = list(counted(pool.imap(draw, parts), len(parts), "drawing", f"part of {_PART} images"))
    images, labels = (np.concatenate(column)[:count] for column in zip(*drawn, strict=True))
    make_folder(path.parent, "folder")
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, images=images, labels=labels)
    return images, labels


def draw_part(part: int, seed: int, held_out: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """64 images and their labels; they depend on the arguments only."""
    rng = np.random.default_rng([seed, part, int(held_out)])
    labels = np.where(rng.random(_PART) < 1 / 3, 0, 1 + rng.integers(len(WORDS), size=_PART))
    images = [
        draw_word(rng, WORDS[label - 1], held_out) if label else draw_other(rng, held_out) for label in labels
    ]
    return np.stack(images), labels.astype(np.int32)


def draw_word(rng: Generator, word: str, held_out: bool = False) -> np.ndarray:
    """A photo of a random subject of a word: on the plain background, or cut from a scene."""
    identity = random_identity(rng, word, held_out=held_out)
    seed = int(rng.integers(2**31))
    if rng.random() < 0.6:
        scene = render_reference(identity, seed)
    else:
        scene = render_scene(BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))], [identity], seed)
    box = Image.fromarray(scene.masks[0]).getbbox() or (0, 0, SIZE, SIZE)
    return _crop(rng, Image.fromarray(scene.image), box)


def draw_other(rng: Generator, held_out: bool = False) -> np.ndarray:
    """An image of none of the words."""
    mixed = (partial(kind, held_out=held_out) for kind in (_shuffled, _halves))
    kinds: list[Callable[[Generator], Image.Image]] = [
        _background,
        _shapes,
        _leaves,
        _noise,
        _letters,
        *mixed,
    ]
    return np.asarray(kinds[int(rng.integers(len(kinds)))](rng).convert("RGB"))


def _crop(rng: Generator, image: Image.Image, box: tuple[int, int, int, int]) -> np.ndarray:
    """A square around a subject's box, which it fills to 55 to 100 %, flipped at random."""
    left, top, right, bottom = box
    side = max(right - left, bottom - top) / rng.uniform(0.55, 1.0)
    x = (left + right) / 2 + rng.uniform(-0.5, 0.5) * (side - (right - left))
    y = (top + bottom) / 2 + rng.uniform(-0.5, 0.5) * (side - (bottom - top))
    # Repeat the edge, so that a square may go beyond the image.
    margin = 2 * SIZE
    wide = Image.fromarray(np.pad(np.asarray(image), ((margin,) * 2, (margin,) * 2, (0, 0)), mode="edge"))
    corner = (margin + x - side / 2, margin + y - side / 2)
    window = (*corner, corner[0] + side, corner[1] + side)
    cut = np.asarray(wide.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=window))
    return cut[:, ::-1] if rng.random() < 0.5 else cut


def _colour(rng: Generator) -> tuple[int, int, int]:
    red, green, blue = map(int, rng.integers(0, 256, 3))
    return red, green, blue


def _background(rng: Generator) -> Image.Image:
    name = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
    image = paint_background(name, int(rng.integers(2**31)), 2 * SIZE)
    left, top = map(int, rng.integers(0, SIZE, 2))
    return image.crop((left, top, left + SIZE, top + SIZE)) if rng.random() < 0.5 else image.reduce(2)


def _shapes(rng: Generator) -> Image.Image:
    """One to six polygons and ellipses, on a plain colour or a background."""
    image = _background(rng).resize((4 * SIZE, 4 * SIZE))
    image = Image.new("RGB", image.size, _colour(rng)) if rng.random() < 0.6 else image.convert("RGB")
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(1, 7))):
        centre, radius = rng.uniform(0.25, 0.75, 2), rng.uniform(0.08, 0.4)
        if rng.random() < 0.4:
            reach = radius * rng.uniform(0.4, 1, 2)
            draw.ellipse(tuple(4 * SIZE * np.concatenate([centre - reach, centre + reach])), _colour(rng))
            continue
        corners = int(rng.integers(3, 12))
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        reach = radius * rng.uniform(0.3, 1, (corners, 1))
        points = centre + reach * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        draw.polygon([tuple(point) for point in 4 * SIZE * points], _colour(rng))
    return image.reduce(4)


def _leaves(rng: Generator) -> Image.Image:
    """Discs of all sizes that cover each other: edges and areas have the statistics of photographs."""
    image = Image.new("RGB", (2 * SIZE, 2 * SIZE), _colour(rng))
    draw = ImageDraw.Draw(image)
    base = rng.uniform(0, 255, 3)
    for _ in range(int(rng.integers(40, 200))):
        # Few large discs and many small ones: the density of radii falls as their third power.
        radius = min(2.0 / np.sqrt(rng.uniform(0.002, 1)), SIZE)
        x, y = rng.uniform(0, 2 * SIZE, 2)
        colour = np.clip(base + rng.normal(0, 70, 3), 0, 255).astype(int)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), tuple(map(int, colour)))
    return image.reduce(2)


def _noise(rng: Generator) -> Image.Image:
    """Noise whose spectrum falls with the frequency, from white noise to soft clouds."""
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.fftfreq(SIZE)[None]) + 1 / SIZE
    spectrum = np.fft.fft2(rng.standard_normal((3, SIZE, SIZE))) / frequency ** rng.uniform(0, 2)
    field = np.real(np.fft.ifft2(spectrum))
    grey = field.mean(0, keepdims=True)
    field = grey + rng.uniform(0, 1) * (field - grey)
    field = field / field.std() * rng.uniform(15, 70) + rng.uniform(60, 200, (3, 1, 1))
    return Image.fromarray(np.clip(field, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def _letters(rng: Generator) -> Image.Image:
    """One to three letters or digits, large, on a plain colour or a background."""
    image = _background(rng).resize((4 * SIZE, 4 * SIZE)).convert("RGB")
    image = Image.new("RGB", image.size, _colour(rng)) if rng.random() < 0.6 else image
    text = "".join(rng.choice(list("ABCDEFGHKMNPQRSTUWXYZabdefghkmpqt23456789&%@?"), int(rng.integers(1, 4))))
    font = ImageFont.load_default(int(rng.uniform(1.2, 3.4) * SIZE))
    ImageDraw.Draw(image).text((2 * SIZE, 2 * SIZE), text, _colour(rng), font, anchor="mm")
    return image.rotate(rng.uniform(-25, 25), fillcolor=image.getpixel((0, 0))).reduce(4)


def _shuffled(rng: Generator, held_out: bool) -> Image.Image:
    """A subject in 3×3 or 4×4 pieces in a random order."""
    image = draw_word(rng, str(rng.choice(WORDS)), held_out)
    count = int(rng.integers(3, 5))
    side = SIZE // count
    pieces = [
        image[y : y + side, x : x + side]
        for y in range(0, side * count, side)
        for x in range(0, side * count, side)
    ]
    order = rng.permutation(len(pieces))
    rows = [np.concatenate([pieces[i] for i in row], axis=1) for row in order.reshape(count, count)]
    return Image.fromarray(np.concatenate(rows)).resize((SIZE, SIZE))


def _halves(rng: Generator, held_out: bool) -> Image.Image:
    """The upper half of one subject over the lower half of another."""
    upper, lower = (draw_word(rng, str(word), held_out) for word in rng.choice(WORDS, 2, replace=False))
    return Image.fromarray(np.concatenate([upper[: SIZE // 2], lower[SIZE // 2 :]]))
