"""The backgrounds of the toybox: few large shapes and soft gradients, easy to recognise and to learn.

A background is a function of its seed, so the order of random draws is part of it.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from realcustom_jax.toybox.palette import RGB, to_rgb

# {background: its phrase in captions}. The order is that of `BACKGROUNDS` and of the judge's outputs.
PHRASES: dict[str, str] = {
    "beach": "on the beach",
    "snow": "in the snow",
    "night": "under the night sky",
    "forest": "in the forest",
    "desert": "in the desert",
    "city": "in the city",
    "water": "on the water",
    "meadow": "in a meadow",
    "mountains": "in the mountains",
    "rainbow": "in front of a rainbow",
    "room": "in a room",
    "sunset": "at sunset",
    "plain": "on a plain background",
}
BACKGROUNDS: tuple[str, ...] = tuple(PHRASES)


class Stage:
    """A square image to paint a background on. Coordinates are in [0, 1]², y down."""

    def __init__(self, side: int, rng: np.random.Generator):
        self.side, self.rng = side, rng
        self.image = Image.new("RGB", (side, side))
        self.draw = ImageDraw.Draw(self.image)

    def tint(self, colour: RGB, amount: int = 9) -> RGB:
        """A colour with a random change, so that no two skies have exactly the same blue."""
        return to_rgb(np.clip(np.add(colour, self.rng.integers(-amount, amount + 1, 3)), 0, 255))

    def gradient(self, top: float, bottom: float, *colours: RGB) -> None:
        """Fill the rows from `top` to `bottom` with a vertical gradient through the colours."""
        y0, y1 = round(top * self.side), round(bottom * self.side)
        at = np.linspace(0, 1, len(colours))
        rows = np.linspace(0, 1, max(y1 - y0, 1))
        # One column of pixels (rows, 1, 3), stretched to the full width.
        column = np.stack([np.interp(rows, at, [c[k] for c in colours]) for k in range(3)], -1)
        strip = Image.fromarray(column.astype(np.uint8)[:, None])
        self.image.paste(strip.resize((self.side, len(rows)), Image.Resampling.NEAREST), (0, y0))

    def poly(self, points, colour: RGB) -> None:
        """Fill a polygon."""
        self.draw.polygon([(x * self.side, y * self.side) for x, y in points], fill=colour)

    def disc(self, x: float, y: float, rx: float, colour: RGB, ry: float | None = None) -> None:
        """Fill a disc, or an ellipse if `ry` is given."""
        s, ry = self.side, rx if ry is None else ry
        self.draw.ellipse(((x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s), fill=colour)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: RGB) -> None:
        """Fill a rectangle."""
        self.draw.rectangle([v * self.side for v in (x0, y0, x1, y1)], fill=colour)

    def hills(self, y: float, height: float, waves: float, colour: RGB) -> None:
        """Fill everything below a wavy line around height `y`."""
        x = np.linspace(0, 1, 33)
        phase = self.rng.uniform(0, 2 * np.pi, 2)
        # Two waves of unrelated lengths, so that hills do not look periodic.
        line = y + height * (0.7 * np.sin(2 * np.pi * waves * x + phase[0]) + 0.3 * np.sin(9 * x + phase[1]))
        self.poly([(0, 1.01), *zip(x, line, strict=True), (1, 1.01)], colour)

    def cloud(self, x: float, y: float, r: float, colour: RGB = (255, 255, 255)) -> None:
        """Draw a cloud: three discs on a flat base."""
        for dx, dy, k in ((-1.1, 0.25, 0.6), (0, 0, 0.9), (1.0, 0.2, 0.7)):
            self.disc(x + dx * r, y + dy * r, k * r, colour)
        self.box(x - 1.2 * r, y + 0.3 * r, x + 1.2 * r, y + 0.85 * r, colour)

    def pine(self, x: float, foot: float, height: float, colour: RGB, trunk: RGB = (104, 74, 56)) -> None:
        """Draw a pine: a trunk and three overlapping triangles."""
        w = height * 0.30
        self.box(x - w * 0.16, foot - height * 0.2, x + w * 0.16, foot, trunk)
        for k in (0, 1, 2):
            b = foot - height * (0.12 + 0.25 * k)
            ww = w * (1 - 0.22 * k)
            self.poly([(x - ww, b), (x, b - height * 0.42), (x + ww, b)], colour)

    def spread(self, n: int, jitter: float = 0.4) -> np.ndarray:
        """`n` positions over the width, each with a random shift of up to `jitter` times the spacing."""
        return (np.arange(n) + 0.5 + self.rng.uniform(-jitter, jitter, n)) / n

    def corner(self) -> float:
        """An x near the left or the right edge, where a subject rarely covers it."""
        return float(self.rng.choice([0.16, 0.84]) + self.rng.uniform(-0.05, 0.05))


def beach(s: Stage) -> None:
    """Sky, sun, a band of sea, wide sand and a parasol or a palm."""
    s.gradient(0, 0.46, s.tint((104, 196, 246)), (206, 240, 252))
    sun = s.corner()
    s.disc(sun, 0.15, 0.09, (255, 238, 130))
    s.gradient(0.44, 0.68, s.tint((30, 130, 200)), s.tint((90, 214, 214)))
    s.hills(0.60, 0.02, 1.0, (244, 252, 250))
    s.hills(0.63, 0.02, 1.0, s.tint((246, 220, 156)))
    s.hills(0.90, 0.02, 1.5, (236, 204, 134))
    x = 1 - sun  # opposite of the sun, a parasol or a palm
    if s.rng.random() < 0.5:
        s.box(x - 0.01, 0.34, x + 0.01, 0.74, (150, 110, 80))
        for a, b, c in (
            (-0.2, 0.2, (250, 250, 245)),
            (-0.2, -0.07, (240, 90, 80)),
            (0.07, 0.2, (240, 90, 80)),
        ):
            s.poly([(x + a, 0.42), (x + a * 0.5, 0.33), (x, 0.30), (x + b * 0.5, 0.33), (x + b, 0.42)], c)
    else:
        s.poly([(x - 0.02, 0.76), (x, 0.3), (x + 0.025, 0.3), (x + 0.03, 0.76)], (158, 112, 70))
        for dx, dy in ((-0.2, 0.06), (-0.17, -0.08), (0.2, 0.06), (0.17, -0.08), (-0.1, 0.16), (0.1, 0.16)):
            s.poly(
                [(x + 0.01, 0.27), (x + dx * 0.6, 0.24 + dy), (x + dx, 0.31 + dy), (x + 0.01, 0.32)],
                (62, 160, 84),
            )


def snow(s: Stage) -> None:
    """Pale sky, white hills, snowy pines, big flakes."""
    s.gradient(0, 0.7, s.tint((150, 186, 222)), (222, 234, 246))
    s.hills(0.54, 0.05, 1.0, s.tint((214, 228, 244), 5))
    for x in s.spread(4):
        h = s.rng.uniform(0.24, 0.40)
        s.pine(x, 0.66, h, s.tint((86, 138, 138)))
        s.poly(
            [(x - 0.1 * h, 0.66 - h * 0.87), (x, 0.66 - h * 1.06), (x + 0.1 * h, 0.66 - h * 0.87)],
            (255, 255, 255),
        )
    s.hills(0.66, 0.03, 1.0, (244, 249, 255))
    s.hills(0.86, 0.03, 0.7, s.tint((226, 238, 252), 4))
    # A shuffled grid spreads the flakes better than independent positions.
    for x, y in zip(s.spread(9), s.rng.permutation(s.spread(9)), strict=True):
        s.disc(x, y * 0.8, 0.018, (255, 255, 255))


def night(s: Stage) -> None:
    """Deep blue sky with a big moon and stars over dark hills."""
    s.gradient(0, 0.75, s.tint((14, 16, 56), 6), (30, 38, 104), s.tint((74, 70, 150)))
    for x, y in zip(s.spread(11), s.rng.permutation(s.spread(11)), strict=True):
        r = s.rng.uniform(0.014, 0.024)
        s.poly(
            [(x - r, y * 0.6), (x, y * 0.6 - r * 1.5), (x + r, y * 0.6), (x, y * 0.6 + r * 1.5)],
            (255, 248, 200),
        )
    x, y = s.corner(), s.rng.uniform(0.14, 0.22)
    s.disc(x, y, 0.125, (58, 66, 134))
    s.disc(x, y, 0.095, (255, 246, 206))
    if s.rng.random() < 0.5:  # a crescent, or a full moon with craters
        s.disc(x + 0.045, y - 0.025, 0.08, (40, 46, 108))
    else:
        s.disc(x + 0.03, y + 0.03, 0.022, (236, 222, 176))
        s.disc(x - 0.035, y - 0.02, 0.028, (236, 222, 176))
    s.hills(0.68, 0.05, 1.2, s.tint((36, 44, 92), 6))
    s.hills(0.80, 0.03, 0.8, s.tint((28, 62, 76), 6))


def forest(s: Stage) -> None:
    """Rows of dark pines and trunks, misty behind, mossy ground."""
    s.gradient(0, 0.75, s.tint((190, 222, 184)), (140, 190, 150))
    # Two rows: the farther trees are smaller and paler.
    for n, foot, height, colour in ((7, 0.66, 0.52, (112, 166, 132)), (5, 0.72, 0.66, (62, 124, 88))):
        for x in s.spread(n):
            s.pine(x, foot, height * s.rng.uniform(0.85, 1.15), s.tint(colour))
    s.hills(0.70, 0.02, 1.0, s.tint((70, 120, 62)))
    for x in (s.rng.uniform(-0.02, 0.1), s.rng.uniform(0.9, 1.02)):
        s.pine(x, 0.95, s.rng.uniform(0.9, 1.05), s.tint((32, 88, 64)))
    s.hills(0.84, 0.02, 1.4, s.tint((54, 98, 52)))


def desert(s: Stage) -> None:
    """Hot pale sky, dunes and cactuses."""
    s.gradient(0, 0.7, s.tint((120, 200, 232)), (255, 236, 196))
    s.disc(s.corner(), 0.15, 0.085, (255, 252, 224))
    s.hills(0.55, 0.07, 0.9, s.tint((240, 176, 104)))
    for x in s.spread(2, 0.2) * 1.4 - 0.2:
        h, g = s.rng.uniform(0.26, 0.40), s.tint((58, 142, 84))
        w = 0.038
        s.box(x - w, 0.72 - h, x + w, 0.74, g)
        s.disc(x, 0.72 - h, w, g)
        for side, lift in ((-1, 0.45), (1, 0.62)):
            y = 0.72 - h * lift
            s.box(min(x, x + side * 0.11), y - 0.025, max(x, x + side * 0.11), y + 0.025, g)
            s.box(x + side * 0.11 - 0.028, y - 0.11, x + side * 0.11 + 0.028, y + 0.025, g)
            s.disc(x + side * 0.11, y - 0.11, 0.028, g)
    s.hills(0.70, 0.04, 0.7, s.tint((228, 150, 82)))
    s.hills(0.86, 0.05, 0.6, s.tint((246, 186, 114)))


def city(s: Stage) -> None:
    """A skyline with lit windows behind a street."""
    s.gradient(0, 0.7, s.tint((136, 178, 226)), (230, 222, 232))
    for n, low, high, colour in ((6, 0.34, 0.56, (158, 164, 196)), (5, 0.18, 0.44, (112, 116, 156))):
        for x in s.spread(n, 0.25):
            w, top = s.rng.uniform(0.07, 0.105), 0.70 - s.rng.uniform(low, high)
            wall = s.tint(colour, 16)
            s.box(x - w, top, x + w, 0.72, wall)
            if n == 5:  # only the near row has windows
                for wy in np.arange(top + 0.05, 0.66, 0.105):
                    for dx in (-0.5, 0.5):
                        s.box(x + dx * w - 0.02, wy, x + dx * w + 0.02, wy + 0.05, (255, 230, 150))
    s.box(0, 0.70, 1, 0.78, s.tint((186, 182, 186)))
    s.box(0, 0.77, 1, 1, s.tint((94, 94, 108)))
    shift = s.rng.uniform(0, 0.3)
    for x in np.arange(-0.3, 1.2, 0.3):
        s.box(x + shift, 0.925, x + shift + 0.16, 0.955, (246, 240, 214))


def water(s: Stage) -> None:
    """Open water with rows of waves up to a far island."""
    s.gradient(0, 0.5, s.tint((126, 206, 250)), (226, 246, 252))
    s.cloud(s.corner(), s.rng.uniform(0.10, 0.2), 0.085)
    x = s.rng.uniform(0.1, 0.9)
    s.disc(x, 0.45, 0.2, s.tint((110, 176, 130)), 0.10)
    s.gradient(0.44, 1, s.tint((44, 140, 216)), s.tint((20, 78, 166)))
    # Nearer waves are longer, higher and thicker.
    for k, y in enumerate((0.50, 0.60, 0.72, 0.86)):
        n, phase = 7 - k, s.rng.random()
        xs = np.linspace(0, 1, 57)
        line = y + (0.012 + 0.007 * k) * np.abs(np.sin(np.pi * (xs * n + phase)))
        thick = 0.012 + 0.006 * k
        s.poly(
            [*zip(xs, line, strict=True), *zip(xs[::-1], line[::-1] + thick, strict=True)], (130, 208, 244)
        )


def meadow(s: Stage) -> None:
    """Rolling green with big flowers under a blue sky."""
    s.gradient(0, 0.62, s.tint((116, 198, 250)), (222, 244, 250))
    s.cloud(s.rng.uniform(0.1, 0.4), s.rng.uniform(0.1, 0.25), 0.08)
    s.cloud(s.rng.uniform(0.6, 0.9), s.rng.uniform(0.1, 0.25), 0.065)
    s.hills(0.55, 0.04, 1.1, s.tint((150, 212, 110)))
    s.hills(0.64, 0.03, 0.8, s.tint((112, 192, 84)))
    petals = ((255, 120, 150), (255, 255, 255), (255, 214, 70), (190, 120, 230))
    for k, x in enumerate(s.spread(9)):
        y = 0.72 + 0.24 * ((k * 4) % 9) / 9 + s.rng.uniform(-0.02, 0.02)
        c = petals[int(s.rng.integers(len(petals)))]
        for a in np.arange(5) * 2 * np.pi / 5:
            s.disc(x + 0.026 * np.cos(a), y + 0.026 * np.sin(a), 0.021, c)
        s.disc(x, y, 0.018, (255, 190, 60))


def mountains(s: Stage) -> None:
    """Grey-blue peaks with snow caps over a green valley."""
    s.gradient(0, 0.7, s.tint((124, 186, 240)), (238, 240, 250))
    far, near = s.tint((150, 162, 198)), s.tint((104, 116, 156))
    for xs, low, high, colour in (
        (s.spread(3), 0.22, 0.32, far),
        (s.spread(2, 0.3) * 1.2 - 0.1, 0.12, 0.24, near),
    ):
        for x in xs:
            top = s.rng.uniform(low, high)
            w = (0.72 - top) * 0.72
            s.poly([(x - w, 0.72), (x, top), (x + w, 0.72)], colour)
            cap = 0.34 * (0.72 - top)
            k = w / (0.72 - top)
            s.poly(
                [
                    (x, top),
                    (x - cap * k, top + cap),
                    (x - cap * k * 0.4, top + cap * 0.72),
                    (x, top + cap * 1.1),
                    (x + cap * k * 0.45, top + cap * 0.75),
                    (x + cap * k, top + cap),
                ],
                (250, 252, 255),
            )
    s.hills(0.70, 0.02, 1.0, s.tint((92, 150, 96)))
    s.hills(0.84, 0.03, 0.8, s.tint((120, 176, 98)))


def rainbow(s: Stage) -> None:
    """A wide rainbow that ends behind green hills and clouds."""
    s.gradient(0, 0.8, s.tint((150, 204, 246)), (232, 244, 252))
    x, y, r = s.rng.uniform(0.42, 0.58), s.rng.uniform(0.66, 0.74), s.rng.uniform(0.52, 0.60)
    bands = ((238, 84, 84), (250, 158, 70), (252, 222, 90), (112, 200, 110), (90, 160, 236), (158, 108, 210))
    # Discs of decreasing size, and one in the sky's colour, leave the bands.
    for k, colour in enumerate(bands):
        s.disc(x, y, r - 0.042 * k, colour)
    s.disc(x, y, r - 0.042 * len(bands), (206, 232, 250))
    s.hills(0.74, 0.03, 0.9, s.tint((134, 200, 112)))
    s.hills(0.86, 0.02, 0.8, s.tint((110, 182, 96)))
    for at in (x - r + 0.12, x + r - 0.12):
        s.cloud(at, 0.70, 0.075)


def room(s: Stage) -> None:
    """A wall with a window and a picture, a wooden floor, a rug."""
    wall = s.tint(
        [(246, 216, 180), (188, 216, 206), (224, 196, 216), (236, 224, 150)][int(s.rng.integers(4))]
    )
    s.gradient(0, 0.72, wall, to_rgb(v * 0.93 for v in wall))
    x = s.rng.choice([0.24, 0.76])
    s.box(x - 0.19, 0.08, x + 0.19, 0.48, (255, 255, 255))
    for dx in (-1, 1):
        s.box(x + dx * 0.085 - 0.07, 0.11, x + dx * 0.085 + 0.07, 0.45, s.tint((140, 208, 246)))
    s.box(x - 0.19, 0.265, x + 0.19, 0.29, (255, 255, 255))
    p = 1 - x  # the picture hangs opposite of the window
    s.box(p - 0.12, 0.16, p + 0.12, 0.42, (150, 100, 66))
    s.box(p - 0.09, 0.19, p + 0.09, 0.39, s.tint((244, 236, 214)))
    s.disc(p, 0.29, 0.055, s.tint((230, 120, 100), 30))
    s.box(0, 0.69, 1, 0.73, (250, 246, 238))
    s.gradient(0.73, 1, s.tint((206, 150, 98)), (178, 120, 76))
    # Gaps between the floor boards, in perspective.
    for k in range(-3, 4):
        s.poly(
            [(0.5 + k * 0.2, 0.73), (0.51 + k * 0.2, 0.73), (0.52 + k * 0.34, 1), (0.5 + k * 0.34, 1)],
            (166, 110, 70),
        )
    s.disc(0.5, 0.90, 0.38, s.tint((200, 92, 92), 40), 0.075)


def sunset(s: Stage) -> None:
    """Purple to orange sky, a large sun sinking into a glowing sea between dark hills."""
    s.gradient(0, 0.66, s.tint((86, 58, 140)), s.tint((228, 96, 120)), (255, 190, 92))
    x = s.rng.uniform(0.25, 0.75)
    s.disc(x, 0.60, 0.27, (255, 200, 104))
    s.disc(x, 0.60, 0.20, (255, 236, 150))
    y = s.rng.uniform(0.12, 0.3)
    s.disc(s.rng.uniform(0, 0.3), y, 0.2, (206, 104, 150), 0.028)
    s.disc(s.rng.uniform(0.7, 1), y + 0.12, 0.22, (250, 150, 130), 0.028)
    s.gradient(0.64, 1, (246, 150, 92), s.tint((112, 62, 124)))
    # Reflections of the sun.
    for k in range(3):
        s.disc(x, 0.69 + 0.055 * k, 0.17 - 0.04 * k, (255, 222, 140), 0.014)
    s.hills(0.84, 0.03, 0.8, s.tint((76, 44, 92), 6))


def plain(s: Stage) -> None:
    """A soft studio: one pale colour, a little lighter above than on the ground."""
    tones = ((250, 250, 250), (252, 240, 228), (230, 242, 250), (236, 246, 232), (246, 234, 246))
    tone = s.tint(tones[int(s.rng.integers(len(tones)))], 4)
    dim = to_rgb(v * 0.93 for v in tone)
    s.gradient(0, 1, tone, tone, tone, dim, tone)


PAINTERS: dict[str, Callable[[Stage], None]] = {
    f.__name__: f
    for f in (
        beach,
        snow,
        night,
        forest,
        desert,
        city,
        water,
        meadow,
        mountains,
        rainbow,
        room,
        sunset,
        plain,
    )
}


def check_background(name: str) -> None:
    """Raise `ValueError`, which lists the known backgrounds, if `name` is not one of them."""
    if name not in PHRASES:
        raise ValueError(f"unknown toybox background {name!r}; the known ones are: {', '.join(BACKGROUNDS)}.")


def paint_background(name: str, seed: int, side: int) -> Image.Image:
    """Paint a background without subjects: an RGB image (side, side). It depends only on the arguments."""
    check_background(name)
    stage = Stage(side, np.random.default_rng([seed, BACKGROUNDS.index(name)]))
    PAINTERS[name](stage)
    return stage.image
