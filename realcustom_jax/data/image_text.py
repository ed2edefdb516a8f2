"""The data set on disk: a TFDS builder of (key, image, caption, metadata), written and read as ArrayRecord.

The layout is TFDS's own, `data_dir/image_text/1.0.0/`, so other TFDS tools read it too. Neither writing nor
reading needs TensorFlow: images go in as encoded bytes and are decoded here, with PIL.
"""

import contextlib
import dataclasses
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging as absl_logging
from PIL import Image
from tensorflow_datasets.core import shuffle
from tensorflow_datasets.core.utils import tqdm_utils

from realcustom_jax.data.transforms import load_image
from realcustom_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Example:
    """One picture and its caption.

    Attributes:
      key: unique in its split; names the example in errors.
      image: encoded PNG or JPEG bytes, stored as they are.
      caption: what the picture shows.
      metadata: anything JSON can hold.
    """

    key: str
    image: bytes
    caption: str
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


class ImageText(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of picture-caption pairs; `write` and `open_split` are the way to use it."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, splits: Mapping[str, Iterable[Example]] | None = None, **kwargs):
        """`splits` are the examples to write, by split name; None for a builder that only reads."""
        self._examples = splits or {}
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "key": tfds.features.Text(),
                "image": tfds.features.Image(),
                "caption": tfds.features.Text(),
                "metadata": tfds.features.Text(doc="JSON"),
            }
        )
        return self.dataset_info_from_configs(
            features=features, supervised_keys=None, description="Pictures with captions."
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        del dl_manager  # nothing is downloaded: the examples are given
        return {split: self._generate_examples(split) for split in self._examples}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        example = None
        for example in self._examples[split]:
            _check_image(example)
            yield (
                example.key,
                {
                    "key": example.key,
                    "image": io.BytesIO(example.image),  # TFDS takes bytes for a path
                    "caption": example.caption,
                    "metadata": json.dumps(example.metadata),
                },
            )
        if example is None:
            raise UserError(f"the split '{split}' has no example")


class Split:
    """A split as a random-access source: `len(split)`, `split[i]`; can be pickled for loader workers."""

    def __init__(self, records: Any):
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"key": str, "image": uint8 (H, W, 3), "caption": str, "metadata": dict} of the example `index`.

        Raises:
          IndexError: `index` is out of range.
          UserError: the image cannot be decoded; the sentence names the example's key.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        record = self._records[int(index) % len(self)]
        key = record["key"].decode()
        return {
            "key": key,
            "image": load_image(record["image"], name=f"the image of example '{key}'"),
            "caption": record["caption"].decode(),
            "metadata": json.loads(record["metadata"]),
        }


def write(data_dir: str | os.PathLike, splits: Mapping[str, Iterable[Example]]) -> None:
    """Writes the splits under `data_dir`. The examples are streamed, so they may be a generator.

    TFDS writes into a temporary folder beside the final one and renames it at the end: an interrupted write
    leaves no data set, and can simply be run again. On disk the order is that of the keys' hashes.

    Raises:
      UserError: `data_dir` holds a data set already or cannot be made, a split has no example, a key appears
        twice, or an image is neither PNG nor JPEG; the sentence names the folder, split or key.
    """
    folder = _folder(data_dir)
    if folder.exists():
        raise UserError(f"'{folder}' holds a data set already; delete it or choose another folder")
    if not splits:
        raise UserError(f"there is no split to write into '{data_dir}'")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the data folder '{data_dir}' cannot be made: {error.strerror}") from None
    with _quiet_tfds(), tempfile.TemporaryDirectory() as downloads:
        builder = ImageText(splits=splits, data_dir=os.fspath(data_dir))
        try:
            builder.download_and_prepare(download_dir=downloads)  # TFDS insists on a folder; it stays empty
        except Exception as error:
            _raise_if_duplicate(error, builder)
            raise


def is_written(data_dir: str | os.PathLike) -> bool:
    """Whether `write` has put a data set under `data_dir`, and finished it."""
    return (_folder(data_dir) / "dataset_info.json").is_file()


def open_split(data_dir: str | os.PathLike, split: str) -> Split:
    """Opens one split of the data set that `write` put under `data_dir`.

    Raises:
      UserError: there is no data set there, or it has no such split (the sentence lists those it has).
    """
    folder = _folder(data_dir)
    if not is_written(data_dir):
        raise UserError(f"there is no image_text data set in '{data_dir}' (looked for '{folder}')")
    with _quiet_tfds():
        builder = tfds.builder_from_directory(os.fspath(folder))
        if split not in builder.info.splits:
            known = ", ".join(sorted(builder.info.splits))
            raise UserError(f"the data set in '{data_dir}' has no split '{split}'; it has: {known}")
        # We decode ourselves: TFDS's decoder ignores EXIF rotation and does not say whose image is broken.
        decoders = {"image": tfds.decode.SkipDecoding()}
        return Split(builder.as_data_source(split, decoders=decoders))


def _folder(data_dir: str | os.PathLike) -> Path:
    return Path(data_dir) / ImageText.name / str(ImageText.VERSION)


def _raise_if_duplicate(error: BaseException, builder: ImageText) -> None:
    """Names the key that appears twice, where TFDS has found one; its own report of it needs TensorFlow."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, shuffle.DuplicatedKeysError):
        cause = cause.__context__
    if cause is not None:
        record = builder.info.features.deserialize_example_np(
            cause.item1, decoders={"image": tfds.decode.SkipDecoding()}
        )
        raise UserError(f"the key '{record['key'].decode()}' appears twice in one split") from None


def _check_image(example: Example) -> None:
    """Raises for what could not be read back later; looks at the image's header only, for speed."""
    try:
        with Image.open(io.BytesIO(example.image)) as image:
            known = image.format
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        known = None
    if known not in ("PNG", "JPEG", "MPO"):  # MPO: the JPEG of phones, with a second picture behind the first
        raise UserError(f"the image of example '{example.key}' cannot be decoded as PNG or JPEG")


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Silences TFDS, which logs, prints and draws progress bars: our commands have their own."""
    verbosity, bars = absl_logging.get_verbosity(), getattr(tqdm_utils, "_active", True)
    absl_logging.set_verbosity(absl_logging.FATAL)
    tfds.display_progress_bar(False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl_logging.set_verbosity(verbosity)
        tfds.display_progress_bar(bars)
