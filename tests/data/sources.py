"""Small sources of every kind, for the tests of `data.prepare`."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, width: int = 32, height: int = 24) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def write_tar(path: Path, samples: list[dict[str, bytes]], first: int = 0) -> Path:
    """Sample i's files are {i:04d}.SUFFIX."""
    with tarfile.open(path, "w") as archive:
        for i, files in enumerate(samples, first):
            for suffix, content in files.items():
                info = tarfile.TarInfo(f"{i:04d}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def sample(i: int, **metadata) -> dict[str, bytes]:
    """A complete example; its picture and caption depend on its number."""
    return {
        "jpg": encode(picture(i)),
        "txt": f"caption of {i}".encode(),
        "json": json.dumps({"number": i, **metadata}).encode(),
    }
