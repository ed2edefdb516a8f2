"""The data set on disk: a TFDS builder of (key, image, caption, metadata), stored as ArrayRecord.

The folder is TFDS's own, `data_dir/image_text/1.0.0/`, so other TFDS tools can read it. Neither writing nor
reading needs TensorFlow: images are stored as encoded bytes and decoded here, with PIL.

`write` is for data sets up to 1 GB, which TFDS sorts in memory; `data.prepare` writes larger ones. It also
writes `sizes-SPLIT.npy`, the sizes of all images for aspect-ratio buckets.
"""

import contextlib
import dataclasses
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging as absl_logging
from etils import epath
from PIL import ExifTags, Image
from tensorflow_datasets.core import example_serializer, naming, shuffle
from tensorflow_datasets.core.splits import SplitDict
from tensorflow_datasets.core.utils import tqdm_utils

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import check_local
from realcustom_jax.inputs.transforms import load_image

# PIL's names of the image formats in a data set. MPO is a JPEG with a second picture after the first; phones
# make it. TFDS's own decoder (TensorFlow) cannot read WebP, but WebP files are smaller.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP")
_SIZES = "sizes-{}.npy"


@dataclasses.dataclass(frozen=True)
class Example:
    """One image and its caption.

    Attributes:
      key: unique in its split; error messages name it.
      image: encoded PNG, JPEG or WebP bytes, stored unchanged.
      caption: description of the image.
      metadata: any values for JSON.
    """

    key: str
    image: bytes
    caption: str
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


class ImageText(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of image-caption pairs. Use it through `write` and `open_split`."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, splits: Mapping[str, Iterable[Example]] | None = None, **kwargs):
        """`splits` maps split names to the examples to write; None for a builder that only reads."""
        self._examples = splits or {}
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=_features(), supervised_keys=None, description="Pictures with captions."
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in self._examples}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        example = None
        # TFDS would write an empty split without an error.
        for example in self._examples[split]:
            _check_image(example)
            yield example.key, _fields(example)
        if example is None:
            raise UserError(f"the split '{split}' has no example")


def _features() -> tfds.features.FeaturesDict:
    # Metadata is JSON text, because TFDS needs fixed fields and every source has others.
    return tfds.features.FeaturesDict(
        {
            "key": tfds.features.Text(),
            "image": tfds.features.Image(),
            "caption": tfds.features.Text(),
            "metadata": tfds.features.Text(doc="JSON"),
        }
    )


def _fields(example: Example) -> dict[str, Any]:
    return {
        "key": example.key,
        "image": io.BytesIO(example.image),  # TFDS would take plain bytes for a path
        "caption": example.caption,
        "metadata": json.dumps(example.metadata),
    }


class Split:
    """A split with random access: `len(split)`, `split[i]`. It can be pickled for loader workers.

    Attributes:
      folder: folder of its records.
      name: name of the split.
    """

    def __init__(self, records: Any, folder: Path, name: str):
        self._records = records
        self.folder, self.name = folder, name

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Example `index`: {"key": str, "image": uint8 (H, W, 3), "caption": str, "metadata": dict}.

        Raises:
          IndexError: `index` is out of range.
          UserError: the image cannot be decoded; the message names the example's key.
        """
        example = self.without_image(index)
        name = f"the image of example '{example['key']}'"
        return {**example, "image": load_image(example["image"], name)}

    def without_image(self, index: int) -> dict[str, Any]:
        """`split[index]` with the image as encoded bytes, which saves the time of decoding."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        record = self._records[int(index) % len(self)]  # ArrayRecord does not know negative indices
        return {
            "key": record["key"].decode(),
            "image": record["image"],
            "caption": record["caption"].decode(),
            "metadata": json.loads(record["metadata"]),
        }

    def sizes(self) -> np.ndarray:
        """Width and height of each image in pixels, after EXIF rotation: int32 (examples, 2).

        Raises:
          UserError: the file is missing, because `data.prepare` did not write the data set, or damaged.
        """
        path = self.folder / _SIZES.format(self.name)
        if not path.is_file():
            raise UserError(
                f"the data set in '{self.folder}' has no {path.name}, which aspect-ratio buckets need; "
                "python -m realcustom_jax.data.prepare writes it"
            )
        try:
            # Memory-mapped: 100 million images have 800 MB of sizes.
            sizes = np.load(path, mmap_mode="r")
            whole = (
                sizes.shape == (len(self), 2) and np.issubdtype(sizes.dtype, np.integer) and sizes.min() > 0
            )
        except (OSError, ValueError, EOFError):
            whole = False
        if not whole:
            raise UserError(f"'{path}' is damaged: it does not hold the sizes of {len(self)} images")
        return sizes


def write(data_dir: str | os.PathLike, splits: Mapping[str, Iterable[Example]]) -> None:
    """Write splits under `data_dir`. The examples are streamed, so they may be generators.

    TFDS writes into a temporary folder and renames it at the end, so an interrupted write leaves no data set
    and can be run again. The order on disk is that of the keys' hashes.

    Raises:
      UserError: `data_dir` holds a data set already or cannot be created, a split has no example, a key
        appears twice, or an image is not PNG, JPEG or WebP; the message names the folder, split or key.
    """
    folder = new_folder(data_dir)  # TFDS itself would silently keep an existing data set
    if not splits:
        raise UserError(f"there is no split to write into '{data_dir}'")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the data folder '{data_dir}' cannot be made: {error.strerror}") from None
    with _quiet_tfds(), tempfile.TemporaryDirectory() as downloads:
        builder = ImageText(splits=splits, data_dir=os.fspath(data_dir))
        try:
            builder.download_and_prepare(download_dir=downloads)  # TFDS needs a folder, which stays empty
        except Exception as error:
            _raise_if_duplicate(error, builder)
            raise


def new_folder(data_dir: str | os.PathLike) -> Path:
    """The folder of a new data set in `data_dir`; it is not created yet.

    Raises:
      UserError: there is a data set already.
    """
    check_local(data_dir, "data folder")
    folder = _folder(data_dir)
    if folder.exists():
        raise UserError(f"'{folder}' holds a data set already; delete it or choose another folder")
    return folder


def make_serializer() -> Callable[[Example], bytes]:
    """Make a function from an example to its record, for code that writes shards itself."""
    features = _features()
    specs: Any = features.get_serialized_info()
    serializer = example_serializer.ExampleSerializer(specs)
    return lambda example: serializer.serialize_example(features.encode_example(_fields(example)))


def shard_name(split: str, number: int, count: int) -> str:
    """TFDS's file name of a shard."""
    return f"{ImageText.name}-{split}.array_record-{number:05d}-of-{count:05d}"


def write_metadata(
    folder: Path, shard_lengths: Mapping[str, list[int]], sizes: Mapping[str, Iterable[np.ndarray]]
) -> None:
    """Turn a folder of finished shards into a data set: write TFDS's metadata and the image sizes.

    Args:
      folder: folder of the shards, named by `shard_name`.
      shard_lengths: {split: number of examples in each shard}.
      sizes: {split: arrays (n, 2)} of image width and height, in the order of the records.
    """
    with _quiet_tfds(), tempfile.TemporaryDirectory() as unused:  # a builder needs a folder it can create
        info = ImageText(data_dir=unused).info
    splits = []
    for split, lengths in shard_lengths.items():
        names = [shard_name(split, i, len(lengths)) for i in range(len(lengths))]
        size = sum((folder / name).stat().st_size for name in names)
        template = naming.ShardedFileTemplate(epath.Path(folder), dataset_name=ImageText.name, split=split,
                                              filetype_suffix="array_record")  # fmt: skip
        splits.append(tfds.core.SplitInfo(split, lengths, size, template))
        # Filled piece by piece, so that the sizes of a large data set need not fit into memory.
        path = folder / _SIZES.format(split)
        file = np.lib.format.open_memmap(path, "w+", np.int32, (sum(lengths), 2))
        start = 0
        for piece in sizes[split]:
            file[start : start + len(piece)] = piece
            start += len(piece)
        file.flush()
    info.set_splits(SplitDict(splits))
    info.write_to_directory(folder)


def is_written(data_dir: str | os.PathLike) -> bool:
    """Whether there is a complete data set under `data_dir`."""
    try:
        return (_folder(data_dir) / "dataset_info.json").is_file()
    except OSError:  # the name is too long
        return False


def split_names(data_dir: str | os.PathLike) -> list[str]:
    """Names of the splits of the data set under `data_dir`.

    Raises:
      UserError: there is no data set.
    """
    return sorted(_open_builder(data_dir).info.splits)


def open_split(data_dir: str | os.PathLike, split: str) -> Split:
    """Open one split of the data set under `data_dir`.

    Raises:
      UserError: there is no data set, or it does not have this split (the message lists its splits).
    """
    builder = _open_builder(data_dir)
    if split not in builder.info.splits:
        known = ", ".join(sorted(builder.info.splits))
        raise UserError(f"the data set in '{data_dir}' has no split '{split}'; it has: {known}")
    with _quiet_tfds():
        # We decode images ourselves: TFDS ignores EXIF rotation, and its errors do not name the example.
        decoders = {"image": tfds.decode.SkipDecoding()}
        try:
            open_records: Any = builder.as_data_source  # TFDS's decorators hide its arguments
            records = open_records(split, decoders=decoders)
            records[len(records) - 1]  # the last record shows a shard that is cut short
        except Exception as error:
            raise _damaged(_folder(data_dir), f"{type(error).__name__}: {error}") from None
    return Split(records, _folder(data_dir), split)


def _folder(data_dir: str | os.PathLike) -> Path:
    """TFDS's folder of the data set."""
    return Path(data_dir) / ImageText.name / str(ImageText.VERSION)


def _open_builder(data_dir: str | os.PathLike) -> tfds.core.DatasetBuilder:
    """TFDS's builder of an existing data set, after checking its fields."""
    check_local(data_dir, "data folder")
    folder = _folder(data_dir)
    if not is_written(data_dir):
        raise UserError(f"there is no image_text data set in '{data_dir}' (looked for '{folder}')")
    try:
        with _quiet_tfds():
            builder = tfds.builder_from_directory(os.fspath(folder))
            features: Any = builder.info.features
            fields = features.keys()
    except Exception as error:  # for damaged files TFDS raises many kinds of errors
        raise _damaged(folder, f"{type(error).__name__}: {error}") from None
    if fields != _features().keys():
        raise _damaged(folder, f"its fields are {', '.join(map(str, fields))}")
    return builder


def _damaged(folder: Path, reason: str) -> UserError:
    reason = " ".join(reason.split())[:200]
    return UserError(f"the data set in '{folder}' is damaged or of another kind: {reason}")


def _raise_if_duplicate(error: BaseException, builder: ImageText) -> None:
    """Raise `UserError` with the key that appears twice, if that is TFDS's error."""
    # TFDS's own report of it needs TensorFlow.
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, shuffle.DuplicatedKeysError):
        cause = cause.__context__
    if cause is not None:
        features: Any = builder.info.features
        record = features.deserialize_example_np(cause.item1, decoders={"image": tfds.decode.SkipDecoding()})
        raise UserError(f"the key '{record['key'].decode()}' appears twice in one split") from None


def _check_image(example: Example) -> None:
    """Raise `UserError` if the image could not be read later. For speed, only its header is checked."""
    try:
        with Image.open(io.BytesIO(example.image)) as image:
            known = image.format
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        known = None
    if known not in FORMATS:
        raise UserError(f"the image of example '{example.key}' cannot be decoded as PNG, JPEG or WebP")


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image after its EXIF rotation."""
    width, height = image.size
    # The EXIF orientations 5 to 8 swap the sides.
    turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Silence TFDS's log, output and progress bars; our commands have their own."""
    # TFDS has no public function that says whether its bars are on.
    verbosity, bars = absl_logging.get_verbosity(), getattr(tqdm_utils, "_active", True)
    absl_logging.set_verbosity(absl_logging.FATAL)
    tfds.display_progress_bar(False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl_logging.set_verbosity(verbosity)
        tfds.display_progress_bar(bars)
