"""Subjects of a batch of requests as arrays: target words, flags, strengths, masks, photos.

Requests may have different numbers of subjects, and subjects different numbers of photos. Both are padded to
the largest number R of subject slots and P of photos, and flagged.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.rules import quoted
from realcustom_jax.inputs.subjects import Subject
from realcustom_jax.inputs.target_words import phrases_of, words_mask
from realcustom_jax.inputs.transforms import ImageLike, load_image
from realcustom_jax.inputs.user_masks import load_mask, resize_area
from realcustom_jax.inputs.views import reference_views
from realcustom_jax.models.family import Models

# The subjects of each request.
Nested = Sequence[Sequence[Subject]]


def target_tokens(
    tokenizers: Sequence[PreTrainedTokenizerBase], prompts: Sequence[str], subjects: Nested, slots: int
) -> np.ndarray:
    """Target tokens of each subject, 0/1 float32 (B, R, n_t); 0 for empty slots.

    Args:
      tokenizers: one per text encoder.
      prompts: B prompts.
      subjects: the subjects of each prompt.
      slots: R.

    Raises:
      UserError: for words that are not in their prompt or are cut off, and for two subjects of one prompt
        with the same target word.
    """
    tokens = np.zeros((len(prompts), slots, tokenizers[0].model_max_length), np.float32)
    for i, (prompt, own) in enumerate(zip(prompts, subjects, strict=True)):
        for r, subject in enumerate(own):
            tokens[i, r] = words_mask(
                tokenizers, prompt, subject.words, plurals=subject.plurals, match_case=subject.match_case
            )
        _check_distinct_words(prompt, own, tokens[i])
    return tokens


def _check_distinct_words(prompt: str, subjects: Sequence[Subject], tokens: np.ndarray) -> None:
    """Raise `UserError` if two guided subjects share a target token; tokens are (R, n_t)."""
    # They would have the same word map, and the second would lose all its pixels to the first.
    guided = [r for r, subject in enumerate(subjects) if subject.guided]
    for k, second in enumerate(guided):
        for first in guided[:k]:
            if (tokens[first] * tokens[second]).any():
                names = [
                    f"{r + 1} ({quoted(', '.join(phrases_of(prompt, subjects[r].words)))})"
                    for r in (first, second)
                ]
                raise UserError(
                    f"subjects {names[0]} and {names[1]} narrow the same word of the prompt "
                    f"{quoted(prompt)}: give each its own word or occurrence, such as 'dog#2', or a mask"
                )


def slot_arrays(
    subjects: Nested, slots: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`flags`, `strengths`, `user_masks` and `replace_guided` of `Conditioning`, as float32.

    Args:
      subjects: the subjects of each request.
      slots: R.
      height, width: size of the mask grid.

    Returns:
      (B, R), (B, R), (B, R, height, width), (B, R).
    """
    # Empty slots get flag 0, and values that are safe to compute with: strength 1, a mask of ones.
    flags = np.zeros((len(subjects), slots), np.float32)
    strengths, replace_guided = np.ones_like(flags), np.zeros_like(flags)
    masks = np.ones((*flags.shape, height, width), np.float32)
    for i, own in enumerate(subjects):
        for r, subject in enumerate(own):
            flags[i, r], strengths[i, r] = 1.0, subject.strength if subject.acts else 0.0
            if subject.mask is not None:
                masks[i, r] = resize_area(load_mask(subject.mask), height, width)
                replace_guided[i, r] = subject.mask_mode == "instead"
    return flags, strengths, masks, replace_guided


def photo_flags(subjects: Nested, slots: int) -> np.ndarray | None:
    """Photo flags float32 (B, R, P): 1 for a photo, 0 for padding; None if no subject has several photos."""
    most = max((len(subject.photos) for own in subjects for subject in own), default=1)
    if most == 1:  # without the axis P, the program for single photos stays the same
        return None
    flags = np.zeros((len(subjects), slots, most), np.float32)
    # Also for empty slots: a softmax over no token at all would be NaN.
    flags[..., 0] = 1.0
    for i, own in enumerate(subjects):
        for r, subject in enumerate(own):
            flags[i, r, : len(subject.photos)] = 1.0
    return flags


def different_references(subjects: Nested, slots: int, models: Models) -> tuple[np.ndarray, np.ndarray]:
    """Views of the U different reference images, and the index of each slot's image.

    Args:
      subjects: the subjects of each request.
      slots: R.
      models: configs, for the size of the image towers.

    Returns:
      views: uint8 (U, V, S, S, 3), see `reference_views`.
      shown: int32 (B, R), or (B, R, P) if a subject has several photos: 1 + index into views, 0 for none.
    """
    # Often all requests of a batch share one reference, and encoding it costs most.
    size = models.image_configs[0].image_size
    images: list[np.ndarray] = []
    indices: dict[Any, int] = {}  # {image key: 1 + index}
    most = max((len(subject.photos) for own in subjects for subject in own), default=1)
    shown = np.zeros((len(subjects), slots, most), np.int32)
    for i, own in enumerate(subjects):
        for r, subject in enumerate(own):
            for p, image in enumerate(subject.photos):
                key = _image_key(image)
                if key not in indices:
                    assert models.realcustom is not None
                    fit = models.realcustom.reference_fit
                    images.append(reference_views(load_image(image), size, models.high_res, fit))
                    indices[key] = len(images)
                shown[i, r, p] = indices[key]
    return np.stack(images), shown[..., 0] if most == 1 else shown


def _image_key(image: ImageLike) -> Any:
    """Key of an image: paths and bytes are compared by value, PIL images and arrays by identity."""
    return image if isinstance(image, (str, bytes, os.PathLike)) else id(image)
