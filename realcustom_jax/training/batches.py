"""The batches of a run: its data options, its loader, and a batch placed on all devices."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.rules import LAST_STEP, MAX_WORKERS, choice, option
from realcustom_jax.data.buckets import Buckets, label_buckets, make_buckets
from realcustom_jax.data.cut_outs import marked_words, marks
from realcustom_jax.data.encode import text_fingerprint, training_shapes, vae_fingerprint
from realcustom_jax.data.encoded import open_encoded
from realcustom_jax.data.image_text import Split
from realcustom_jax.data.loader import Loader, Source, Transform, make_loader
from realcustom_jax.models.family import TEXT, Models
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.training import partition
from realcustom_jax.training.examples import MakeExample, MakeViews

if TYPE_CHECKING:
    from realcustom_jax.training.config import TrainConfig

Shape = tuple[tuple[int, ...], Any]  # (shape, dtype)


# The reference of a training example: the whole image, or one subject cut out of it.
REFERENCES = ("image", "subject")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The config's `data` section."""

    path: str = option("data/train", "data set that data.prepare wrote, or 'toybox', drawn when needed", str)
    split: str = option("train", "split of the data set", str)
    toybox_examples: int = option(100_000, "examples in the toybox data set", int, low=1, high=LAST_STEP)
    workers: int = option(
        8, "loader processes; 0 loads in threads", int, resume="free", low=0, high=MAX_WORKERS
    )
    prefetch: int = option(4, "batches loaded ahead", int, resume="free", low=0, high=MAX_WORKERS)
    buckets: bool = option(False, "aspect-ratio buckets instead of square images (base, customize)", bool)
    bucket_step: int = option(64, "step of the bucket sides, in pixels", int, low=1, high=2**16)
    bucket_max_aspect: float = option(2.0, "largest aspect ratio of a bucket", low=1, high=1000)
    encoded: bool = option(
        False, "use latents stored by data.encode, so the VAE does not run (base, customize)", bool
    )
    encoded_text: bool = option(
        False, "use text features stored by --encode-text, so the text encoders do not run", bool
    )
    drop_text: float = option(0.05, "share of examples with an empty caption", low=0, high=1)
    drop_image: float = option(0.05, "share of examples with a black reference", low=0, high=1)
    drop_both: float = option(0.05, "share of examples with both", low=0, high=1)
    text_only: float = option(
        0.0, "share of examples without a reference, for runs that train the base too", low=0, high=1
    )
    reference: str = choice(
        "image", "reference image: the training image, or a marked subject cut out of it", REFERENCES
    )
    subjects: int = option(
        1,
        "most marked subjects that are references at once; each of several acts only around itself "
        "(customize)",
        int, low=1, high=8,
    )  # fmt: skip
    by_word: bool = option(False, "batches with subjects of one word only (instance)", bool)


def make_training_loader(
    config: "TrainConfig", pipe: Pipeline, data: Split, encoders: Mapping[str, Any]
) -> Loader:
    """Loader of a run's training batches; it yields this process's part of each batch.

    Args:
      config: config of the run.
      pipe: model of the run; its parameters are not used.
      data: training split.
      encoders: unrounded parameters of the components in `stored_components`. The stored features must have
        been computed with them.

    Raises:
      UserError: the data set or the model does not fit the buckets or stored latents of the config.
    """
    options = config.data
    if config.stage == "instance":
        return _instance_loader(config, pipe, data)
    customize = config.stage == "customize"
    diffusion = config.stage in ("base", "customize")
    source: Source = data
    shapes, empty_text = (), None
    if options.buckets or options.encoded:
        shapes = training_shapes(pipe.models, options.buckets, options.bucket_step, options.bucket_max_aspect)
    if options.encoded:
        # Fingerprints of the encoders: latents of another VAE would train without any error, to a bad result.
        text = text_fingerprint(pipe, encoders) if options.encoded_text else ""
        encoded = open_encoded(data, vae_fingerprint(encoders), shapes, with_image=customize, text=text)
        source, empty_text = encoded, encoded.empty_text
    # Loader processes get a pickled copy of the transform, so it holds plain values and no modules or arrays.
    transform = MakeExample(
        pipe.tokenizers,
        pipe.models.vae_config.downscale * pipe.models.unet_config.sample_size,
        pipe.models.image_configs[0].image_size if customize else None,
        pipe.models.high_res,
        of_subject=options.reference == "subject",
        region_downscale=pipe.models.vae_config.downscale if needs_regions(config) else None,
        batch_size=config.batch_size,
        curriculum=config.curriculum,
        drop_text=options.drop_text if diffusion else 0.0,
        drop_image=options.drop_image if customize else 0.0,
        drop_both=options.drop_both if diffusion else 0.0,
        text_only=options.text_only if customize else 0.0,
        empty_text=empty_text,
        fit=pipe.models.realcustom.reference_fit if customize and pipe.models.realcustom else None,
        subjects=options.subjects,
    )
    # Image sizes are stored beside the data set, so buckets need no image to be decoded.
    buckets = make_buckets(data.sizes(), shapes) if options.buckets else None
    return _loader(config, source, transform, buckets)


def _instance_loader(config: "TrainConfig", pipe: Pipeline, data: Split) -> Loader:
    """Loader of the stage instance: pairs of photos of one subject.

    Raises:
      UserError: `data.by_word` is set, and a word has fewer examples than a batch.
    """
    by_word = config.data.by_word
    size = pipe.models.image_configs[-1].image_size
    buckets = None
    if by_word:
        # Batches of one word make the loss harder: it must tell one cat from another, not a cat from a boat.
        examples = map(data.without_image, range(len(data)))
        words = [marked_words(marks(example)[0], example["key"]) for example in examples]
        word, count = min(Counter(words).items(), key=lambda item: item[1])
        if count < config.batch_size:
            raise UserError(
                f"config.data.by_word: {word!r} has {count} examples, fewer than one batch of "
                f"{config.batch_size}"
            )
        buckets = label_buckets(words, (size, size))
    return _loader(config, data, MakeViews(size, first=by_word), buckets)


def _loader(config: "TrainConfig", source: Source, transform: Transform, buckets: Buckets | None) -> Loader:
    """`make_loader` with the options of the config."""
    return make_loader(
        source,
        transform,
        batch_size=config.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=config.data.workers,
        prefetch=config.data.prefetch,
        buckets=buckets,
    )


def needs_regions(config: "TrainConfig") -> bool:
    """Whether a run needs the regions of the subjects: to weigh them, or to tell several apart."""
    return config.stage == "customize" and (config.loss.subject_weight != 1 or config.data.subjects > 1)


def stored_components(config: "TrainConfig") -> tuple[str, ...]:
    """Names of the components that do not run, because their output is stored with the data."""
    options = config.data
    text = TEXT if options.encoded_text else ()
    return ("vae", *text) if options.encoded else ()


def split_params(config: "TrainConfig", params: Mapping[str, Any]) -> tuple[Any, Any]:
    """Split parameters into (trainable, frozen), without frozen components that the run never uses."""
    trainable, frozen = partition.split_trainable(params, config.trainable, config.frozen)
    idle = idle_components(config)
    return trainable, {name: tree for name, tree in frozen.items() if name not in idle}


def idle_components(config: "TrainConfig") -> tuple[str, ...]:
    """Names of the components that need not be on the devices: the stored ones, if no samples are made."""
    # Samples run all encoders, so they need even those whose output is stored.
    return () if config.samples.every else stored_components(config)


def check_stored(config: "TrainConfig", paths: Iterable[str]) -> None:
    """Check that no component trains whose output is read from the data set.

    Args:
      config: config of the run.
      paths: paths of all parameters, "component/module/…/kernel".

    Raises:
      UserError: a stored component trains. Its stored output would never change.
    """
    stored = stored_components(config)
    for path in paths:
        component = path.split("/")[0]
        # A stored component may be frozen only; the others may do either.
        if component in stored and any(re.search(regex, path) for regex in config.trainable):
            raise UserError(
                f"config.trainable trains {component}, but config.data uses its stored output (encoded, "
                "encoded_text)"
            )


def example_shapes(config: "TrainConfig", models: Models) -> dict[str, Shape]:
    """{name: (shape, dtype)} of one example from `make_training_loader`; with buckets, of a square one."""
    if config.stage == "instance":
        size = models.image_configs[-1].image_size
        return {"views": ((2, size, size, 3), np.uint8), "subject": ((), np.int32)}
    side = models.vae_config.downscale * models.unet_config.sample_size
    example: dict[str, Shape] = {}
    if config.data.encoded_text:
        # data.encode stores features and moments in float16: half the size on disk.
        example["text"] = ((models.text_tokens, models.unet_config.cross_attention_dim), np.float16)
        if models.unet_config.addition_embed_type == "text_time":
            example["pooled"] = ((models.text_configs[-1].projection_dim,), np.float16)
    else:
        example["ids"] = ((len(models.text_configs), models.text_tokens), np.int32)
    if config.data.encoded:
        latent = ((models.unet_config.sample_size,) * 2 + (models.vae_config.latent_channels,), np.float16)
        example |= {"mean": latent, "log_variance": latent}
    else:
        example["image"] = ((side, side, 3), np.uint8)
    if config.stage == "customize":
        # One global view and, with high resolution, the four local views of its 2×2 split.
        size, views = models.image_configs[0].image_size, 5 if models.high_res else 1
        slots = config.data.subjects
        example |= {"reference": ((slots, views, size, size, 3), np.uint8), "flag": ((slots,), np.float32)}
        if needs_regions(config):
            latents = (slots, *(models.unet_config.sample_size,) * 2)
            example["region"] = (latents, np.uint8)
            if slots > 1:
                example["scope"] = (latents, np.uint8)
    return example


def global_batch(local: Mapping[str, np.ndarray], size: int, sharding: NamedSharding) -> dict[str, jax.Array]:
    """A batch of `size` examples placed on all devices, from this process's part of it."""
    # The global size lets JAX reject a mesh whose "tensor" axis spans processes: those would have to load
    # equal parts, but every process loads its own.
    return {
        name: jax.make_array_from_process_local_data(sharding, x, (size, *x.shape[1:]))
        for name, x in local.items()
    }
