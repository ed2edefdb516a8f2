"""Identities: the colours, the pattern and the random proportions of one subject, all from a seed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]

WORDS: tuple[str, ...] = (
    "cat", "dog", "bird", "fish", "robot", "car", "house", "rocket",
    "mushroom", "tree", "boat", "teapot", "balloon", "butterfly", "turtle", "cup",
)  # fmt: skip

COLOURS: dict[str, RGB] = {
    "red": (219, 54, 58),
    "orange": (245, 142, 44),
    "yellow": (252, 212, 72),
    "green": (76, 172, 84),
    "teal": (54, 188, 186),
    "blue": (58, 106, 216),
    "purple": (132, 76, 192),
    "pink": (246, 140, 184),
    "brown": (146, 92, 58),
    "white": (246, 243, 236),
}

# Adjectives of captions; "plain" is not mentioned in them.
PATTERNS: tuple[str, ...] = (
    "plain",
    "striped",
    "banded",
    "spotted",
    "checked",
    "zigzag",
    "starry",
    "two-tone",
)

# Smallest distance (0 to 765) between the two colours of an identity: nearer ones look alike at 64 pixels.
MIN_COLOUR_DISTANCE = 216.0


def colour_distance(a: RGB, b: RGB) -> float:
    """Perceptual distance between two RGB colours (the "redmean" formula), 0 to about 765."""
    # Weights that follow the eye's sensitivity, which depends on the mean red.
    red = (a[0] + b[0]) / 2
    d = np.subtract(a, b).astype(float) ** 2
    return float(np.sqrt((2 + red / 256) * d[0] + 4 * d[1] + (2 + (255 - red) / 256) * d[2]))


# Ordered pairs: red with blue is another identity than blue with red.
COLOUR_PAIRS: tuple[tuple[str, str], ...] = tuple(
    (a, b)
    for a in COLOURS
    for b in COLOURS
    if a != b and colour_distance(COLOURS[a], COLOURS[b]) >= MIN_COLOUR_DISTANCE
)


@dataclass(frozen=True)
class Identity:
    """One particular subject: its real word, and the seed that determines how it looks.

    Raises:
        ValueError: the word is not one of `WORDS`, or the seed is negative.
    """

    word: str
    seed: int

    def __post_init__(self) -> None:
        check_word(self.word)
        if self.seed < 0:
            raise ValueError(f"an identity's seed must be 0 or more, got {self.seed}.")

    @property
    def colours(self) -> tuple[str, str]:
        """Names of the main and of the second colour."""
        return Look(self).colours

    @property
    def pattern(self) -> str:
        """Name of the pattern, one of `PATTERNS`."""
        return Look(self).pattern


def check_word(word: str) -> None:
    """Raise `ValueError`, which lists the known words, if `word` is not one of them."""
    if word not in WORDS:
        raise ValueError(f"unknown toybox word {word!r}; the known words are: {', '.join(WORDS)}.")


def is_held_out(seed: int) -> bool:
    """Whether identities with this seed are held out for testing: every tenth one."""
    return seed % 10 == 9


def random_identity(rng: np.random.Generator, word: str, *, held_out: bool) -> Identity:
    """Draw a random held-out or training identity of a word."""
    # The last digit of the seed decides the split, see `is_held_out`.
    last_digit = 9 if held_out else int(rng.integers(9))
    return Identity(word, 10 * int(rng.integers(10**8)) + last_digit)


def to_rgb(values: Iterable[float]) -> RGB:
    """Three numbers from 0 to 255 as a colour; fractions are cut off."""
    red, green, blue = map(int, values)
    return red, green, blue


@dataclass
class Look:
    """The random choices of one identity: its colours and pattern, and the generator of its proportions."""

    # Colours and pattern are drawn first, so that a change of a figure's proportions does not change them.
    identity: Identity
    rng: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng([WORDS.index(self.identity.word), self.identity.seed])
        self.colours = COLOUR_PAIRS[int(self.rng.integers(len(COLOUR_PAIRS)))]
        self.pattern = PATTERNS[int(self.rng.integers(len(PATTERNS)))]

    @cached_property
    def rgb(self) -> tuple[RGB, RGB]:
        """Main and second colour with a small jitter, so that two red cats have slightly different reds."""
        # A separate generator: how often colours are used must not change the proportions.
        jitter = np.random.default_rng([self.identity.seed, 1]).integers(-9, 10, (2, 3))
        main, second = (
            np.clip(np.add(COLOURS[n], j), 0, 255) for n, j in zip(self.colours, jitter, strict=True)
        )
        return to_rgb(main), to_rgb(second)

    def between(self, low: float, high: float) -> float:
        """A random number in [low, high]."""
        # Beta(0.6, 0.6) favours both ends, so that identities differ visibly.
        return low + (high - low) * float(self.rng.beta(0.6, 0.6))

    def pick(self, *options):
        """One of the options at random."""
        return options[int(self.rng.integers(len(options)))]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.rng.random() < probability)


def pattern_tile(look: Look, side: int) -> Image.Image:
    """The identity's pattern as an opaque RGBA image (side, side), from which a figure's parts are cut."""
    # "two-tone" has no pattern here: the pen splits every part separately, so that both colours always show.
    main, second = look.rgb
    tile = Image.new("RGBA", (side, side), main)
    rng = np.random.default_rng([look.identity.seed, 2])
    step = side * rng.uniform(0.27, 0.33)
    # The phase keeps the second colour on the middle of the tile, where the body is.
    phase = side / 2 - step / 4 + rng.uniform(-0.12, 0.12) * step
    draw = ImageDraw.Draw(tile)
    if look.pattern in PATTERN_DRAWERS:
        PATTERN_DRAWERS[look.pattern](draw, second, side, step, phase)
    return tile


def _starts(side: int, step: float, phase: float) -> np.ndarray:
    """Positions of a repeated element, from before the tile's edge to after it."""
    return np.arange(phase % step - 2 * step, side + step, step)


def _striped(draw: ImageDraw.ImageDraw, colour: RGB, side: int, step: float, phase: float) -> None:
    for x in _starts(side, step, phase):
        draw.rectangle((x, 0, x + step * 0.48, side), fill=colour)


def _banded(draw: ImageDraw.ImageDraw, colour: RGB, side: int, step: float, phase: float) -> None:
    for y in _starts(side, step, phase):
        draw.rectangle((0, y, side, y + step * 0.48), fill=colour)


def _lattice(side: int, step: float, phase: float) -> Iterator[tuple[float, float]]:
    """Centres of a brick lattice: every second row is shifted by half a step."""
    for row, y in enumerate(_starts(side, step * 0.86, phase)):
        for x in _starts(side, step, phase + (row % 2) * step / 2):
            yield x, y


def _spotted(draw: ImageDraw.ImageDraw, colour: RGB, side: int, step: float, phase: float) -> None:
    for x, y in _lattice(side, step, phase):
        r = step * 0.29
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def _checked(draw: ImageDraw.ImageDraw, colour: RGB, side: int, step: float, phase: float) -> None:
    cell = step * 0.62
    for row, y in enumerate(_starts(side, cell, phase)):
        for x in _starts(side, 2 * cell, phase + (row % 2) * cell):
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=colour)


def _zigzag(draw: ImageDraw.ImageDraw, colour: RGB, side: int, step: float, phase: float) -> None:
    xs = np.arange(-step, side + step, step / 2)
    for y in _starts(side, step * 1.1, phase):
        points = [(x, y + (i % 2) * step * 0.5) for i, x in enumerate(xs)]
        draw.line(points, fill=colour, width=round(step * 0.46), joint="curve")


def _starry(draw: ImageDraw.ImageDraw, colour: RGB, side: int, step: float, phase: float) -> None:
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = step * np.where(np.arange(10) % 2, 0.22, 0.50)
    for x, y in _lattice(side, step * 1.25, phase):
        points = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], 1)
        draw.polygon([tuple(p) for p in points], fill=colour)


# {pattern: (draw, second colour, side, step, phase) → None}
PATTERN_DRAWERS = {
    "striped": _striped,
    "banded": _banded,
    "spotted": _spotted,
    "checked": _checked,
    "zigzag": _zigzag,
    "starry": _starry,
}
