"""The pen that draws figures: filled, shaded and outlined shapes in unit coordinates."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from realcustom_jax.toybox.palette import RGB, Look, pattern_tile

INK: RGB = (48, 38, 58)
SHADOW: RGB = (38, 22, 64)
LIGHT: RGB = (255, 252, 240)

# Space around the unit square on each side of the sheet, for ears, flags and chimneys.
MARGIN = 0.15

Points = Sequence[tuple[float, float]] | np.ndarray


@cache
def _shading() -> tuple[Image.Image, Image.Image]:
    """Two alpha tiles: shadow at the lower right, light at the upper left."""
    # The pen stretches them over each shape, so all figures are lit from the same side.
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    dark = np.clip((0.55 * x + 0.85 * y) - 0.05, 0, 1) * 120
    light = np.clip(1 - np.hypot(x + 0.42, y + 0.5) / 0.75, 0, 1) * 130
    return Image.fromarray(dark.astype(np.uint8)), Image.fromarray(light.astype(np.uint8))


def rounded(points: Points, times: int = 3) -> np.ndarray:
    """Round the corners of a closed polygon (Chaikin's corner cutting): (n, 2) → (n·2^times, 2)."""
    p = np.asarray(points, float)
    for _ in range(times):
        q = np.roll(p, -1, axis=0)  # the next corner; each edge is replaced by its middle half
        p = np.stack([0.75 * p + 0.25 * q, 0.25 * p + 0.75 * q], 1).reshape(-1, 2)
    return p


def oval(cx: float, cy: float, rx: float, ry: float, *, power: float = 2.0, turn: float = 0.0) -> np.ndarray:
    """Points (36, 2) of a superellipse: power 2 is an ellipse, 4 nearly a box. `turn` is in degrees."""
    t = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    c, s = np.cos(t), np.sin(t)
    x = rx * np.sign(c) * np.abs(c) ** (2 / power)
    y = ry * np.sign(s) * np.abs(s) ** (2 / power)
    a = np.deg2rad(turn)
    return np.stack([cx + x * np.cos(a) - y * np.sin(a), cy + x * np.sin(a) + y * np.cos(a)], 1)


class Pen:
    """Draws one figure on a transparent square sheet.

    `head` is a mask of the same size: 255 where the figure's head is, or its face if it is only a face.
    Coordinates: x to the right, y down; a figure is in about [0, 1]². A fill is "pattern", "main", "second"
    or an RGB triple. Later shapes cover earlier ones, so figures are drawn from back to front.
    """

    def __init__(self, look: Look, side: int):
        self.look = look
        self.sheet = Image.new("RGBA", (side, side), (0, 0, 0, 0))
        self.draw = ImageDraw.Draw(self.sheet)
        self.head = Image.new("L", (side, side), 0)
        self.scale = side / (1 + 2 * MARGIN)
        self.pattern = pattern_tile(look, side)
        self.ink_width = max(2, round(0.022 * self.scale))

    def _pixels(self, points: Points) -> np.ndarray:
        """Unit coordinates in pixels."""
        return (np.asarray(points, float) + MARGIN) * self.scale

    def _colour(self, fill: str | RGB) -> str | RGB:
        """The colour of a fill."""
        main, second = self.look.rgb
        return {"main": main, "second": second}.get(fill, fill) if isinstance(fill, str) else fill

    def _patterned(self, box: tuple[int, int, int, int]) -> Image.Image:
        """The part of the pattern in a box; two-tone parts have the second colour in their lower half."""
        cut = self.pattern.crop(box)
        if self.look.pattern == "two-tone":
            cut.paste(self.look.rgb[1], (0, cut.height // 2, cut.width, cut.height))
        return cut

    def shape(
        self, points: Points, fill: str | RGB = "pattern", *, ink: bool = True, shade: bool = True
    ) -> None:
        """Draw a filled polygon (n, 2) with soft shading and a dark outline."""
        px = self._pixels(points)
        # Only the polygon's bounding box is composited, which is much faster than the whole sheet.
        x0, y0 = (int(v) - 1 for v in px.min(0))
        x1, y1 = (int(v) + 2 for v in px.max(0))
        box, size = (x0, y0, x1, y1), (x1 - x0, y1 - y0)
        mask = Image.new("L", size)
        ImageDraw.Draw(mask).polygon([tuple(p) for p in px - (x0, y0)], fill=255)
        self.sheet.paste(self._patterned(box) if fill == "pattern" else self._colour(fill), box, mask)
        if shade:
            for tile, colour in zip(_shading(), (SHADOW, LIGHT), strict=True):
                self.sheet.paste(colour, box, ImageChops.multiply(mask, tile.resize(size)))
        if ink:
            line = [tuple(p) for p in px]
            self.draw.line([*line, *line[:2]], fill=INK, width=self.ink_width, joint="curve")

    def oval(
        self,
        cx: float,
        cy: float,
        rx: float,
        ry: float,
        fill: str | RGB = "pattern",
        *,
        power: float = 2.0,
        turn: float = 0.0,
        ink: bool = True,
        shade: bool = True,
    ) -> None:
        """Draw a filled superellipse, see `oval`."""
        self.shape(oval(cx, cy, rx, ry, power=power, turn=turn), fill, ink=ink, shade=shade)

    def box(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        fill: str | RGB = "pattern",
        *,
        ink: bool = True,
        shade: bool = True,
    ) -> None:
        """Draw a filled rectangle."""
        self.shape([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill, ink=ink, shade=shade)

    def rod(self, points: Points, width: float, fill: str | RGB = "main") -> None:
        """Draw an outlined thick line with round ends, for tails, legs, handles and masts."""
        px = [tuple(p) for p in self._pixels(points)]
        # A wide dark line, then a narrower one over it: the rest is the outline.
        inner = width * self.scale
        for w, colour in ((inner + 1.6 * self.ink_width, INK), (inner, self._colour(fill))):
            self.draw.line(px, fill=colour, width=max(1, round(w)), joint="curve")
            for x, y in (px[0], px[-1]):
                self.draw.ellipse((x - w / 2, y - w / 2, x + w / 2, y + w / 2), fill=colour)

    def stroke(self, points: Points, width: float = 0.022, colour: RGB = INK) -> None:
        """Draw a thin line, for whiskers, mouths and ropes."""
        px = [tuple(p) for p in self._pixels(points)]
        self.draw.line(px, fill=colour, width=max(1, round(width * self.scale)), joint="curve")

    def dot(self, cx: float, cy: float, r: float, colour: str | RGB = INK) -> None:
        """Draw a flat disc without outline."""
        (x, y), r = self._pixels([(cx, cy)])[0], r * self.scale
        self.draw.ellipse((x - r, y - r, x + r, y + r), fill=self._colour(colour))

    def eye(self, cx: float, cy: float, r: float) -> None:
        """Draw a round eye with a pupil and a highlight."""
        self.dot(cx, cy, r + 0.012)
        self.dot(cx, cy, r, (255, 255, 255))
        self.dot(cx + 0.12 * r, cy + 0.1 * r, 0.66 * r)
        self.dot(cx - 0.15 * r, cy - 0.25 * r, 0.26 * r, (255, 255, 255))

    def mark_head(self, cx: float, cy: float, rx: float, ry: float) -> None:
        """Mark an ellipse as the figure's head, for the face box of its reference. Draws nothing."""
        ImageDraw.Draw(self.head).polygon([tuple(p) for p in self._pixels(oval(cx, cy, rx, ry))], fill=255)

    def smile(self, cx: float, cy: float, w: float) -> None:
        """Draw a small curved mouth of width `w`."""
        t = np.linspace(0.15, np.pi - 0.15, 9)
        self.stroke(np.stack([cx - w / 2 * np.cos(t), cy + w * 0.4 * np.sin(t)], 1), 0.024)

    def face(self, cx: float, cy: float, w: float) -> None:
        """Draw two eyes, a smile and pink cheeks; `w` is the distance between the eyes."""
        self.mark_head(cx, cy + w * 0.1, w * 1.05, w * 0.6)
        for side in (-1, 1):
            self.dot(cx + side * w * 0.85, cy + w * 0.38, w * 0.2, (250, 140, 150))
            self.eye(cx + side * w / 2, cy, w * 0.27)
        self.smile(cx, cy + w * 0.28, w * 0.45)

    def hat(self, cx: float, base: float, w: float, kind: str) -> None:
        """Draw a hat of width `w` with its brim at height `base`. The kind "none" draws nothing."""
        if kind == "party":
            self.shape([(cx - w * 0.36, base), (cx, base - w * 0.95), (cx + w * 0.36, base)], (255, 214, 84))
            self.oval(cx, base - w * 0.95, w * 0.15, w * 0.15, (240, 88, 110), shade=False)
        elif kind == "top":
            self.box(cx - w * 0.32, base - w * 0.68, cx + w * 0.32, base, (64, 56, 78))
            self.box(cx - w * 0.32, base - w * 0.24, cx + w * 0.32, base, "second", shade=False)
            self.rod([(cx - w * 0.52, base), (cx + w * 0.52, base)], 0.03, (64, 56, 78))
        elif kind == "crown":
            points = [(-0.4, 0), (-0.46, -0.6), (-0.2, -0.3), (0, -0.7), (0.2, -0.3), (0.46, -0.6), (0.4, 0)]
            self.shape([(cx + w * x, base + w * y) for x, y in points], (255, 208, 60))
        elif kind == "bow":
            for s in (-1, 1):
                self.shape(
                    rounded(
                        [(cx, base), (cx + s * w * 0.5, base - w * 0.34), (cx + s * w * 0.5, base + w * 0.3)],
                        2,
                    ),
                    "second",
                )
            self.dot(cx, base, w * 0.13)

    def flag(self, x: float, top: float, foot: float, w: float) -> None:
        """Draw a pennant of width `w` on a pole from (x, foot) up to (x, top)."""
        self.shape([(x, top), (x + w, top + w * 0.35), (x, top + w * 0.7)], "second")
        self.stroke([(x, top), (x, foot)], 0.028)
