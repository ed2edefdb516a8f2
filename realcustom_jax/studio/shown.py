"""What the pages show of results: files of images, and status lines."""

import dataclasses
import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from realcustom_jax.common.files import write_bytes
from realcustom_jax.inputs.transforms import png_bytes
from realcustom_jax.outputs.samples import Samples
from realcustom_jax.studio.create import Form, caption, masks_over

# Sides of small images are enlarged to this many pixels where a picture is drawn on or explained.
SIDE = 384


@dataclasses.dataclass(frozen=True)
class Result:
    """The images of a request, as files.

    Attributes:
      samples: the images with their masks and records.
      images: the PNG files, each with its record.
      masks: the same with masks over the images.
      form: the form that made them.
    """

    samples: Samples
    images: Sequence[Path]
    masks: Sequence[Path]
    form: Form | None = None

    @classmethod
    def write(cls, samples: Samples, folder: Path, form: Form | None = None) -> "Result":
        """Write the files of a result into a folder of its own."""
        images = samples.save(folder)
        masks = [path.with_name(f"{path.stem}_masks.png") for path in images]
        for index, path in enumerate(masks):
            write_bytes(path, png_bytes(masks_over(samples, index)))
        return cls(samples, images, masks, form)

    def gallery(self, with_masks: bool = False) -> list[tuple[str, str]]:
        """(file, caption) of each image."""
        paths = self.masks if with_masks else self.images
        return [(str(path), caption(self.samples, index)) for index, path in enumerate(paths)]


def enlarged(image: Image.Image | np.ndarray, side: int = SIDE) -> Image.Image:
    """An image of at least `side` pixels; small ones are enlarged by a whole factor and stay sharp."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    factor = max(1, side // max(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def status_line(text: str, share: float | None = None) -> str:
    """A status as HTML, with a bar if the share is known; screen readers say it when they have time."""
    bar = "" if share is None else f'<progress max="1" value="{share:.3f}" aria-label="progress"></progress>'
    return f'<div role="status" class="studio-status">{html.escape(text)}{bar}</div>'


def error_line(text: str) -> str:
    """A mistake as HTML; screen readers say it at once."""
    return f'<div role="alert" class="studio-error">{html.escape(text)}</div>'
