"""Latents and text features that were computed beforehand, read beside the examples that they belong to.

They lie in the data set's folder, in `encoded-SPLIT/`: an `encoded.json` that tells what they are, and
ArrayRecord files that hold, in the order of the data set's records, mean and log-variance of the posterior
and, where it was asked for, what the UNet takes of the caption; `empty.safetensors` holds that of no caption.
"""

import dataclasses
import json
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import load_file, save_file
from safetensors.numpy import save as save_tensors

from realcustom_jax.common.errors import UserError
from realcustom_jax.data.image_text import Split

TEXT_FEATURES = ("text", "pooled")  # the second of SDXL's kind alone
_INFO, _EMPTY = "encoded.json", "empty.safetensors"


@dataclasses.dataclass(frozen=True)
class EncodedInfo:
    """What stored latents were made with; training must be of the same.

    Attributes:
      vae: fingerprint of the VAE's encoder.
      shapes: (height, width) in pixels that the images were cropped to: one, or those of the buckets.
      examples: how many there are.
      text: fingerprint of the text encoders; "" for latents alone.
      vae_dtype, text_dtype: what the VAE and the text encoders computed in.
    """

    vae: str
    shapes: tuple[tuple[int, int], ...]
    examples: int
    text: str = ""
    vae_dtype: str = "float32"
    text_dtype: str = "float32"

    def to_json(self) -> dict[str, Any]:
        """All fields; dtypes only where they are not float32, the only one that there was at first."""
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if not (k in _DTYPES and v == "float32")}


_DTYPES = ("vae_dtype", "text_dtype")


class EncodedSplit:
    """A split whose examples have "mean" and "log_variance", float16 (h, w, c); picklable as `Split` is.

    They have no "image" unless it is asked for.

    Attributes:
      empty_text: {"text": (n_t, C_t)[, "pooled": (C,)]}, float16, of an empty caption, where the examples
        have these of theirs; else None.
    """

    def __init__(self, data: Split, records: Any, with_image: bool, empty_text: dict[str, np.ndarray] | None):
        self._data, self._records, self._with_image = data, records, with_image
        self.empty_text = empty_text

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._with_image:
            example = self._data[index]
        else:
            example = self._data.without_image(index)
            del example["image"]
        stored = load_tensors(self._records[index])
        if self.empty_text is None:
            stored = {name: x for name, x in stored.items() if name not in TEXT_FEATURES}
        return {**example, **stored}


def pack(values: Mapping[str, np.ndarray]) -> bytes:
    """The record of one example; float16 keeps three digits, of latents that are noise below the second."""
    return save_tensors({name: np.asarray(x, np.float16) for name, x in values.items()})


def encoded_folder(data: Split) -> Path:
    return data.folder / f"encoded-{data.name}"


def shard_path(folder: Path, number: int, count: int) -> Path:
    return folder / f"latents.array_record-{number:05d}-of-{count:05d}"


def write_info(folder: Path, info: EncodedInfo, empty_text: Mapping[str, np.ndarray] | None) -> None:
    """Declares the latents whole; with the features of an empty caption where captions' are stored."""
    if empty_text is not None:
        save_file({name: np.asarray(x, np.float16) for name, x in empty_text.items()}, folder / _EMPTY)
    (folder / _INFO).write_text(json.dumps(info.to_json()) + "\n")


def read_info(folder: Path) -> EncodedInfo | None:
    """What the latents are; None where there are none, or not all yet.

    Raises:
      UserError: the file that says it is damaged.
    """
    path = folder / _INFO
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())
        shapes = tuple(tuple(map(operator.index, x)) for x in values["shapes"])
        rest = {name: values[name] for name in ("text", *_DTYPES) if name in values}
        return EncodedInfo(values["vae"], shapes, operator.index(values["examples"]), **rest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"'{path}' is damaged: delete '{folder}', then python -m realcustom_jax.data.encode makes it anew"
        ) from None


def open_encoded(
    data: Split, vae: str, shapes: Sequence[tuple[int, int]], with_image: bool, text: str = ""
) -> EncodedSplit:
    """A split with its stored latents.

    Args:
      data: the split.
      vae: fingerprint of the model's.
      shapes: (height, width) that training crops images to.
      with_image: whether the examples need their pixels too, which takes the time of decoding.
      text: fingerprint of the model's text encoders; "" to leave stored text features where they are.

    Raises:
      UserError: there are none, or they are of another VAE, other shapes or other text encoders.
    """
    folder = encoded_folder(data)
    info = read_info(folder)
    how = "python -m realcustom_jax.data.encode makes them"
    again = f"delete that folder, then {how} anew"
    if info is None:
        raise UserError(
            f"the data set has no stored latents in '{folder}', which config.data.encoded takes; {how}"
        )
    if info.vae != vae:
        raise UserError(f"the latents in '{folder}' are of another VAE than the model's; {again}")
    if info.shapes != tuple(shapes):
        texts = [", ".join(f"{h}×{w}" for h, w in some) for some in (info.shapes, shapes)]
        raise UserError(
            f"the latents in '{folder}' are of images of {texts[0]}, and training is of {texts[1]}; {again}"
        )
    if info.examples != len(data):
        raise UserError(
            f"'{folder}' has latents of {info.examples} examples, but the data set has {len(data)}"
        )
    if text and not info.text:
        raise UserError(
            f"'{folder}' holds no text features, which config.data.encoded_text takes; {again}, with "
            "--encode-text"
        )
    if text and info.text != text:
        raise UserError(
            f"the text features in '{folder}' are of other text encoders than the model's; {again}"
        )
    # By number: names of more than five digits do not sort.
    files = sorted(folder.glob("latents.*"), key=lambda path: int(path.name.split("-")[1]))
    records = ArrayRecordDataSource([str(path) for path in files])
    if len(records) != len(data):
        raise UserError(f"'{folder}' has {len(records)} latents of {len(data)}: a file is missing; {again}")
    try:
        empty = load_file(folder / _EMPTY) if text else None
    except (OSError, SafetensorError):
        raise UserError(f"'{folder / _EMPTY}' is missing or broken; {again}") from None
    return EncodedSplit(data, records, with_image, empty)
