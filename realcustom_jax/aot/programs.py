"""The training step and the sampler on the devices of a topology, from shapes alone."""

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
from realcustom_jax.diffusion.solvers import SolverTable
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
    """Something to compile.

    Attributes:
      lowered: with the shardings of all its arguments.
      images: that one run makes or trains on, over all chips.
      held: {what: bytes a chip keeps of it}: parameters, optimizer …
      loops: whether its work is in loops, whose bodies the compiler's figures count once.
      parts: (lowered, times) of programs without loops that together do its work, where operations and time
        are to be read off them.
    """

    lowered: Any
    images: int
    held: dict[str, int]
    loops: bool = False
    parts: tuple[tuple[Any, int], ...] = ()


def find_models(config: TrainConfig) -> tuple[Models, ScheduleConfig]:
    """The shapes of a run: of the config's `model` where that has all parts, else of the folder `init_from`.

    Raises:
      UserError: when neither is there.
    """
    given = {part: dict(fields) for part, fields in config.model.items()}
    schedule = from_mapping(ScheduleConfig, given.get("scheduler", {}))
    dtype = DTYPES[config.compute_dtype]
    if "unet" in given:
        if not given["text_encoder"].get("vocab_size", 1):
            given["text_encoder"]["vocab_size"] = 1024  # of a tokenizer that the run would train
        models = Models.from_configs(given, dtype)
    elif config.init_from:
        models = read_models(config.init_from, dtype)
    else:
        raise UserError("the config has neither the shapes of a model (model.unet …) nor an init_from")
    return dataclasses.replace(models, remat=config.remat, scan=config.scan), schedule


def train_program(config: TrainConfig, chips: list[Any], per_chip: int | None) -> Program:
    """The step of a run.

    Args:
      config: the run's.
      chips: devices of a topology.
      per_chip: images of a step on each; None for the config's batch.
    """
    models, schedule = find_models(config)
    mesh = partition.make_mesh(**vars(config.mesh), devices=chips)
    models = dataclasses.replace(models, flash=flash_attention(mesh))
    # The tensor axis shares its images.
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
    held = {
        "frozen parameters": per_chip_bytes(plan.frozen),
        "trained parameters": per_chip_bytes(plan.state.params),
        "their average": per_chip_bytes(plan.state.ema),
        "optimizer": per_chip_bytes(plan.state.opt_state),
        "batch": per_chip_bytes(batch),
    }
    loops = config.accumulate > 1 or models.scan
    return Program(plan.step.lower(plan.state, plan.frozen, batch), images, held, loops)


def with_dtypes(params: Any, config: TrainConfig) -> Any:
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
    """The whole sampling loop; None are the base's default options.

    Requests are divided among the chips, each of which holds the UNet.
    """
    models, schedule = find_models(config)
    options = options or base_defaults(models)
    mesh = Mesh(np.asarray(chips), ("data",))
    # As `sample` runs it; `scan` would hide the work of the blocks within the steps.
    models = dataclasses.replace(models, remat="none", scan=False, flash=flash_attention(mesh))
    everywhere, divided = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    dtype = DTYPES[config.compute_dtype]
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=everywhere),
        models.component_shapes("unet"),
    )
    count = per_chip * len(chips)

    def struct(*shape: int, of: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *shape), of, sharding=divided)

    conditioning, keys = conditioning_shapes(models, options, subjects, struct), struct(2, of=jnp.uint32)
    sampler = options.sampler_config(*latent_size(models, None, None))
    static = {"unet": models.unet, "schedule": schedule, "config": sampler}

    def bound(params: Any, conditioning: Conditioning, keys: Any, contexts: Contexts) -> Denoiser:
        keys = jax.random.wrap_key_data(keys)
        return Denoiser(models.unet, schedule, sampler, params, conditioning, contexts, keys)

    run = jax.jit(
        lambda params, conditioning, keys: sample_latents(
            params, conditioning, jax.random.wrap_key_data(keys), **static
        )
    )
    held = {"parameters": per_chip_bytes(params), "requests": per_chip_bytes(conditioning)}
    parts = _sampler_parts(bound, models.unet, sampler, (params, conditioning, keys), struct)
    return Program(run.lower(params, conditioning, keys), count, held, loops=True, parts=parts)


def _sampler_parts(
    bound: Callable[..., Denoiser], unet: UNet, config: SamplerConfig, arguments: Any, struct: Any
) -> tuple[tuple[Any, int], ...]:
    """What is computed once, and a step of each phase, each as often as it runs."""
    params, conditioning, keys = arguments
    encode = jax.jit(lambda params, c: encode_contexts(unet, params, c, config.guidance))
    contexts = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=keys.sharding),
        jax.eval_shape(encode, params, conditioning),
    )
    latents = struct(config.height, config.width, unet.config.in_channels)
    slots = conditioning.flags.shape[1]
    state = SamplerState(*[latents] * 3, struct(slots, config.mask_height, config.mask_width))
    everywhere = NamedSharding(keys.sharding.mesh, PartitionSpec())
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
    index = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    row = SolverTable(*[scalar] * len(SolverTable._fields))

    def step(phase: Phase, bindings: Any, *rest: Any) -> Any:
        return sample_step(bound(*bindings), phase, *rest)

    parts = [(encode.lower(params, conditioning), 1)]
    bindings = (params, conditioning, keys, contexts)
    for phase in phases(config):
        lowered = jax.jit(step, static_argnums=0).lower(phase, bindings, state, index, row)
        parts.append((lowered, phase.stop - phase.start))
    return tuple(parts)


def conditioning_shapes(models: Models, options: SamplingOptions, subjects: int, struct: Any) -> Conditioning:
    """A batch of requests as shapes; `struct` makes those of one row of each."""
    text = struct(models.text_tokens, models.unet_config.cross_attention_dim)
    features: tuple[Any, ...] = ()
    if subjects:
        tower, name = models.image_configs[0], models.realcustom.projector
        whole = struct(subjects, tower.tokens, models.vision_dim)
        features = (whole,) * FEATURES[name]
        if name in HIGH_RES:
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
    """What a chip holds of arrays with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
