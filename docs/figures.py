"""Makes the two pictures of the README: `python docs/figures.py`.

The script draws method.svg, and crops readme.png from demo.png (see `python -m realcustom_jax.toybox.demo`).
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parent
WIDTH, HEIGHT = 980, 430
INK, PAPER, TEAL, ORANGE, GREY = "#1f2430", "#fbfaf6", "#0f766e", "#c2571a", "#6b7280"
# Size of demo.png, and its rows (top, bottom) to keep: the column titles, and every second subject.
SHEET = (1148, 1752)
BANDS = ((138, 172), (432, 674), (1184, 1426))


def main() -> None:
    (DOCS / "method.svg").write_text(method_figure(), encoding="utf-8")
    wide_picture(Image.open(DOCS / "demo.png")).save(DOCS / "readme.png", optimize=True)


def wide_picture(sheet: Image.Image) -> Image.Image:
    """Stack the bands of the demo sheet vertically."""
    if sheet.size != SHEET:
        raise SystemExit(f"demo.png has size {sheet.size}, but the bands are for {SHEET}")
    picture = Image.new("RGB", (sheet.width, sum(bottom - top for top, bottom in BANDS)))
    y = 0
    for top, bottom in BANDS:
        picture.paste(sheet.crop((0, top, sheet.width, bottom)), (0, y))
        y += bottom - top
    return picture


def method_figure() -> str:
    """One denoising step as SVG: both branches, the mask and the visual tokens between them."""
    parts = [
        # inputs
        _box(20, 60, 150, 62, ["prompt", "“a dog in snow”"], GREY),
        _box(20, 184, 150, 50, ["latents z_t"], GREY),
        _box(20, 318, 150, 62, ["reference image", "of your dog"], GREY),
        # guidance branch
        _box(230, 44, 200, 94, ["guidance branch", "UNet with text only"], TEAL, number=1),
        _box(490, 44, 180, 94, ["mask M̂", "top γ_scope of the", "word map of “dog”"], TEAL, number=2),
        # reference
        _box(230, 302, 200, 94, ["image towers", "and projector", "→ visual tokens f"], ORANGE),
        _box(490, 302, 180, 94, ["adaptive scoring", "f ∘ (1 + S), keep", "the top γ_num"], ORANGE, number=3),
        # generation branch
        _box(490, 176, 180, 88, ["generation branch", "UNet with text and", "visual tokens in M̂"], number=4),
        _box(
            740,
            126,
            210,
            112,
            ["guidance and solver", "ε_∅, ε_T, ε_TI", "→ latents of", "the next step"],
            number=5,
        ),
        # arrows
        _arrow([(170, 91), (230, 91)]),
        _arrow([(170, 200), (200, 200), (200, 110), (230, 110)]),
        _arrow([(170, 220), (490, 220)]),
        _arrow([(170, 349), (230, 349)], ORANGE),
        _arrow([(430, 91), (490, 91)], TEAL),
        _arrow([(580, 138), (580, 176)], TEAL),
        _arrow([(430, 349), (490, 349)], ORANGE),
        _arrow([(580, 302), (580, 264)], ORANGE),
        _arrow([(330, 144), (330, 157), (710, 157), (740, 157)], TEAL, over=True),
        _arrow([(670, 215), (740, 215)]),
        _arrow([(845, 238), (845, 412), (8, 412), (8, 209), (20, 209)], GREY),
        _text(845, 404, "repeat for every step", GREY, anchor="end", dx=-8),
        _text(338, 152, "ε_∅, ε_T", TEAL, anchor="start"),
        _text(705, 208, "ε_TI", INK),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" font-family="Helvetica, Arial, sans-serif">\n'
        f"<title>One denoising step of RealCustom</title>\n"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _box(
    x: int, y: int, width: int, height: int, lines: Sequence[str], colour: str = INK, number: int = 0
) -> str:
    """A rounded box; its first line is bold, and a number sits on its left top corner."""
    shapes = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="white" stroke="{colour}" '
        'stroke-width="2"/>'
    ]
    first = y + height / 2 - (len(lines) - 1) * 9 + 5
    for i, line in enumerate(lines):
        shapes.append(_text(x + width / 2, first + 18 * i, line, colour if i == 0 else INK, bold=i == 0))
    if number:
        shapes.append(f'<circle cx="{x}" cy="{y}" r="12" fill="{colour}"/>')
        shapes.append(_text(x, y + 5, str(number), "white", bold=True))
    return "\n".join(shapes)


def _text(
    x: float, y: float, text: str, colour: str, bold: bool = False, anchor: str = "middle", dx: int = 0
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x + dx:g}" y="{y:g}" text-anchor="{anchor}" font-size="14" fill="{colour}"{weight}>'
        f"{escape(text)}</text>"
    )


def _arrow(points: Sequence[tuple[int, int]], colour: str = INK, over: bool = False) -> str:
    """A line through the points with a head at the last; `over` draws a halo, where it crosses others."""
    path = " ".join(f"{x},{y}" for x, y in points)
    (x0, y0), (x, y) = points[-2:]
    dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
    head = f"{x},{y} {x - 9 * dx - 5 * dy},{y - 9 * dy - 5 * dx} {x - 9 * dx + 5 * dy},{y - 9 * dy + 5 * dx}"
    halo = f'<polyline points="{path}" fill="none" stroke="{PAPER}" stroke-width="7"/>\n' if over else ""
    return (
        f'{halo}<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>\n'
        f'<polygon points="{head}" fill="{colour}"/>'
    )


if __name__ == "__main__":
    main()
