"""The demo's sheet: references, text-only images, customized images and masks, with labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

# All sizes are in pixels of the sheet.
IMAGE = 192  # side of a shown image: 64 pixels, enlarged three times
MASK_STEPS = 6  # number of masks shown
GAP = 10  # between the images of a group
SPACE = 38  # between groups
MARGIN = 46

# Left edges of the five columns: the reference, then two pairs of a text-only and a customized image.
COLUMNS = tuple(MARGIN + k * IMAGE + (k // 2) * GAP + (k + 1) // 2 * SPACE for k in range(5))
WIDTH = COLUMNS[-1] + IMAGE + MARGIN
PAIR = 2 * IMAGE + GAP
# Side of a mask: six of them with gaps fill the width.
MASK = (WIDTH - 2 * MARGIN - (MASK_STEPS - 1) * 2 * GAP) // MASK_STEPS

PAPER = "#faf9f6"
INK = "#23242b"
GREY = "#777985"
HAIRLINE = "#dddbd4"
# Colours of the first and of the second subject, for words, frames and masks.
ACCENTS = ("#0b7a75", "#cf5a1c")

TITLE = "One photo, new places"
SUBTITLE = (
    "No training has seen these subjects. Text only and customized start from the same noise. In the "
    "customized image the photo narrows the coloured word, inside the mask only."
)


@dataclass(frozen=True)
class Picture:
    """One prompt, sampled twice from the same noise.

    text_only, customized: uint8 (S, S, 3).  masks: float (steps, R, h, w) in [0, 1], of the customized one.
    """

    name: str
    prompt: str
    text_only: np.ndarray
    customized: np.ndarray
    masks: np.ndarray


@dataclass(frozen=True)
class Row:
    """One subject with two pictures, or two subjects with one. References are uint8 (S, S, 3)."""

    words: tuple[str, ...]
    references: tuple[np.ndarray, ...]
    descriptions: tuple[str, ...]
    pictures: tuple[Picture, ...]
    show_masks: bool = False


def demo_sheet(rows: Sequence[Row]) -> Image.Image:
    """Lay the rows out on one labelled sheet, `WIDTH` pixels wide.

    Rows with one subject come first; if `show_masks` is set, the masks of their last picture follow. Rows
    with two subjects come in a section of their own.
    """
    page = _Page()
    page.y += MARGIN - 10
    page.text(MARGIN, WIDTH - 2 * MARGIN, 36, [(TITLE, INK)])
    page.y += 52
    page.text(MARGIN, WIDTH - 2 * MARGIN, 16, [(SUBTITLE, GREY)])
    page.y += 50
    singles = [row for row in rows if len(row.words) == 1]
    doubles = [row for row in rows if len(row.words) == 2]
    if singles:
        page.headings("reference photo", "text only", "customized", "text only", "customized")
    for row in singles:
        _single(page, row)
        if row.show_masks:
            _masks(page, row.words[0], row.pictures[-1])
    if doubles:
        page.headings("reference photo", "reference photo", "last masks", "text only", "customized")
    for row in doubles:
        _double(page, row)
    return page.finish()


def steps_shown(steps: int) -> list[int]:
    """Steps, counted from 0, whose masks are shown: the first, the last and some in between."""
    # A set, because a run with few steps would show some of them twice.
    return sorted({int(k) for k in np.linspace(0, steps - 1, MASK_STEPS).round()})


def enlarge(image: np.ndarray, side: int) -> Image.Image:
    """Enlarge a uint8 image (S, S) or (S, S, 3) to any side, with sharp square pixels."""
    # If `side` is not a multiple of S, plain nearest-neighbour would give pixels of unequal size. Averaging a
    # four times larger image hides that.
    large = Image.fromarray(image).resize((4 * side, 4 * side), Image.Resampling.NEAREST)
    return large.reduce(4)


def spotlight(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The image with everything outside of the masks in pale grey, and the masks outlined in colour.

    Args:
      image: uint8 (S, S, 3).
      masks: float (R, h, w), in [0, 1].

    Returns:
      uint8 (4S, 4S, 3), large enough for thin outlines.
    """
    side = 4 * image.shape[0]
    large = np.asarray(enlarge(image, side), np.float32)
    pale = 0.25 * large.mean(-1, keepdims=True) + 0.75 * 255
    large_masks = [np.asarray(_fit_mask(mask, side)) for mask in masks]
    share = np.clip(np.sum(large_masks, 0), 0, 1)[..., None]
    # Soft masks blend between the image and its pale version.
    result = share * large + (1 - share) * pale
    for mask, colour in zip(large_masks, ACCENTS, strict=False):
        result[_outline(mask > 0, width=max(2, side // 64))] = ImageColor.getrgb(colour)
    return result.round().astype(np.uint8)


def _fit_mask(mask: np.ndarray, side: int) -> Image.Image:
    """Enlarge a mask (h, w) to (side, side), with its largest value scaled to 1."""
    # Without the scaling, a soft mask would make the whole picture pale.
    cells = np.asarray(mask, np.float32)
    cells = np.clip(cells / max(float(cells.max()), 1e-6), 0, 1)
    return Image.fromarray(cells).resize((side, side), Image.Resampling.NEAREST)


def _outline(inside: np.ndarray, width: int) -> np.ndarray:
    """The outline of a region: its pixels within `width` of the outside or of the image border."""
    # Erosion with a square: a pixel is deep inside if all its neighbours are inside.
    padded = np.pad(inside, width)
    deep = inside.copy()
    size = inside.shape[0]
    for dy in range(-width, width + 1):
        for dx in range(-width, width + 1):
            deep &= padded[width + dy : width + dy + size, width + dx : width + dx + size]
    return inside & ~deep


# ------------------------------------------------------------------------------------------ parts of the page


def _single(page: "_Page", row: Row) -> None:
    """Add a row with one subject and two pictures."""
    page.text(COLUMNS[0], IMAGE, 13, [(row.descriptions[0], GREY)], shift=6)
    for column, picture in zip((1, 3), row.pictures, strict=False):
        page.text(COLUMNS[column], PAIR, 19, _coloured(picture.prompt, row.words))
    page.y += 31
    page.image(COLUMNS[0], row.references[0], IMAGE)
    for column, picture in zip((1, 3), row.pictures, strict=False):
        page.image(COLUMNS[column], picture.text_only, IMAGE)
        page.image(COLUMNS[column + 1], picture.customized, IMAGE, ACCENTS[0])
    page.y += IMAGE + 30


def _double(page: "_Page", row: Row) -> None:
    """Add a row with two subjects and one picture."""
    picture = row.pictures[0]
    for column, description, accent in zip((0, 1), row.descriptions, ACCENTS, strict=True):
        page.text(COLUMNS[column], IMAGE, 13, [(description, accent)], shift=6)
    page.text(COLUMNS[3], PAIR, 19, _coloured(picture.prompt, row.words))
    page.y += 31
    for column, reference in zip((0, 1), row.references, strict=True):
        page.image(COLUMNS[column], reference, IMAGE)
    page.image(COLUMNS[2], spotlight(picture.customized, picture.masks[-1]), IMAGE)
    page.image(COLUMNS[3], picture.text_only, IMAGE)
    page.image(COLUMNS[4], picture.customized, IMAGE, ACCENTS[0])
    page.y += IMAGE + 30


def _masks(page: "_Page", word: str, picture: Picture) -> None:
    """Add the masks of some steps of a picture."""
    steps = len(picture.masks)
    title = f"The influence scope of the last {word}, step by step: where the photo may act"
    page.text(MARGIN, WIDTH - 2 * MARGIN, 15, [(title, GREY)])
    page.y += 28
    for k, step in enumerate(steps_shown(steps)):
        x = MARGIN + k * (MASK + 2 * GAP)
        page.image(x, spotlight(picture.customized, picture.masks[step]), MASK)
        page.text(x, MASK, 14, [(f"step {step + 1} of {steps}", GREY)], shift=MASK + 8)
    page.y += MASK + 58


def _coloured(prompt: str, words: Sequence[str]) -> list[tuple[str, str]]:
    """Split the prompt into runs of (text, colour), with each subject's word in the subject's colour."""
    runs, rest = [], prompt
    for word, accent in zip(words, ACCENTS, strict=False):
        before, match, rest = rest.partition(word)
        runs += [(before, INK), (match, accent)]
    return [(text, colour) for text, colour in [*runs, (rest, INK)] if text]


@cache
def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


class _Page:
    """A sheet that grows downwards. `y` is the position of the next element."""

    def __init__(self) -> None:
        self.y = 0
        self.sheet = Image.new("RGB", (WIDTH, 256), PAPER)

    def _reach(self, bottom: int) -> ImageDraw.ImageDraw:
        """Make the sheet at least `bottom` pixels tall, and return a drawer for it."""
        if bottom > self.sheet.height:
            taller = Image.new("RGB", (WIDTH, 2 * bottom), PAPER)
            taller.paste(self.sheet)
            self.sheet = taller
        return ImageDraw.Draw(self.sheet)

    def text(self, x: int, width: int, size: float, runs: list[tuple[str, str]], shift: int = 0) -> None:
        """Write one line of (text, colour) runs. Text that is too wide shrinks, then is cut with "…"."""
        whole = "".join(text for text, _ in runs)
        # In small steps, because with hinting the width of a line is not proportional to the font size.
        while size > 10.0 and _font(size).getlength(whole) > width:
            size = max(10.0, size - 0.25)
        font, top = _font(size), self.y + shift
        draw, right = self._reach(top + 2 * round(size)), x + width
        position = float(x)
        for text, colour in runs:
            shown = text
            while shown and position + font.getlength(shown) > right:
                shown = shown.rstrip("…")[:-1].rstrip() + "…" if len(shown) > 1 else ""
            draw.text((position, top), shown, colour, font)
            position += font.getlength(shown)
            if shown != text:
                break

    def image(self, x: int, image: np.ndarray, side: int, frame: str = HAIRLINE) -> None:
        """Paste an image with a frame around it."""
        draw = self._reach(self.y + side + 4)
        width = 1 if frame == HAIRLINE else 3
        box = (x - width, self.y - width, x + side + width - 1, self.y + side + width - 1)
        draw.rectangle(box, outline=frame, width=width)
        self.sheet.paste(enlarge(image, side), (x, self.y))

    def headings(self, *labels: str) -> None:
        """Draw a hairline, with a label under it for every column."""
        draw = self._reach(self.y + 40)
        draw.line((MARGIN, self.y, WIDTH - MARGIN - 1, self.y), fill=HAIRLINE)
        for x, label in zip(COLUMNS, labels, strict=True):
            self.text(x, IMAGE, 14, [(label, GREY)], shift=9)
        self.y += 44

    def finish(self) -> Image.Image:
        """The finished sheet."""
        return self.sheet.crop((0, 0, WIDTH, self.y + MARGIN - 30))
