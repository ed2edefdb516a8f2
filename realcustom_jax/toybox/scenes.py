"""Rendering scenes: figures on backgrounds, with poses, layout, shadows and exact masks."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from realcustom_jax.common.errors import UserError
from realcustom_jax.toybox import creatures, things
from realcustom_jax.toybox.backgrounds import BACKGROUNDS, check_background, paint_background
from realcustom_jax.toybox.captions import prompt, sample_caption
from realcustom_jax.toybox.palette import WORDS, Identity, Look, random_identity
from realcustom_jax.toybox.pen import Pen

# {word: the function that draws it}; each function has the name of its word.
FIGURES: dict[str, Callable[[Pen, Look], None]] = {
    word: getattr(creatures, word, None) or getattr(things, word) for word in WORDS
}

# These float in the air or in the water; all others stand on the ground and have a shadow.
FLOATING = frozenset({"balloon", "butterfly", "fish", "rocket"})

# Everything is drawn this many times larger and averaged down, which smooths edges.
SUPERSAMPLING = 4

# {number of subjects: range of the image area that one of them covers}
AREAS: dict[int, tuple[float, float]] = {1: (0.215, 0.285), 2: (0.12, 0.155), 3: (0.07, 0.095)}
REFERENCE_AREA = (0.30, 0.34)

TALLEST = 0.86  # largest height of a figure, as a share of the image height

# Identities of `example` that the shipped model draws well; other words have the first held-out one. Held-out
# seeds end in 9.
EXAMPLE_SEEDS = {"bird": 29, "balloon": 59, "boat": 69}
FIRST_HELD_OUT = 9

PLAIN_SHARE = 0.08  # share of scenes with the plain background, as in reference photos
TWO_SUBJECTS_SHARE = 0.30  # share of scenes with two subjects


@dataclasses.dataclass(frozen=True)
class Scene:
    """A drawn scene of R subjects.

    image: uint8 (S, S, 3).  masks: bool (R, S, S), disjoint, in the order of `identities`.
    faces: for each subject the box of its head, (left, top, right, bottom) in pixels; None if it has none.
    """

    image: np.ndarray
    masks: np.ndarray
    caption: str
    background: str
    identities: tuple[Identity, ...]
    faces: tuple[tuple[int, int, int, int] | None, ...] = ()


@dataclasses.dataclass(frozen=True)
class Placed:
    """A figure at its final size: RGBA sprite, head mask, top left corner, whether it is on the ground."""

    sprite: Image.Image
    head: Image.Image
    left: int
    top: int
    grounded: bool


def draw_figure(
    identity: Identity, side: int, *, flip: bool = False, tilt: float = 0.0
) -> tuple[Image.Image, Image.Image]:
    """Draw a figure on a transparent sheet of `side` pixels: the sheet and its head mask, both cropped."""
    look = Look(identity)
    pen = Pen(look, side)
    FIGURES[identity.word](pen, look)

    # Pose is not identity: flips and tilts come from the scene's generator.
    def posed(sheet: Image.Image) -> Image.Image:
        sheet = sheet.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else sheet
        return sheet.rotate(tilt) if tilt else sheet

    sheet = posed(pen.sheet)
    box = sheet.getbbox()
    return sheet.crop(box), posed(pen.head).crop(box)


def _scale(figure: Image.Image, area: float, size: int) -> float:
    """The factor by which a figure covers `area` of a (size, size) image without exceeding `TALLEST`."""
    # Pixels with full alpha, at the figure's drawn size.
    covered = figure.getchannel("A").histogram()[255]
    return min(size * (area / covered) ** 0.5, TALLEST * size / figure.height)


def _resized(figure: Image.Image, scale: float) -> Image.Image:
    shape = max(2, round(figure.width * scale)), max(2, round(figure.height * scale))
    return figure.resize(shape, Image.Resampling.BOX)


def _place(
    rng: np.random.Generator,
    identities: Sequence[Identity],
    size: int,
    areas: tuple[float, float],
    centred: bool,
) -> list[Placed]:
    """Pose the figures and place them side by side, in a random order."""
    count = len(identities)
    figures = []
    for identity in identities:
        floats = identity.word in FLOATING
        tilt = float(rng.uniform(-12, 12)) if floats else float(rng.uniform(-3, 3))
        figure, head = draw_figure(identity, SUPERSAMPLING * size, flip=bool(rng.integers(2)), tilt=tilt)
        figures.append((figure, head, _scale(figure, rng.uniform(*areas), size)))
    # If the figures are too wide to fit side by side, all shrink by the same factor.
    shrink = min(1.0, 0.95 * size / sum(figure.width * scale for figure, _, scale in figures))
    sprites = [_resized(figure, scale * shrink) for figure, _, scale in figures]
    heads = [_resized(head, scale * shrink) for _, head, scale in figures]
    # The free width is divided into gaps before, between and after the figures.
    free = size - sum(s.width for s in sprites)
    gaps = np.full(count + 1, 1 / (count + 1)) if centred else rng.dirichlet(np.full(count + 1, 2.0))
    gaps = np.floor(gaps * free).astype(int)
    placed: dict[int, Placed] = {}
    left = 0
    for k, gap in zip(rng.permutation(count), gaps, strict=False):
        sprite, grounded = sprites[k], identities[k].word not in FLOATING
        # Height of the figure's lower edge, as a share of the image.
        foot = 0.92 + rng.uniform(-0.03, 0.03) if grounded else rng.uniform(0.78, 0.88)
        if centred:
            foot = 0.5 + sprite.height / size / 2
        top = int(np.clip(round(foot * size) - sprite.height, 1, size - 1 - sprite.height))
        left += int(gap)
        placed[int(k)] = Placed(sprite, heads[k], left, top, grounded)
        left += sprite.width
    return [placed[k] for k in range(count)]  # in the order of the identities


def _shadows(place: Image.Image, placed: Sequence[Placed], on_water: bool) -> None:
    """Draw a soft shadow, or a ripple on water, under every figure on the ground, into `place`."""
    draw = ImageDraw.Draw(place, "RGBA")
    k = SUPERSAMPLING
    for p in placed:
        if not p.grounded:
            continue
        x, y = k * (p.left + p.sprite.width / 2), k * (p.top + p.sprite.height - 0.8)
        for grow, alpha in ((0.52, 45), (0.42, 60)):
            rx, ry = k * p.sprite.width * grow, k * max(1.2, p.sprite.width * grow * 0.12)
            colour = (214, 242, 252, alpha + 60) if on_water else (30, 20, 60, alpha)
            draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=colour)


def _render(
    background: str,
    identities: Sequence[Identity],
    seed: int,
    size: int,
    areas: tuple[float, float],
    centred: bool = False,
) -> Scene:
    """Draw a scene with the plain prompt as caption."""
    check_background(background)
    # Not the generator of `paint_background`: the same seed must not correlate layout and background.
    rng = np.random.default_rng([seed, 1000])
    placed = _place(rng, identities, size, areas, centred)
    place = paint_background(background, seed, SUPERSAMPLING * size)
    _shadows(place, placed, background == "water")
    image = place.reduce(SUPERSAMPLING)
    masks = np.zeros((len(placed), size, size), bool)
    for mask, p in zip(masks, placed, strict=True):
        image.paste(p.sprite, (p.left, p.top), p.sprite)
        # A pixel is the subject's where it covers at least half of it. Sprites do not overlap, so masks are
        # disjoint.
        window = mask[p.top : p.top + p.sprite.height, p.left : p.left + p.sprite.width]
        window[...] = np.asarray(p.sprite.getchannel("A")) >= 128
    caption = prompt([i.word for i in identities], background)
    faces = tuple(map(_face_box, placed))
    return Scene(np.array(image), masks, caption, background, tuple(identities), faces)


def _face_box(placed: Placed) -> tuple[int, int, int, int] | None:
    """Box of a figure's head in the image; None without a head."""
    box = Image.fromarray(np.asarray(placed.head) >= 128).getbbox()
    return box and (
        placed.left + box[0], placed.top + box[1], placed.left + box[2], placed.top + box[3]
    )  # fmt: skip


def render_scene(background: str, identities: Sequence[Identity], seed: int, size: int = 64) -> Scene:
    """Draw one to three subjects on a background. The caption is the plain prompt.

    Raises:
        ValueError: the background is unknown, or there are no or too many subjects.
    """
    if len(identities) not in AREAS:
        raise ValueError(f"a toybox scene has 1 to {max(AREAS)} subjects, got {len(identities)}.")
    return _render(background, identities, seed, size, AREAS[len(identities)])


def render_reference(identity: Identity, seed: int = 0, size: int = 64) -> Scene:
    """Draw the reference photo of a subject: alone, large and centred on a plain background."""
    return _render("plain", [identity], seed, size, REFERENCE_AREA, centred=True)


def example_identity(word: str) -> Identity:
    """The fixed held-out subject of a word that `example` draws."""
    return Identity(word, EXAMPLE_SEEDS.get(word, FIRST_HELD_OUT))


def example(word: str) -> Image.Image:
    """A reference image to try the toybox model with, `rc.Subject(image=rc.example("bird"), words="bird")`.

    Args:
      word: one of the toybox's words, such as "bird".

    Returns:
      RGB, 64×64: always the same subject of that word, which no training saw, on a plain background.

    Raises:
      UserError: for another word; it lists those that there are.
    """
    return Image.fromarray(_example_scene(word).image)


def example_face(word: str) -> tuple[int, int, int, int] | None:
    """The face box of `example(word)`, for `Subject(face=…)`: it comes from the drawing.

    Returns:
      (left, top, right, bottom) in pixels; None for a word without a face, such as "boat".

    Raises:
      UserError: for a word that is none of the toybox's.
    """
    return _example_scene(word).faces[0]


def _example_scene(word: str) -> Scene:
    if word not in WORDS:
        raise UserError(f"there is no example of {word!r}; the words of the toybox are {', '.join(WORDS)}")
    return render_reference(example_identity(word))


def sample_scene(seed: int, *, held_out: bool = False, size: int = 64) -> Scene:
    """Draw a random scene. It depends only on the arguments."""
    # Training and held-out scenes share no identity, see `random_identity`.
    rng = np.random.default_rng([seed, int(held_out), 2000])
    count = 2 if rng.random() < TWO_SUBJECTS_SHARE else 1
    words = rng.choice(WORDS, count, replace=False)
    identities = [random_identity(rng, str(word), held_out=held_out) for word in words]
    if rng.random() < PLAIN_SHARE:
        background = "plain"
    else:
        background = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS) - 1))]  # "plain" is the last one
    scene = render_scene(background, identities, int(rng.integers(2**31)), size)
    return dataclasses.replace(scene, caption=sample_caption(rng, identities, background))
