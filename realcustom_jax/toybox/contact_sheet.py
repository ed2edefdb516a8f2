"""A grid of small images to look at."""

from collections.abc import Sequence

import numpy as np
from PIL import Image


def contact_sheet(images: Sequence[np.ndarray], columns: int, scale: int = 1) -> Image.Image:
    """Lays uint8 images (S, S, 3) out in rows of `columns`, each pixel enlarged `scale` times."""
    side = images[0].shape[0]
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    for k, image in enumerate(images):
        sheet.paste(Image.fromarray(image), (k % columns * side, k // columns * side))
    return sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)
