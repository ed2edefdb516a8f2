"""All programs of a request, as `sample` runs them, for the devices of a topology, from shapes alone."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from realcustom_jax import generate
from realcustom_jax.aot.programs import (
    Program,
    conditioning_shapes,
    find_models,
    per_chip_bytes,
    sample_program,
)
from realcustom_jax.common.devices import lower
from realcustom_jax.common.precision import AUTO, vae_compute_dtype
from realcustom_jax.inputs import encode
from realcustom_jax.inputs.sizes import latent_size
from realcustom_jax.models.family import IMAGE, TEXT, Models
from realcustom_jax.models.flash import flash_attention
from realcustom_jax.options import SamplingOptions
from realcustom_jax.outputs import decode
from realcustom_jax.pipeline import base_defaults, dtype_of_param
from realcustom_jax.training.config import TrainConfig
from realcustom_jax.weights.keys import flatten, unflatten

LOOP = "denoising loop"

# (components whose parameters it takes, program, static object, rows); see `common.devices.Program`.
_Job = tuple[Sequence[str], Callable[..., Any], Any, Any]


@dataclasses.dataclass(frozen=True)
class Request:
    """The programs of a batch of requests, in running order.

    Attributes:
      programs: {name: program}.
      held: {name: bytes per chip of the program's own parameters}.
      parameters: bytes per chip of all parameters, which stay there unless the model is offloaded.
    """

    programs: dict[str, Program]
    held: dict[str, int]
    parameters: int


def request_programs(
    config: TrainConfig,
    chips: Sequence[Any],
    per_chip: int = 1,
    subjects: int = 1,
    options: SamplingOptions | None = None,
) -> Request:
    """All programs of a batch: text encoders, image towers, contexts, denoising loop, VAE decoder.

    Parameters have the config's `compute_dtype`; the VAE's are float32 unless its config allows less. Each
    chip has a copy of all parameters, and requests are divided among the chips.

    Args:
      config: config of a model.
      chips: devices of a topology.
      per_chip: requests per chip.
      subjects: subjects per request, each with one photo.
      options: sampling options; None for the base's defaults.
    """
    models, schedule = find_models(config)
    subjects = subjects if models.realcustom else 0  # a base alone takes no subjects
    options = options or base_defaults(models)
    mesh = Mesh(np.asarray(chips), ("rows",))
    models = _as_loaded(models, mesh)
    params = _param_shapes(models, mesh)
    count, rows = per_chip * len(chips), NamedSharding(mesh, P("rows"))

    def struct(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *shape), dtype, sharding=rows)

    sampler = options.sampler_config(*latent_size(models, options.height, options.width))
    conditioning = conditioning_shapes(models, options, subjects, struct)
    latents = struct(sampler.height, sampler.width, models.vae_config.latent_channels)
    jobs = {
        **_encoder_jobs(models, subjects, struct),
        **_unet_jobs((models, schedule, sampler), params["unet"], conditioning, struct),
        "VAE decoder": (("vae",), decode.decode_rows, models, latents),
    }
    # The compiler counts the body of a loop once, so the loop's cost comes from its parts.
    parts = sample_program(config, list(chips), per_chip, subjects, options).parts
    programs, held = {}, {}
    for name, (components, program, static, inputs) in jobs.items():
        own = {key: params[key] for key in components if key in params}  # SD1.5 has one text encoder
        held[name] = per_chip_bytes(own)
        lowered = lower(program, static, own, inputs, mesh)
        is_loop = name == LOOP
        programs[name] = Program(
            lowered, count, {"parameters": held[name]}, is_loop, parts if is_loop else ()
        )
    return Request(programs, held, per_chip_bytes(params))


def _as_loaded(models: Models, mesh: Mesh) -> Models:
    """The models of a training config with the settings of `load`."""
    vae = vae_compute_dtype(AUTO, models.dtype, models.vae_config.force_upcast, mesh)
    flash = flash_attention(mesh, bind=False)
    return dataclasses.replace(models, remat="none", scan=False, flash=flash, vae_dtype=vae)


def _encoder_jobs(models: Models, subjects: int, struct: Any) -> dict[str, _Job]:
    """The text encoders and, with subjects, the image towers."""
    ids = tuple(struct(models.text_tokens, dtype=jnp.int32) for _ in models.text_configs)
    # Prompts and negative prompts are encoded in one batch. The black image is encoded only once per model.
    jobs: dict[str, _Job] = {"text encoders": (TEXT, encode.encode_text_rows, models, _times(ids, 2))}
    if subjects:
        jobs["image towers"] = (IMAGE, encode.encode_reference_rows, models, _views(models, struct))
    return jobs


def _unet_jobs(static: Any, unet: Any, conditioning: Any, struct: Any) -> dict[str, _Job]:
    """The contexts and the denoising loop.

    Args:
      static: models, noise schedule and sampler config.
      unet: shapes of the UNet's parameters.
      conditioning: shapes of the requests.
      struct: makes the shape of an array from the shape of one row.
    """
    raw_keys = struct(2, dtype=jnp.uint32)
    rows = raw_keys.sharding
    # `eval_shape` drops shardings, so they are added again.
    keys = jax.eval_shape(lambda x: jax.random.wrap_key_data(x), raw_keys)
    keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=rows)
    contexts, run = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows),
        jax.eval_shape(lambda p, r: generate.begin_rows(static, p, r), {"unet": unet}, (conditioning, keys)),
    )
    span = struct(2, dtype=jnp.int32)  # first and last step, the same in each row
    return {
        "contexts": (("unet",), generate.begin_rows, static, (conditioning, keys)),
        LOOP: (("unet",), generate.advance_rows, static, (conditioning, keys, contexts, run, span)),
    }


def _param_shapes(models: Models, mesh: Mesh) -> dict[str, Any]:
    """Shapes of all parameters, with the dtypes that `load` gives them, copied to each chip."""
    replicated = NamedSharding(mesh, P())
    vae_dtype = models.vae_dtype or models.dtype
    flat = {
        path: jax.ShapeDtypeStruct(
            leaf.shape, dtype_of_param(models.dtype, vae_dtype, path), sharding=replicated
        )
        for path, leaf in flatten(models.param_shapes()).items()
    }
    return unflatten(flat)


def _times(shapes: Any, factor: int) -> Any:
    """Shapes of a batch that is `factor` times as large: (n, …) → (factor·n, …)."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((factor * x.shape[0], *x.shape[1:]), x.dtype, sharding=x.sharding),
        shapes,
    )


def _views(models: Models, struct: Any) -> jax.ShapeDtypeStruct:
    """Shape of the views of the references, uint8 (n, V, S, S, 3)."""
    size = models.image_configs[0].image_size
    return struct(5 if models.high_res else 1, size, size, 3, dtype=jnp.uint8)
