"""ImageReward (arXiv 2304.05977), through its own package."""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from realcustom_jax.common.errors import UserError

MODEL = "ImageReward-v1.0"  # stored with the scores


def load_image_reward() -> Any:
    """Load the model of the package image-reward, which downloads the weights at the first use.

    Raises:
      UserError: the package is not installed.
    """
    try:
        package = importlib.import_module("ImageReward")
    except ImportError as error:
        raise UserError(
            f"ImageReward needs the package image-reward ({error}): pip install image-reward"
        ) from None
    return package.load(MODEL)


def image_reward(model: Any, prompts: Sequence[str], images: Sequence[np.ndarray]) -> np.ndarray:
    """Reward of each image (uint8 (H, W, 3)) for its prompt: (n,), roughly standard normal."""
    scores = [
        model.score(prompt, [Image.fromarray(image)]) for prompt, image in zip(prompts, images, strict=True)
    ]
    return np.asarray(scores, np.float64)
