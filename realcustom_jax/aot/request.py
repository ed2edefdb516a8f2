"""Every program of a request, as `sample` runs it, on the devices of a topology, from shapes alone."""

import dataclasses
from collections.abc import Sequence
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


@dataclasses.dataclass(frozen=True)
class Request:
    """The programs of a batch of requests, in the order in which they run.

    Attributes:
      programs: {what: program}.
      held: bytes of each program's own parameters on a chip.
      parameters: bytes of all parameters on a chip, which stay there unless the model is offloaded.
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
    """Text encoders, image towers, contexts, denoising loop, VAE decoder.

    Parameters are of the config's `compute_dtype`, the VAE's float32 unless its config allows less. All are
    whole on every chip, and requests are divided among chips.

    Args:
      config: of a model.
      chips: devices of a topology.
      per_chip: requests on each.
      subjects: of each request, each with one photo.
      options: of sampling; None for the base's defaults.
    """
    models, schedule = find_models(config)
    subjects = subjects if models.realcustom else 0  # a base alone takes none
    options = options or base_defaults(models)
    mesh = Mesh(np.asarray(chips), ("rows",))
    vae = vae_compute_dtype(AUTO, models.dtype, models.vae_config.force_upcast, mesh)
    flash = flash_attention(mesh, bind=False)
    models = dataclasses.replace(models, remat="none", scan=False, flash=flash, vae_dtype=vae)
    params = _params(models, mesh)
    count, rows = per_chip * len(chips), NamedSharding(mesh, P("rows"))

    def struct(*shape: int, of: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *shape), of, sharding=rows)

    config_of_loop = options.sampler_config(*latent_size(models, options.height, options.width))
    static = (models, schedule, config_of_loop)
    keys = jax.eval_shape(lambda x: jax.random.wrap_key_data(x), struct(2, of=jnp.uint32))
    keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=rows)
    conditioning = conditioning_shapes(models, options, subjects, struct)
    ids = tuple(struct(models.text_tokens, of=jnp.int32) for _ in models.text_configs)
    # Prompt and negative prompt are encoded together; a black image beside the references, once.
    jobs = {"text encoders": (TEXT, encode.encode_text_rows, models, _times(ids, 2))}
    if subjects:
        jobs["image towers"] = (IMAGE, encode.encode_reference_rows, models, _views(models, struct))
    jobs["contexts"] = (("unet",), generate.begin_rows, static, (conditioning, keys))
    contexts, run = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows),
        jax.eval_shape(
            lambda p, r: generate.begin_rows(static, p, r), {"unet": params["unet"]}, (conditioning, keys)
        ),
    )
    loop_rows = (conditioning, keys, contexts, run, struct(2, of=jnp.int32))
    jobs[LOOP] = (("unet",), generate.advance_rows, static, loop_rows)
    latents = struct(config_of_loop.height, config_of_loop.width, models.vae_config.latent_channels)
    jobs["VAE decoder"] = (("vae",), decode.decode_rows, models, latents)
    parts = sample_program(config, list(chips), per_chip, subjects, options).parts
    programs, held = {}, {}
    for name, (components, program, fixed, inputs) in jobs.items():
        own = {key: params[key] for key in components if key in params}
        held[name] = per_chip_bytes(own)
        lowered = lower(program, fixed, own, inputs, mesh)
        is_loop = name == LOOP
        programs[name] = Program(
            lowered, count, {"parameters": held[name]}, is_loop, parts if is_loop else ()
        )
    return Request(programs, held, per_chip_bytes(params))


def _params(models: Models, mesh: Mesh) -> dict[str, Any]:
    """All parameters as shapes, of the dtypes that `load` gives them, whole on every chip."""
    whole = NamedSharding(mesh, P())
    flat = {
        path: jax.ShapeDtypeStruct(
            leaf.shape, dtype_of_param(models.dtype, models.vae_dtype or models.dtype, path), sharding=whole
        )
        for path, leaf in flatten(models.param_shapes()).items()
    }
    return unflatten(flat)


def _times(shapes: Any, factor: int) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((factor * x.shape[0], *x.shape[1:]), x.dtype, sharding=x.sharding),
        shapes,
    )


def _views(models: Models, struct: Any) -> jax.ShapeDtypeStruct:
    size = models.image_configs[0].image_size
    return struct(5 if models.high_res else 1, size, size, 3, of=jnp.uint8)
