"""Store a data set's latents: `python -m realcustom_jax.data.encode --data-dir DIR --model MODEL`.

Runs the model's VAE over all images, cropped as training crops them, and stores its posterior beside them:
training with --config.data.encoded=True then takes a sample of it in place of running the VAE's encoder at
every step. `data.prepare --encode MODEL` does the same after it has written the data set. With --buckets the
images are cropped to aspect-ratio buckets, as --config.data.buckets=True does.

Text and image features are not stored. A caption's features are larger than most pictures (77 tokens of 768
numbers) and quickly computed; those of the reference would be of one crop, but training varies it.

A run that was cut off goes on when it is started again.
"""

import argparse
import dataclasses
import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from realcustom_jax import pipeline
from realcustom_jax.cli import CommandParser, run_command
from realcustom_jax.data.buckets import bucket_shapes, nearest
from realcustom_jax.data.encoded import (
    EncodedInfo,
    encoded_folder,
    pack,
    read_info,
    shard_path,
    write_info,
)
from realcustom_jax.data.image_text import Split, open_split, split_names
from realcustom_jax.data.transforms import center_crop_resize
from realcustom_jax.errors import UserError
from realcustom_jax.files import replacing
from realcustom_jax.models.conditioning import to_signed
from realcustom_jax.models.family import Models
from realcustom_jax.models.vae import VAE
from realcustom_jax.weights.keys import flatten

_CHUNK = 1024  # examples of one file, whose latents are in memory until it is written


@dataclasses.dataclass(frozen=True)
class Encoding:
    """A VAE and the shapes that images are cropped to.

    Attributes:
      encode: uint8 (B, H, W, 3) → mean and log-variance, (B, h, w, c).
      vae: its fingerprint.
      shapes: (height, width) in pixels, see `training_shapes`.
      batch_size: of `encode`.
    """

    encode: Callable[[np.ndarray], tuple[jax.Array, jax.Array]]
    vae: str
    shapes: tuple[tuple[int, int], ...]
    batch_size: int


def fingerprint(vae: Mapping[str, Any]) -> str:
    """Tells encoders apart by their weights, in float16: saving a model in that precision changes nothing."""
    digest = hashlib.sha256()
    for path, value in sorted(flatten(vae).items()):
        if path.startswith(("encoder/", "quant_conv/")):
            digest.update(f"{path} {np.shape(value)}\n".encode())
            digest.update(np.asarray(value, np.float16).tobytes())
    return digest.hexdigest()


def training_shapes(
    models: Models, buckets: bool, step: int, max_aspect: float
) -> tuple[tuple[int, int], ...]:
    """(height, width) of the images that a model trains on: its own square, or buckets of as many pixels.

    Raises:
      UserError: the UNet cannot halve latents of this step as often as it does.
    """
    side = models.vae_config.downscale * models.unet_config.sample_size
    if not buckets:
        return ((side, side),)
    needed = models.vae_config.downscale * 2 ** (len(models.unet_config.block_out_channels) - 1)
    if step % needed:
        raise UserError(f"the bucket step {step} must be a multiple of {needed} pixels for this model")
    return tuple(bucket_shapes(side * side, step, max_aspect))


def make_encoding(
    model: str, batch_size: int, buckets: bool = False, step: int = 64, max_aspect: float = 2.0
) -> Encoding:
    """Loads a model's VAE onto all devices.

    Args:
      model: a folder, hub id or "toybox".
      batch_size: images a device.
      buckets, step, max_aspect: see `training_shapes`.
    """
    pipe = pipeline.load_on_host(model)
    shapes = training_shapes(pipe.models, buckets, step, max_aspect)
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    params = jax.device_put(pipe.params["vae"], NamedSharding(mesh, PartitionSpec()))
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    @jax.jit
    def encode(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        moments = pipe.models.vae.apply({"params": params}, to_signed(images), method=VAE.moments)
        return tuple(x.astype(jnp.float16) for x in moments)

    return Encoding(
        lambda images: encode(params, jax.device_put(images, sharding)),
        fingerprint(pipe.params["vae"]),
        shapes,
        batch_size * mesh.size,
    )


def encode_split(data: Split, encoding: Encoding) -> None:
    """Stores the latents of a split, unless they are there; goes on where it was cut off.

    Raises:
      UserError: there are latents of another kind.
    """
    folder = encoded_folder(data)
    info = EncodedInfo(encoding.vae, encoding.shapes, len(data))
    found = read_info(folder)
    if found == info:
        return
    if found is not None:
        raise UserError(f"'{folder}' holds latents of another VAE or other shapes; delete it first")
    # Another kind's half-finished files must not be gone on with.
    kind = hashlib.sha256(repr(info).encode()).hexdigest()[:16]
    work = folder.with_name(f"{folder.name}.incomplete-{kind}")
    work.mkdir(parents=True, exist_ok=True)
    which = np.zeros(len(data), int) if len(info.shapes) == 1 else nearest(data.sizes(), info.shapes)
    count = -(-len(data) // _CHUNK)
    with ThreadPoolExecutor(os.cpu_count()) as threads, tqdm(
        desc=f"encoding {data.name}", total=len(data), unit="image", disable=None
    ) as bar:  # fmt: skip
        for number in range(count):
            chunk = range(number * _CHUNK, min((number + 1) * _CHUNK, len(data)))
            path = shard_path(work, number, count)
            if not path.is_file():
                _write(path, _latents(data, chunk, which, encoding, threads))
            bar.update(len(chunk))
    write_info(work, info)
    work.rename(folder)


def _latents(
    data: Split, chunk: range, which: np.ndarray, encoding: Encoding, threads: ThreadPoolExecutor
) -> list[bytes]:
    """Records of a chunk, in its order, computed shape by shape."""
    records = {}
    for i in np.unique(which[chunk.start : chunk.stop]):
        members = [number for number in chunk if which[number] == i]
        for start in range(0, len(members), encoding.batch_size):
            numbers = members[start : start + encoding.batch_size]
            shape = encoding.shapes[i]
            images = list(threads.map(lambda n, s=shape: center_crop_resize(data[n]["image"], s), numbers))
            images += images[-1:] * (encoding.batch_size - len(images))  # one program a shape
            means, log_variances = (np.asarray(x) for x in encoding.encode(np.stack(images)))
            for number, mean, log_variance in zip(numbers, means, log_variances, strict=False):
                records[number] = pack(mean, log_variance)
    return [records[number] for number in chunk]


def _write(path: Path, records: Sequence[bytes]) -> None:
    with replacing(path) as half:
        writer = ArrayRecordWriter(str(half), "group_size:1")  # 1 is for random access
        for record in records:
            writer.write(record)
        writer.close()


def encode_data_set(data_dir: str | os.PathLike, encoding: Encoding) -> None:
    """Stores the latents of all splits of a data set."""
    for name in split_names(data_dir):
        data = open_split(data_dir, name)
        encode_split(data, encoding)
        print(f"wrote {len(data):,} latents to {encoded_folder(data)}", flush=True)


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """The options of what is encoded, which `data.prepare` has too."""
    parser.add_argument(
        "--encode-batch", type=int, default=8, metavar="N", help="images a device (%(default)s)"
    )
    parser.add_argument("--buckets", action="store_true", help="crop to aspect-ratio buckets, not to squares")
    parser.add_argument(
        "--bucket-step", type=int, default=64, metavar="PIXELS", help="of sides (%(default)s)"
    )
    parser.add_argument(
        "--bucket-max-aspect",
        type=float,
        default=2.0,
        metavar="RATIO",
        help="long by short side (%(default)s)",
    )


def from_arguments(model: str, args: argparse.Namespace) -> Encoding:
    if args.encode_batch < 1 or args.bucket_step < 1 or args.bucket_max_aspect < 1:
        raise UserError("--encode-batch, --bucket-step and --bucket-max-aspect must be at least 1")
    return make_encoding(model, args.encode_batch, args.buckets, args.bucket_step, args.bucket_max_aspect)


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser("data.encode", __doc__)
    parser.add_argument("--data-dir", required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument("--model", required=True, metavar="FOLDER", help="model folder, hub id, or toybox")
    add_arguments(parser)
    args = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    split_names(args.data_dir)  # fails before a large model is loaded
    encode_data_set(args.data_dir, from_arguments(args.model, args))


if __name__ == "__main__":
    run_command(main)
