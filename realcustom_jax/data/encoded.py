"""Precomputed latents and text features, stored in the data set's folder and read with its examples.

The folder `encoded-SPLIT/` has an `encoded.json` that describes them, and ArrayRecord files with one record
per example, in the order of the data set: mean and log-variance of the VAE's posterior and, if wanted, the
text features of the caption. `empty.safetensors` has the text features of an empty caption.
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
from realcustom_jax.common.files import write_json
from realcustom_jax.data.image_text import Split

TEXT_FEATURES = ("text", "pooled")  # only models like SDXL have the second
_INFO, _EMPTY = "encoded.json", "empty.safetensors"


@dataclasses.dataclass(frozen=True)
class EncodedInfo:
    """Description of stored latents. Training must use the same encoders and shapes.

    Attributes:
      vae: fingerprint of the VAE's encoder.
      shapes: (height, width) in pixels to which images were cropped: one shape, or those of the buckets.
      examples: number of examples.
      text: fingerprint of the text encoders; "" if there are only latents.
      vae_dtype, text_dtype: compute dtypes of the VAE and of the text encoders.
    """

    vae: str
    shapes: tuple[tuple[int, int], ...]
    examples: int
    text: str = ""
    vae_dtype: str = "float32"
    text_dtype: str = "float32"

    def to_json(self) -> dict[str, Any]:
        """The fields for JSON, without dtypes that are float32."""
        # Files of older versions have no dtypes and were made in float32: they must compare as equal.
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if not (k in _DTYPES and v == "float32")}


_DTYPES = ("vae_dtype", "text_dtype")


class EncodedSplit:
    """A split whose examples have "mean" and "log_variance", float16 (h, w, c); picklable like `Split`.

    Examples have no "image" unless `with_image` is set.

    Attributes:
      empty_text: {"text": (n_t, C_t)[, "pooled": (C,)]} in float16, the features of an empty caption; None if
        examples have no text features.
    """

    def __init__(self, data: Split, records: Any, with_image: bool, empty_text: dict[str, np.ndarray] | None):
        self._data, self._records, self._with_image = data, records, with_image
        self.empty_text = empty_text

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._with_image:
            example = self._data[index]
        else:  # decoding the image would take more time than everything else here
            example = self._data.without_image(index)
            del example["image"]
        stored = load_tensors(self._records[index])
        if self.empty_text is None:
            stored = {name: x for name, x in stored.items() if name not in TEXT_FEATURES}
        return {**example, **stored}


def pack(values: Mapping[str, np.ndarray]) -> bytes:
    """Pack the features of one example into a record, as safetensors bytes in float16."""
    # float16 keeps three digits. A sample from the posterior has noise in the second digit already.
    return save_tensors({name: np.asarray(x, np.float16) for name, x in values.items()})


def encoded_folder(data: Split) -> Path:
    """Folder of a split's latents."""
    return data.folder / f"encoded-{data.name}"


def shard_path(folder: Path, number: int, count: int) -> Path:
    """File number `number` of `count`."""
    return folder / f"latents.array_record-{number:05d}-of-{count:05d}"


def write_info(folder: Path, info: EncodedInfo, empty_text: Mapping[str, np.ndarray] | None) -> None:
    """Write the description of the latents, and the features of an empty caption if there are any."""
    # The description is written last: `read_info` takes a folder without it for an unfinished one.
    if empty_text is not None:
        save_file({name: np.asarray(x, np.float16) for name, x in empty_text.items()}, folder / _EMPTY)
    write_json(folder / _INFO, info.to_json())


def read_info(folder: Path) -> EncodedInfo | None:
    """Read the description of latents; None if there are none, or they are not complete.

    Raises:
      UserError: the description is damaged.
    """
    path = folder / _INFO
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())
        shapes = tuple((operator.index(height), operator.index(width)) for height, width in values["shapes"])
        rest = {name: values[name] for name in ("text", *_DTYPES) if name in values}
        return EncodedInfo(values["vae"], shapes, operator.index(values["examples"]), **rest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"'{path}' is damaged: delete '{folder}' and run python -m realcustom_jax.data.encode again"
        ) from None


def open_encoded(
    data: Split, vae: str, shapes: Sequence[tuple[int, int]], with_image: bool, text: str = ""
) -> EncodedSplit:
    """Open a split with its stored latents.

    Args:
      data: the split.
      vae: fingerprint of the model's VAE.
      shapes: (height, width) to which training crops images.
      with_image: whether examples have their decoded image too.
      text: fingerprint of the model's text encoders; "" to ignore stored text features.

    Raises:
      UserError: there are no latents, or they were made with another VAE, text encoders or shapes.
    """
    folder = encoded_folder(data)
    _check_info(read_info(folder), data, vae, tuple(shapes), text)
    # Sorted by number, because names with more than five digits do not sort.
    files = sorted(folder.glob("latents.*"), key=lambda path: int(path.name.split("-")[1]))
    records = ArrayRecordDataSource([str(path) for path in files])
    if len(records) != len(data):
        raise UserError(f"'{folder}' has {len(records)} latents of {len(data)}: a file is missing; {_AGAIN}")
    try:
        empty = load_file(folder / _EMPTY) if text else None
    except (OSError, SafetensorError):
        raise UserError(f"'{folder / _EMPTY}' is missing or damaged; {_AGAIN}") from None
    return EncodedSplit(data, records, with_image, empty)


_AGAIN = "delete that folder and run python -m realcustom_jax.data.encode again"


def _check_info(
    info: EncodedInfo | None, data: Split, vae: str, shapes: tuple[tuple[int, int], ...], text: str
) -> None:
    """Raise `UserError` if the stored latents do not fit the data set or the model; see `open_encoded`."""
    folder = encoded_folder(data)
    if info is None:
        raise UserError(
            f"the data set has no stored latents in '{folder}', which config.data.encoded needs; "
            "python -m realcustom_jax.data.encode makes them"
        )
    if info.vae != vae:
        raise UserError(f"the latents in '{folder}' were made with another VAE than the model's; {_AGAIN}")
    if info.shapes != shapes:
        texts = [", ".join(f"{h}×{w}" for h, w in some) for some in (info.shapes, shapes)]
        raise UserError(
            f"the latents in '{folder}' are of images of {texts[0]}, but training needs {texts[1]}; {_AGAIN}"
        )
    if info.examples != len(data):
        raise UserError(
            f"'{folder}' has latents of {info.examples} examples, but the data set has {len(data)}"
        )
    if text and not info.text:
        raise UserError(
            f"'{folder}' has no text features, which config.data.encoded_text needs; {_AGAIN}, with "
            "--encode-text"
        )
    if text and info.text != text:
        raise UserError(
            f"the text features in '{folder}' were made with other text encoders than the model's; {_AGAIN}"
        )
