"""Store latents and text features: `python -m realcustom_jax.data.encode --data-dir DIR --model MODEL`.

This runs the model's VAE over all images, cropped as in training, and stores its posteriors with the data
set. Training with --config.data.encoded=True then samples from them, so the VAE's encoder does not run.
`data.prepare --encode MODEL` does the same after it has written a data set. With --buckets, images are
cropped to aspect-ratio buckets, for --config.data.buckets=True.

With --encode-text, the text features of each caption are stored too, for --config.data.encoded_text=True: the
text encoders do not run either. They need much space: 116 KiB per image for SD1.5 (77 tokens of 768 numbers)
and 310 KiB for SDXL, in addition to 64 and 256 KiB of latents. Text features cannot be added later. Features
of the reference are not stored, because training varies its crop.

Both are computed in float32 and stored in float16. On TPUs and GPUs, --vae-dtype bfloat16 and, for the text,
--dtype bfloat16 are faster and less exact.

An interrupted run resumes when it is started again.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
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

from realcustom_jax import pipeline
from realcustom_jax.common.cli import CommandParser, run_command
from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import disk_errors, replacing
from realcustom_jax.common.pixels import to_signed
from realcustom_jax.common.precision import AUTO, resolve_dtype, vae_compute_dtype
from realcustom_jax.common.progress import Progress
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
from realcustom_jax.inputs.tokenize import tokenize
from realcustom_jax.inputs.transforms import center_crop_resize
from realcustom_jax.models.conditioning import encode_text
from realcustom_jax.models.family import TEXT, Models
from realcustom_jax.models.vae import VAE
from realcustom_jax.pipeline import Pipeline, dtype_of_param
from realcustom_jax.weights.components import on_device
from realcustom_jax.weights.flags import add_precision_flags
from realcustom_jax.weights.keys import flatten
from realcustom_jax.weights.reading import read_with_progress

_CHUNK = 1024  # examples per file; their latents are in memory until the file is written
# The default dtype, also on TPUs: features are computed once and used in every epoch.
_DTYPE = "float32"


@dataclasses.dataclass(frozen=True)
class Encoding:
    """Compiled encoders and what identifies them.

    Attributes:
      encode: uint8 (B, H, W, 3) → {"mean", "log_variance"}, each (B, h, w, c).
      encode_captions: B texts → {"text": (B, n_t, C_t)[, "pooled": (B, C)]}; None to store only latents.
      vae, text: fingerprints; "" for `text` if only latents are stored.
      shapes: (height, width) in pixels to which images are cropped, see `training_shapes`.
      batch_size: B of both functions.
      vae_dtype, text_dtype: names of the compute dtypes.
    """

    encode: Callable[[np.ndarray], dict[str, jax.Array]]
    encode_captions: Callable[[list[str]], dict[str, jax.Array]] | None
    vae: str
    text: str
    shapes: tuple[tuple[int, int], ...]
    batch_size: int
    vae_dtype: str = _DTYPE
    text_dtype: str = _DTYPE


def vae_fingerprint(params: Mapping[str, Any]) -> str:
    """A hash of the weights of a VAE's encoder."""
    return _digest(
        {
            path: value
            for path, value in flatten(params["vae"]).items()
            if path.startswith(("encoder/", "quant_conv/"))
        }
    )


def text_fingerprint(pipe: Pipeline, params: Mapping[str, Any]) -> str:
    """A hash of the weights, configs and tokenizers of text encoders."""
    # Tokenizers by their output: the same tokenizer may be stored in different files.
    ids = [tokenize(tokenizer, ["", "a dog"]).tolist() for tokenizer in pipe.tokenizers]
    weights = _digest(flatten({name: params[name] for name in TEXT if name in params}))
    return hashlib.sha256(f"{weights} {pipe.models.text_configs} {ids}".encode()).hexdigest()


def _digest(params: Mapping[str, Any]) -> str:
    """A hash of weights."""
    # Of their float16 values, so that the same model saved in float16 and in float32 has the same hash.
    digest = hashlib.sha256()
    for path, value in sorted(params.items()):
        digest.update(f"{path} {np.shape(value)}\n".encode())
        digest.update(np.asarray(value, np.float16).tobytes())
    return digest.hexdigest()


def training_shapes(
    models: Models, buckets: bool, step: int, max_aspect: float
) -> tuple[tuple[int, int], ...]:
    """(height, width) of the images that a model trains on: its own square, or buckets of the same area.

    Raises:
      UserError: the UNet cannot halve latents of this bucket step often enough.
    """
    # The UNet's sample size is the side of its latents.
    side = models.vae_config.downscale * models.unet_config.sample_size
    if not buckets:
        return ((side, side),)
    needed = models.vae_config.downscale * 2 ** (len(models.unet_config.block_out_channels) - 1)
    if step % needed:
        raise UserError(f"the bucket step {step} must be a multiple of {needed} pixels for this model")
    return tuple(bucket_shapes(side * side, step, max_aspect))


def make_encoding(
    model: str,
    batch_size: int,
    buckets: bool = False,
    step: int = 64,
    max_aspect: float = 2.0,
    text: bool = False,
    dtype: Any = _DTYPE,
    vae_dtype: Any = _DTYPE,
) -> Encoding:
    """Load a model's VAE, and with `text` its text encoders, onto all devices.

    Args:
      model: a folder, hub id or "toybox".
      batch_size: images per device.
      buckets, step, max_aspect: see `training_shapes`.
      text: whether captions are encoded too.
      dtype, vae_dtype: dtypes of the text encoders and of the VAE, for computation and parameters; see
        `pipeline.load`.

    Raises:
      UserError: the model cannot be read, its UNet cannot halve the shapes, or a dtype is unknown.
    """
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    compute = resolve_dtype(dtype, mesh)
    pipe = pipeline.open_model(model, dtype=compute)
    vae = vae_compute_dtype(vae_dtype, compute, pipe.models.vae_config.force_upcast, mesh)
    pipe = pipe.replace(models=dataclasses.replace(pipe.models, vae_dtype=vae))
    shapes = training_shapes(pipe.models, buckets, step, max_aspect)
    names = ("vae", *(pipe.models.text_encoders if text else ()))
    own = {name: pipe.params[name] for name in names}  # the UNet's parameters are never read
    dtypes = functools.partial(dtype_of_param, compute, vae or compute)
    with Progress() as progress:
        place = on_device(dtypes, NamedSharding(mesh, PartitionSpec()))
        params = read_with_progress(own, place, progress, dtypes)
    encode, encode_captions = _encoders(pipe, params, mesh)
    return Encoding(
        encode,
        encode_captions if text else None,
        # Of the weights on disk, not of those on the devices, which may be rounded.
        vae_fingerprint(own),
        text_fingerprint(pipe, own) if text else "",
        shapes,
        batch_size * mesh.size,
        jnp.dtype(vae or compute).name,
        jnp.dtype(compute).name if text else _DTYPE,
    )


def _encoders(
    pipe: Pipeline, params: Any, mesh: Mesh
) -> tuple[Callable[[np.ndarray], dict[str, jax.Array]], Callable[[list[str]], dict[str, jax.Array]]]:
    """The functions `Encoding.encode` and `Encoding.encode_captions`; they split batches over devices."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    @jax.jit
    def encode(params: Any, images: jax.Array) -> dict[str, jax.Array]:
        moments: Any = pipe.models.vae.apply({"params": params["vae"]}, to_signed(images), method=VAE.moments)
        mean, log_variance = moments
        return _half({"mean": mean, "log_variance": log_variance})

    @jax.jit
    def encode_ids(params: Any, ids: list[jax.Array]) -> dict[str, jax.Array]:
        features, pooled = encode_text(pipe.models, params, ids)
        return _half({"text": features} if pooled is None else {"text": features, "pooled": pooled})

    def encode_captions(captions: list[str]) -> dict[str, jax.Array]:
        ids = [tokenize(tokenizer, captions) for tokenizer in pipe.tokenizers]
        return encode_ids(params, jax.device_put(ids, sharding))

    return lambda images: encode(params, jax.device_put(images, sharding)), encode_captions


def _half(values: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    # On the device, so that half as much is copied to the host.
    return {name: x.astype(jnp.float16) for name, x in values.items()}


def encode_split(data: Split, encoding: Encoding) -> None:
    """Store the latents of a split, and its text features if the encoding has text encoders.

    An interrupted split resumes; a finished one is left as it is.

    Raises:
      UserError: the split already has latents that were made in another way.
    """
    folder = encoded_folder(data)
    info = EncodedInfo(
        encoding.vae, encoding.shapes, len(data), encoding.text, encoding.vae_dtype, encoding.text_dtype
    )
    existing = read_info(folder)
    if existing == info:
        return
    if existing is not None:
        raise UserError(
            f"'{folder}' has latents of another VAE or other shapes, or was made with other or no text "
            "encoders or in another precision; delete it first, with all folders beside it whose name begins "
            f"with '{folder.name}.incomplete'"
        )
    # The name contains a hash of the settings, so a run with other settings never resumes these files.
    kind = hashlib.sha256(json.dumps(info.to_json()).encode()).hexdigest()[:16]
    work = folder.with_name(f"{folder.name}.incomplete-{kind}")
    work.mkdir(parents=True, exist_ok=True)
    # Index of each image's shape.
    which = np.zeros(len(data), int) if len(info.shapes) == 1 else nearest(data.sizes(), info.shapes)
    count = -(-len(data) // _CHUNK)
    chunks = [range(i, min(i + _CHUNK, len(data))) for i in range(0, len(data), _CHUNK)]
    left = [i for i in range(count) if not shard_path(work, i, count).is_file()]
    done = len(data) - sum(len(chunks[i]) for i in left)
    what = f"encoding {data.name}"
    with ThreadPoolExecutor(os.cpu_count()) as threads, Progress() as progress:
        progress.stage(what, done)

        def report(images: int) -> None:
            nonlocal done
            done += images
            progress.step(done, len(data), what, "image")

        for i in left:
            records = _records(data, chunks[i], which, encoding, threads, report)
            _write(shard_path(work, i, count), records)
    empty = None
    if encoding.encode_captions:
        # A full batch of empty captions, because the compiled program takes only this batch size.
        encoded = encoding.encode_captions([""] * encoding.batch_size)
        empty = {name: np.asarray(x)[0] for name, x in encoded.items()}
    write_info(work, info, empty)
    work.rename(folder)  # atomic: the folder appears complete or not at all


def _records(
    data: Split,
    chunk: range,
    which: np.ndarray,
    encoding: Encoding,
    threads: ThreadPoolExecutor,
    report: Callable[[int], None],
) -> list[bytes]:
    """Compute the records of a chunk, in its order. `report` is called with the images of each batch."""

    def read(number: int, shape: tuple[int, int]) -> tuple[np.ndarray, str]:
        example = data[number]
        return center_crop_resize(example["image"], shape), example["caption"]

    records = {}
    # Shape by shape: a batch has one shape, but neighbours in the data set have different ones.
    for i in np.unique(which[chunk.start : chunk.stop]):
        members = [number for number in chunk if which[number] == i]
        for start in range(0, len(members), encoding.batch_size):
            numbers = members[start : start + encoding.batch_size]
            shape = encoding.shapes[i]
            examples = list(threads.map(functools.partial(read, shape=shape), numbers))
            # Pad the last batch, so that each shape compiles one program only.
            examples += examples[-1:] * (encoding.batch_size - len(examples))
            images, captions = zip(*examples, strict=True)
            encoded = encoding.encode(np.stack(images))
            if encoding.encode_captions:
                encoded |= encoding.encode_captions(list(captions))
            encoded = {name: np.asarray(x) for name, x in encoded.items()}
            for place, number in enumerate(numbers):
                records[number] = pack({name: x[place] for name, x in encoded.items()})
            report(len(numbers))
    return [records[number] for number in chunk]


def _write(path: Path, records: Sequence[bytes]) -> None:
    """Write an ArrayRecord file that appears when it is complete."""
    with replacing(path) as temporary:
        writer = ArrayRecordWriter(str(temporary), "group_size:1")  # groups of 1 make random access fast
        for record in records:
            writer.write(record)
        writer.close()


def encode_data_set(data_dir: str | os.PathLike, encoding: Encoding) -> None:
    """Run `encode_split` for all splits of a data set."""
    what = "latents and text features" if encoding.encode_captions else "latents"
    for name in split_names(data_dir):
        data = open_split(data_dir, name)
        with disk_errors(data_dir):
            encode_split(data, encoding)
        print(f"wrote {len(data):,} {what} to {encoded_folder(data)}", flush=True)


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the options of encoding, which `data.prepare` has too."""
    parser.add_argument(
        "--encode-batch", type=int, default=8, metavar="N", help="images per device (%(default)s)"
    )
    parser.add_argument("--encode-text", action="store_true", help="store text features of the captions too")
    parser.add_argument("--buckets", action="store_true", help="crop to aspect-ratio buckets, not to squares")
    parser.add_argument(
        "--bucket-step", type=int, default=64, metavar="PIXELS", help="step of bucket sides (%(default)s)"
    )
    parser.add_argument(
        "--bucket-max-aspect",
        type=float,
        default=2.0,
        metavar="RATIO",
        help="largest aspect ratio of a bucket (%(default)s)",
    )
    add_precision_flags(parser, _DTYPE, "text encoders, with --encode-text")


def precision_given(args: argparse.Namespace) -> bool:
    """Whether the user asked for another precision than the default."""
    return (args.dtype, args.vae_dtype) != (_DTYPE, _DTYPE)


def from_arguments(model: str, args: argparse.Namespace) -> Encoding:
    """`make_encoding` with the options of the command line."""
    if args.encode_batch < 1 or args.bucket_step < 1 or args.bucket_max_aspect < 1:
        raise UserError("--encode-batch, --bucket-step and --bucket-max-aspect must be at least 1")
    if args.dtype != _DTYPE and not args.encode_text and args.vae_dtype != AUTO:
        raise UserError(
            f"--dtype {args.dtype} is for the text encoders, which only --encode-text runs; --vae-dtype is "
            "for the VAE"
        )
    return make_encoding(
        model,
        args.encode_batch,
        args.buckets,
        args.bucket_step,
        args.bucket_max_aspect,
        text=args.encode_text,
        dtype=args.dtype,
        vae_dtype=args.vae_dtype,
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = CommandParser("data.encode", __doc__)
    parser.add_argument("--data-dir", required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument("--model", required=True, metavar="FOLDER", help="model folder, hub id, or toybox")
    add_arguments(parser)
    args = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    split_names(args.data_dir)  # fails before a large model is loaded
    encode_data_set(args.data_dir, from_arguments(args.model, args))


if __name__ == "__main__":
    run_command(main)
