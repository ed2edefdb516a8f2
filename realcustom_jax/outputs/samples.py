"""`Samples`: the images and masks of a batch of requests, shown in notebooks and saved to files."""

import base64
import dataclasses
import html
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from realcustom_jax.common.files import make_folder, write_bytes
from realcustom_jax.inputs.transforms import png_bytes
from realcustom_jax.outputs.records import Record

# Maximum number of images that a notebook shows, and their maximum side in pixels: more would bloat the
# notebook.
_SHOWN, _SIDE = 16, 512


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Samples:
    """The result of `sample`: one image per request. An index or a slice selects requests.

    Attributes:
      images: (B, H, W, 3) uint8.
      masks: (B, steps, R, h, w) float32, the influence scope of each subject at each step. R is the largest
        number of subjects of a request, and may be 0.
      words: for each request, the target words of each of its subjects.
      records: for each request, the record that reproduces its image.
    """

    images: np.ndarray
    masks: np.ndarray
    words: list[list[tuple[str, ...]]]
    records: tuple[Record, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | slice) -> "Samples":
        """The samples of one request or of several, always with a batch axis."""
        # A range resolves negative indices and slices, and raises IndexError.
        rows = range(len(self))[index]
        chosen = list(rows) if isinstance(rows, range) else [rows]
        records = tuple(self.records[i] for i in chosen) if self.records else ()
        return Samples(self.images[chosen], self.masks[chosen], [self.words[i] for i in chosen], records)

    def __iter__(self) -> Iterator["Samples"]:
        return (self[i] for i in range(len(self)))

    @property
    def prompts(self) -> list[str]:
        """The prompts, with the words that were added for subjects with the words "auto"."""
        return [record.prompt for record in self.records]

    def pil(self) -> list[Image.Image]:
        """The images as PIL images."""
        return [Image.fromarray(image) for image in self.images]

    def save(self, folder: str | os.PathLike, masks: bool = False) -> list[Path]:
        """Write image_SEED.png for each request, with its record. `sample --from FILE` reproduces it.

        Args:
          folder: created if missing. Existing files of the same names are overwritten.
          masks: whether to also write image_SEED_mask_SUBJECT.png, with the steps from left to right.

        Returns:
          The paths of the images.

        Raises:
          UserError: if a file cannot be written.
        """
        folder = Path(folder)
        make_folder(folder, "folder")
        paths = [folder / f"{name}.png" for name in self._names()]
        for i, (path, content) in enumerate(zip(paths, self.png_files(), strict=True)):
            write_bytes(path, content)
            for r in range(self.masks.shape[2] if masks else 0):
                strip = np.concatenate(list(self.masks[i, :, r]), axis=1)  # (steps, h, w) → (h, steps·w)
                strip = np.round(np.clip(strip, 0.0, 1.0) * 255.0).astype(np.uint8)
                mask = Image.fromarray(strip)
                write_bytes(path.with_name(f"{path.stem}_mask_{r}.png"), png_bytes(mask))
        return paths

    def png_files(self) -> list[bytes]:
        """The images as encoded PNG files, each with its record."""
        records = self.records or (None,) * len(self)
        return [
            png_bytes(image, pnginfo=record and record.png_info())
            for image, record in zip(self.pil(), records, strict=True)
        ]

    def _names(self) -> list[str]:
        """File names without extension: image_SEED, or image_INDEX_SEED if seeds repeat."""
        # Samples without records have no seeds; their index is used.
        seeds = [record.seed for record in self.records] or list(range(len(self)))
        if len(set(seeds)) == len(seeds):
            return [f"image_{seed}" for seed in seeds]
        return [f"image_{i}_{seed}" for i, seed in enumerate(seeds)]

    def __repr__(self) -> str:
        count, height, width, _ = self.images.shape
        steps, slots = self.masks.shape[1:3]
        parts = [f"{count} image{'' if count == 1 else 's'} of {height}x{width}"]
        if slots:
            parts.append(f"masks of {slots} subject{'' if slots == 1 else 's'} at {steps} steps")
        lines = [f"  {i}: {self._caption(i)}" for i in range(min(count, _SHOWN))]
        lines += [f"  … {count - _SHOWN} more"] if count > _SHOWN else []
        return "\n".join([f"Samples({', '.join(parts)})", *(lines if self.records else [])])

    def _caption(self, index: int) -> str:
        record = self.records[index]
        words = "; ".join(", ".join(words) for words in self.words[index])
        prompt = record.prompt if len(record.prompt) <= 60 else record.prompt[:59] + "…"
        return f"{prompt!r}, seed {record.seed}" + (f", subjects: {words}" if words else "")

    def _repr_png_(self) -> bytes | None:
        """The images in a grid, for notebooks."""
        pictures = self._thumbnails()
        if not pictures:
            return None
        columns = min(len(pictures), 4)
        width, height = pictures[0].size
        sheet = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height), "white")
        for i, picture in enumerate(pictures):
            sheet.paste(picture, (i % columns * width, i // columns * height))
        return png_bytes(sheet)

    def _repr_html_(self) -> str:
        """The images with their prompts and seeds, for notebooks."""
        # Images are embedded as data URLs, so a saved notebook is complete. Prompts are the user's, so
        # escaped.
        figures = []
        for i, picture in enumerate(self._thumbnails()):
            data = base64.b64encode(png_bytes(picture)).decode()
            caption = f"<figcaption>{html.escape(self._caption(i))}</figcaption>" if self.records else ""
            figures.append(
                f'<figure style="display:inline-block;margin:4px;max-width:{max(picture.width, 160)}px">'
                f'<img src="data:image/png;base64,{data}">{caption}</figure>'
            )
        more = len(self) - _SHOWN
        return "".join(figures) + (f"<p>… {more} more</p>" if more > 0 else "")

    def _thumbnails(self) -> list[Image.Image]:
        pictures = self[:_SHOWN].pil()
        for picture in pictures:
            picture.thumbnail((_SIDE, _SIDE))
        return pictures
