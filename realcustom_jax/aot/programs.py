"""The training step and the sampler, lowered for the devices of a topology, from shapes alone."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from realcustom_jax.common.errors import UserError
from realcustom_jax.diffusion.conditioning import Conditioning, Settings
from realcustom_jax.diffusion.denoiser import Contexts, Denoiser, encode_contexts
from realcustom_jax.diffusion.phases import Phase, phases
from realcustom_jax.diffusion.sampler import SamplerState, sample_latents, sample_step
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.diffusion.solvers import SolverTable, make_table
from realcustom_jax.inputs.sizes import latent_size, mask_grid
from realcustom_jax.models.config import HIGH_RES, from_mapping
from realcustom_jax.models.family import Models
from realcustom_jax.models.flash import flash_attention
from realcustom_jax.models.projector import FEATURES
from realcustom_jax.models.unet import UNet
from realcustom_jax.options import SamplerConfig, SamplingOptions
from realcustom_jax.pipeline import base_defaults, read_models
from realcustom_jax.training import partition
from realcustom_jax.training.batches import check_stored, example_shapes
from realcustom_jax.training.config import DTYPES, TrainConfig
from realcustom_jax.training.step import make_plan
from realcustom_jax.weights.keys import flatten


@dataclasses.dataclass(frozen=True)
class Program:
    """A program to compile.

    Attributes:
      lowered: the lowered program, with the shardings of all its arguments.
      images: images that one run makes or trains on, over all chips.
      held: {name: bytes per chip} of what stays in memory: parameters, optimizer state, …
      loops: whether its work is in loops; the compiler counts the body of a loop once.
      parts: (lowered, times) of programs without loops that together do its work, where operations and time
        are to be read off them.
    """

    lowered: Any
    images: int
    held: dict[str, int]
    loops: bool = False
    parts: tuple[tuple[Any, int], ...] = ()


def find_models(config: TrainConfig) -> tuple[Models, ScheduleConfig]:
    """Configs and noise schedule of a run: from the config's `model`, or from the folder `init_from`.

    Raises:
      UserError: if the config has neither.
    """
    given = {part: dict(fields) for part, fields in config.model.items()}
    schedule = from_mapping(ScheduleConfig, given.get("scheduler", {}))
    dtype = DTYPES[config.compute_dtype]
    if "unet" in given:
        if not given["text_encoder"].get("vocab_size", 1):
            given["text_encoder"]["vocab_size"] = 1024  # a typical size: the run trains its own tokenizer
        models = Models.from_configs(given, dtype)
    elif config.init_from:
        models = read_models(config.init_from, dtype)
    else:
        raise UserError("the config has neither the shapes of a model (model.unet …) nor an init_from")
    return dataclasses.replace(models, remat=config.remat, scan=config.scan), schedule


def train_program(config: TrainConfig, chips: list[Any], per_chip: int | None) -> Program:
    """The training step of a run.

    Args:
      config: config of the run.
      chips: devices of a topology.
      per_chip: images per step and chip; None for the config's batch.
    """
    models, schedule = find_models(config)
    mesh = partition.make_mesh(**vars(config.mesh), devices=chips)
    models = dataclasses.replace(models, flash=flash_attention(mesh))
    # Chips along the tensor axis work on the same images.
    if per_chip is not None:
        config = config.replace(batch_size=per_chip * len(chips) // mesh.shape["tensor"])
    images = config.batch_size
    params = with_dtypes(models.param_shapes(), config)
    check_stored(config, flatten(params))
    plan = make_plan(config, models, schedule, params, mesh)
    batch = {
        name: jax.ShapeDtypeStruct((images, *shape), dtype, sharding=plan.batch)
        for name, (shape, dtype) in example_shapes(config, models).items()
    }
    # Activations are not here: they are the temporaries of the compiled program.
    held = {
        "frozen parameters": per_chip_bytes(plan.frozen),
        "trained parameters": per_chip_bytes(plan.state.params),
        "their average": per_chip_bytes(plan.state.ema),
        "optimizer": per_chip_bytes(plan.state.opt_state),
        "batch": per_chip_bytes(batch),
    }
    # Gradient accumulation and the scan over blocks are loops.
    loops = config.accumulate > 1 or models.scan
    return Program(plan.step.lower(plan.state, plan.frozen, batch), images, held, loops)


def with_dtypes(params: Any, config: TrainConfig) -> Any:
    """Shapes of parameters with the dtypes of training: `frozen_dtype` for frozen ones, else float32."""
    trainable, frozen = partition.split_trainable(params, config.trainable, config.frozen)
    dtype = DTYPES[config.frozen_dtype]
    frozen = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), frozen)
    return partition.merge(trainable, frozen)


def sample_program(
    config: TrainConfig,
    chips: list[Any],
    per_chip: int,
    subjects: int = 1,
    options: SamplingOptions | None = None,
) -> Program:
    """The whole sampling loop. Each chip has a copy of the UNet, and requests are divided among the chips.

    Args:
      config: config of the model.
      chips: devices of a topology.
      per_chip: requests per chip.
      subjects: subjects per request.
      options: sampling options; None for the base's defaults.
    """
    models, schedule = find_models(config)
    options = options or base_defaults(models)
    mesh = Mesh(np.asarray(chips), ("data",))
    # Sampling needs no gradients, so no rematerialisation. With `scan`, the compiler would count the work of
    # one block for all.
    models = dataclasses.replace(models, remat="none", scan=False, flash=flash_attention(mesh))
    everywhere, divided = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    dtype = DTYPES[config.compute_dtype]
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=everywhere),
        models.component_shapes("unet"),
    )
    count = per_chip * len(chips)

    def struct(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *shape), dtype, sharding=divided)

    conditioning, keys = conditioning_shapes(models, options, subjects, struct), struct(2, dtype=jnp.uint32)
    sampler = options.sampler_config(*latent_size(models, None, None))
    static = {"unet": models.unet, "schedule": schedule, "config": sampler}

    # Keys are arguments as raw numbers, (B, 2) uint32, and are wrapped inside the programs.
    def bound(params: Any, conditioning: Conditioning, keys: Any, contexts: Contexts) -> Denoiser:
        keys = jax.random.wrap_key_data(keys)
        return Denoiser(models.unet, schedule, sampler, params, conditioning, contexts, keys)

    run = jax.jit(
        lambda params, conditioning, keys: sample_latents(
            params, conditioning, jax.random.wrap_key_data(keys), **static
        )
    )
    held = {"parameters": per_chip_bytes(params), "requests": per_chip_bytes(conditioning)}
    table = make_table(sampler.solver, sampler.steps, schedule, sampler.spacing, sampler.eta)
    parts = _sampler_parts(bound, models.unet, sampler, table, (params, conditioning, keys), struct)
    return Program(run.lower(params, conditioning, keys), count, held, loops=True, parts=parts)


def _sampler_parts(
    bound: Callable[..., Denoiser],
    unet: UNet,
    config: SamplerConfig,
    table: SolverTable[Any],
    arguments: Any,
    struct: Any,
) -> tuple[tuple[Any, int], ...]:
    """(lowered program, number of runs) of each part: the contexts, and a step of each phase."""
    params, conditioning, keys = arguments
    encode = jax.jit(lambda params, c: encode_contexts(unet, params, c, config.guidance))
    contexts = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=keys.sharding),
        jax.eval_shape(encode, params, conditioning),
    )
    # shapes of the arguments of `sample_step`
    latents = struct(config.height, config.width, unet.config.in_channels)
    slots = conditioning.flags.shape[1]
    masks = struct(slots, config.mask_height, config.mask_width)
    state = SamplerState(latents, latents, latents, masks)
    # The row of the solver table is the same for all requests, so it is replicated.
    everywhere = NamedSharding(keys.sharding.mesh, PartitionSpec())
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
    index = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    row = jax.tree.map(lambda _: scalar, table)

    # The denoiser is rebuilt inside the program, because it has static fields and arrays.
    def step(phase: Phase, bindings: Any, *rest: Any) -> Any:
        return sample_step(bound(*bindings), phase, *rest)

    parts = [(encode.lower(params, conditioning), 1)]
    bindings = (params, conditioning, keys, contexts)
    for phase in phases(config, has_subjects=slots > 0):
        lowered = jax.jit(step, static_argnums=0).lower(phase, bindings, state, index, row)
        parts.append((lowered, phase.stop - phase.start))
    return tuple(parts)


def conditioning_shapes(models: Models, options: SamplingOptions, subjects: int, struct: Any) -> Conditioning:
    """The shapes of `Conditioning` for a batch of requests.

    Args:
      models, options: decide the sizes.
      subjects: subjects per request.
      struct: makes the shape of an array from the shape of one row.
    """
    text = struct(models.text_tokens, models.unet_config.cross_attention_dim)
    features: tuple[Any, ...] = ()
    if subjects:
        assert models.realcustom is not None
        tower, name = models.image_configs[0], models.realcustom.projector
        whole = struct(subjects, tower.tokens, models.vision_dim)
        features = (whole,) * FEATURES[name]
        if name in HIGH_RES:  # the last array has the local features, four per global patch
            features = (*features[:-1], struct(subjects, 4 * tower.tokens, models.vision_dim))
    height, width = mask_grid(models, options)
    pooled = time_ids = None
    if models.unet_config.addition_embed_type == "text_time":
        pooled, time_ids = struct(models.text_configs[-1].projection_dim), struct(6)
    slots = struct(subjects)
    settings = Settings(**{field.name: struct() for field in dataclasses.fields(Settings)})
    return Conditioning(
        text, text, features, features, struct(subjects, models.text_tokens), slots, slots,
        struct(subjects, height, width), slots, settings, pooled, pooled, time_ids,
    )  # fmt: skip


def per_chip_bytes(tree: Any) -> int:
    """Bytes per chip of arrays with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
