"""Makes printable forms of a story: a contact sheet of all scenes, and a PDF with one scene per page."""

import io
import math
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from realcustom_jax.story.story import Story

# All sizes are in pixels of the sheet.
_TILE = 320  # the longer side of a scene on the contact sheet
_PAGE = 768  # the longer side of a scene in the PDF
_GAP = 24
_COLUMNS = 3
_PAPER, _INK = "#faf9f6", "#23242b"


def contact_sheet(story: "Story") -> Image.Image:
    """All scenes that have an image, in rows of three, with their numbers and prompts."""
    tiles = [_captioned(story, i, _TILE, 15) for i in range(len(story.pages)) if story.pages[i].samples]
    columns = min(_COLUMNS, len(tiles)) or 1
    width = max((tile.width for tile in tiles), default=_TILE)
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    size = (columns * (width + _GAP) + _GAP, sum(heights) + (len(rows) + 1) * _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            sheet.paste(tile, (_GAP + column * (width + _GAP), top))
        top += height + _GAP
    return sheet


def story_pdf(story: "Story") -> bytes:
    """A PDF with a page for each scene that has an image."""
    pages = []
    for i, page in enumerate(story.pages):
        if page.samples:
            scene = _captioned(story, i, _PAGE, 26)
            sheet = Image.new("RGB", (scene.width + 4 * _GAP, scene.height + 4 * _GAP), "white")
            sheet.paste(scene, (2 * _GAP, 2 * _GAP))
            pages.append(sheet)
    buffer = io.BytesIO()
    if pages:
        pages[0].save(buffer, "PDF", save_all=True, append_images=pages[1:], resolution=144.0)
    return buffer.getvalue()


def _captioned(story: "Story", index: int, side: int, points: int) -> Image.Image:
    """The image of a scene, enlarged or shrunk to a longer side, with its prompt below."""
    page = story.pages[index]
    assert page.samples is not None
    image = page.samples.pil()[0]
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # The toybox's small images stay sharp.
    image = image.resize(size, Image.Resampling.NEAREST if scale >= 4 else Image.Resampling.LANCZOS)
    font = ImageFont.load_default(size=points)
    lines = _wrapped(f"{index + 1}. {page.scene.prompt}", font, side)
    line = math.ceil(1.3 * points)
    tile = Image.new("RGB", (side, size[1] + 8 + line * len(lines)), _PAPER)
    tile.paste(image, ((side - size[0]) // 2, 0))
    draw = ImageDraw.Draw(tile)
    for number, text in enumerate(lines):
        draw.text((0, size[1] + 8 + number * line), text, fill=_INK, font=font)
    return tile


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Lines of a text, at most four; a longer text ends with "…"."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > 4:
        lines = [*lines[:3], f"{lines[3]} …"]
    return lines
