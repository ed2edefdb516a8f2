"""Which detector finds the face on a reference image?

  pip install scikit-image "realcustom_jax[faces]" && python studies/face_detection.py

Compares detectors whose weights come with a Python package. The twelve test pictures come with scikit-image:
one frontal face, one profile, one cat, and nine without a living face (the coins show heads). Prints the
number of faces that each detector finds on each picture, and its seconds per image.
"""

import time
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from PIL import Image
from skimage.feature import Cascade as LocalPatterns

from realcustom_jax.inputs.face_detection import CASCADES, Cascade, detect, find_face

_FOLDER = Path(skimage.data.__file__).parent
PICTURES = (
    "astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png",
    "hubble_deep_field.jpg", "coins.png", "moon.png", "horse.png", "clock_motion.png", "page.png",
)  # fmt: skip
OTHERS = (
    Cascade("frontalface_default", 1.1, 4),
    Cascade("frontalface_alt2", 1.1, 4),
    Cascade("frontalcatface", 1.05, 4),
)


def main() -> None:
    images = {name: np.asarray(Image.open(_FOLDER / name).convert("RGB")) for name in PICTURES}
    for cascade in (*CASCADES, *OTHERS):
        _show(cascade.file, images, lambda image, c=cascade: detect(cv2, c, _grey(image)))
    lbp = LocalPatterns(_FOLDER / "lbpcascade_frontalface_opencv.xml")
    _show("scikit-image's LBP", images, lambda image: _local_patterns(lbp, np.asarray(_grey(image))))
    _show("find_face", images, lambda image: [box] if (box := find_face(image)) else [])


def _grey(image: np.ndarray) -> Image.Image:
    picture = Image.fromarray(image).convert("L")
    scale = 640 / max(picture.size)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)))


def _local_patterns(cascade: LocalPatterns, grey: np.ndarray) -> list:
    side = min(grey.shape)
    return cascade.detect_multi_scale(
        grey, scale_factor=1.1, step_ratio=1.1, min_size=(side // 8, side // 8), max_size=(side, side)
    )


def _show(name: str, images: dict[str, np.ndarray], find) -> None:
    started = time.perf_counter()
    counts = {picture: len(find(image)) for picture, image in images.items()}
    seconds = (time.perf_counter() - started) / len(images)
    boxes = ", ".join(f"{picture.split('.')[0]} {count}" for picture, count in counts.items() if count)
    print(f"{name}: {boxes or 'nothing'}; {seconds:.2f} s per image")


if __name__ == "__main__":
    main()
