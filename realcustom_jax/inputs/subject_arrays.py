"""The subjects of a batch of requests as arrays: target words, flags, strengths, masks, photos.

Requests may have different numbers of subjects, and subjects of photos: slots and photos are padded and
flagged.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from realcustom_jax.common.errors import UserError
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
    """The target tokens of every subject, float32 (B, R, n_t), 0/1.

    Raises:
      UserError: for words that are not in their prompt or are cut off, and for two subjects of one prompt
        that narrow the same word.
    """
    tokens = np.zeros((len(prompts), slots, tokenizers[0].model_max_length), np.float32)
    for i, (prompt, own) in enumerate(zip(prompts, subjects, strict=True)):
        for r, subject in enumerate(own):
            tokens[i, r] = words_mask(
                tokenizers, prompt, subject.words, plurals=subject.plurals, match_case=subject.match_case
            )
        _check_apart(prompt, own, tokens[i])
    return tokens


def _check_apart(prompt: str, subjects: Sequence[Subject], tokens: np.ndarray) -> None:
    """Subjects of one word would have one map, and the second none of its pixels."""
    guided = [r for r, subject in enumerate(subjects) if subject.guided]
    for k, second in enumerate(guided):
        for first in guided[:k]:
            if (tokens[first] * tokens[second]).any():
                names = [
                    f"{r + 1} ('{', '.join(phrases_of(prompt, subjects[r].words))}')" for r in (first, second)
                ]
                raise UserError(
                    f"subjects {names[0]} and {names[1]} narrow the same word of the prompt '{prompt}': give "
                    "each its own word or occurrence, such as 'dog#2', or a mask"
                )


def slot_arrays(
    subjects: Nested, slots: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`flags`, `strengths`, `user_masks` (B, R, height, width) and `replace_guided` of `Conditioning`."""
    flags = np.zeros((len(subjects), slots), np.float32)
    strengths, replace_guided = np.ones_like(flags), np.zeros_like(flags)
    masks = np.ones((*flags.shape, height, width), np.float32)
    for i, own in enumerate(subjects):
        for r, subject in enumerate(own):
            flags[i, r], strengths[i, r] = 1.0, subject.strength
            if subject.mask is not None:
                masks[i, r] = resize_area(load_mask(subject.mask), height, width)
                replace_guided[i, r] = subject.mask_mode == "instead"
    return flags, strengths, masks, replace_guided


def photo_flags(subjects: Nested, slots: int) -> np.ndarray | None:
    """Which photos of each slot there are, float32 (B, R, P), 0/1; None where no subject has several.

    The first counts also in an empty slot, whose attention needs some token.
    """
    most = max((len(subject.photos) for own in subjects for subject in own), default=1)
    if most == 1:
        return None
    flags = np.zeros((len(subjects), slots, most), np.float32)
    flags[..., 0] = 1.0
    for i, own in enumerate(subjects):
        for r, subject in enumerate(own):
            flags[i, r, : len(subject.photos)] = 1.0
    return flags


def different_references(subjects: Nested, slots: int, models: Models) -> tuple[np.ndarray, np.ndarray]:
    """The reference images' views, each image once, and which of them every slot shows.

    Returns:
      views: uint8 (U, V, S, S, 3), see `reference_views`.
      shown: int32, 1 + an index into them, 0 for none: (B, R), or (B, R, P) where a subject has several
        photos.
    """
    size = models.image_configs[0].image_size
    images: list[np.ndarray] = []
    places: dict[Any, int] = {}
    most = max((len(subject.photos) for own in subjects for subject in own), default=1)
    shown = np.zeros((len(subjects), slots, most), np.int32)
    for i, own in enumerate(subjects):
        for r, subject in enumerate(own):
            for p, image in enumerate(subject.photos):
                name = _name(image)
                if name not in places:
                    fit = models.realcustom.reference_fit
                    images.append(reference_views(load_image(image), size, models.high_res, fit))
                    places[name] = len(images)
                shown[i, r, p] = places[name]
    return np.stack(images), shown[..., 0] if most == 1 else shown


def _name(image: ImageLike) -> Any:
    """Equal paths and bytes are one image; pictures and arrays are where they are the same object."""
    return image if isinstance(image, (str, bytes, os.PathLike)) else id(image)
