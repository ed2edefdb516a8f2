"""The compiled programs of a request, on a pipeline's devices: text, image towers, denoising loop, decoding.

Each takes only the parameters that it uses, and divides its rows, one a request or image, among the devices.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from realcustom_jax.data.views import reference_views
from realcustom_jax.diffusion.sampler import Conditioning, sample_latents
from realcustom_jax.diffusion.sampler_config import SamplerConfig
from realcustom_jax.models.conditioning import encode_reference, encode_text
from realcustom_jax.models.family import IMAGE, TEXT, Models
from realcustom_jax.models.vae import VAE
from realcustom_jax.models.vae_tiles import decode_in_tiles
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.precision import compiler_options

# Pixels of the images that a device decodes at once.
_DECODED_AT_ONCE = 1024 * 1024

# (static object, parameters, rows) → rows.
_Program = Callable[[Any, Any, Any], Any]


def text_features(pipe: Pipeline, ids: Sequence[np.ndarray]) -> tuple[Array, Array | None]:
    """Text tokens (B, n_t, C_t) and, for SDXL, pooled text (B, C); see `encode_text`."""
    return _run(pipe, TEXT, _encode_text, pipe.models, tuple(ids))


def reference_features(pipe: Pipeline, views: np.ndarray) -> tuple[Array, ...]:
    """Features of reference images' views, uint8 (U, V, S, S, 3), each (U, N, C); see `encode_reference`.

    So many at once that few programs are compiled: the next power of two.
    """
    count = len(views)
    filled = 1 << (count - 1).bit_length()
    rows = np.concatenate([views, np.repeat(views[:1], filled - count, axis=0)])
    return tuple(x[:count] for x in _run(pipe, IMAGE, _encode_references, pipe.models, rows))


def black_features(pipe: Pipeline) -> tuple[Array, ...]:
    """A black image's features (1, N, C), of empty slots and the negative pass; computed once a pipeline."""
    if "black" not in pipe.cache:
        models = pipe.models
        size = models.image_configs[0].image_size
        views = reference_views(np.zeros((size, size, 3), np.uint8), size, models.high_res)
        pipe.cache["black"] = reference_features(pipe, views[None])
    return pipe.cache["black"]


def latents_and_masks(
    pipe: Pipeline, conditioning: Conditioning, keys: Array, config: SamplerConfig
) -> tuple[Array, Array]:
    """The denoising loop: z_0 (B, h, w, C) and the masks of all steps (B, steps, R, h', w')."""
    static = (pipe.models, pipe.schedule, config)
    return _run(pipe, ("unet",), _sample, static, (conditioning, keys))


def images_of(pipe: Pipeline, latents: Array) -> np.ndarray:
    """Latents (B, h, w, C) → uint8 images (B, H, W, 3), so many at once that memory stays bounded."""
    down = pipe.models.vae_config.downscale
    pixels = latents.shape[1] * latents.shape[2] * down * down
    devices = 1 if pipe.mesh is None else pipe.mesh.shape[pipe.mesh.axis_names[0]]
    slice_ = devices * max(1, _DECODED_AT_ONCE // pixels)
    params = {"vae": pipe.params["vae"]}
    images = [
        np.asarray(_run_with(pipe, params, _decode, pipe.models, latents[start : start + slice_]))
        for start in range(0, len(latents), slice_)
    ]
    return np.concatenate(images)


def decode(models: Models, params: Any, latents: Array) -> Array:
    """Latents (B, h, w, C) → uint8 images (B, H, W, 3), large ones in tiles. Pure; `params` are the VAE's."""

    def apply(latents: Array) -> Array:
        return models.vae.apply({"params": params}, latents, method=VAE.decode)

    images = decode_in_tiles(apply, latents, models.vae_config.downscale)
    return jnp.round(jnp.clip(images * 0.5 + 0.5, 0.0, 1.0) * 255.0).astype(jnp.uint8)


def _encode_text(models: Models, params: Any, ids: Sequence[Array]) -> tuple[Array, Array | None]:
    return encode_text(models, params, ids)


def _encode_references(models: Models, params: Any, views: Array) -> tuple[Array, ...]:
    return encode_reference(models, params, views)


def _sample(static: Any, params: Any, rows: tuple[Conditioning, Array]) -> tuple[Array, Array]:
    (models, schedule, config), (conditioning, keys) = static, rows
    return sample_latents(
        params["unet"], conditioning, keys, unet=models.unet, schedule=schedule, config=config
    )


def _decode(models: Models, params: Any, latents: Array) -> Array:
    return decode(models, params["vae"], latents)


# ---------------------------------------------------------------- devices


def _run(pipe: Pipeline, components: Sequence[str], program: _Program, static: Any, rows: Any) -> Any:
    """A program with the parameters of some components, which it lets go of when they are offloaded."""
    params = {name: pipe.params[name] for name in components if name in pipe.params}
    out = _run_with(pipe, params, program, static, rows)
    # Before the next component's parameters come.
    return jax.block_until_ready(out) if pipe.offloaded else out


def _run_with(pipe: Pipeline, params: Any, program: _Program, static: Any, rows: Any) -> Any:
    """A program on as many devices as have rows to do, the last rows filled up so that all do as many."""
    count = len(jax.tree.leaves(rows)[0])
    platform = jax.default_backend() if pipe.mesh is None else pipe.mesh.devices.flat[0].platform
    if pipe.mesh is None or pipe.mesh.size == 1:
        return _compiled(_on_one, platform)(params, rows, program=program, static=static)
    if not all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params)):
        rows = _fill(rows, -count % pipe.mesh.shape[pipe.mesh.axis_names[0]])
        rows = jax.device_put(rows, NamedSharding(pipe.mesh, P(pipe.mesh.axis_names[0])))
        run = _compiled(_divided, platform)
        out = run(params, rows, program=program, static=static, mesh=pipe.mesh)
    else:
        per_device = -(-count // pipe.mesh.size)
        used = -(-count // per_device)
        mesh = Mesh(pipe.mesh.devices.reshape(-1)[:used], ("rows",))
        rows = _fill(rows, used * per_device - count)
        rows = jax.device_put(rows, NamedSharding(mesh, P("rows")))
        run = _compiled(_copied, platform)
        out = run(_restrict(params, mesh), rows, program=program, static=static, mesh=mesh)
    # On one device, where what follows is put together from several programs' results.
    return jax.device_put(jax.tree.map(lambda x: x[:count], out), pipe.mesh.devices.flat[0])


def _on_one(params: Any, rows: Any, *, program: _Program, static: Any) -> Any:
    return program(static, params, rows)


def _copied(params: Any, rows: Any, *, program: _Program, static: Any, mesh: Mesh) -> Any:
    """Parameters are whole on every device, so each does its own rows and none talks to another."""
    run = functools.partial(program, static)
    return jax.shard_map(run, mesh=mesh, in_specs=(P(), P("rows")), out_specs=P("rows"), check_vma=False)(
        params, rows
    )


def _divided(params: Any, rows: Any, *, program: _Program, static: Any, mesh: Mesh) -> Any:
    """Parameters are divided among devices: the compiler divides the work."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return program(static, params, rows)


@functools.cache
def _compiled(function: Callable[..., Any], platform: str) -> Callable[..., Any]:
    """One of the three above, jitted for a kind of device."""
    static = [
        name for name in ("program", "static", "mesh") if name in inspect.signature(function).parameters
    ]
    return jax.jit(function, static_argnames=static, compiler_options=compiler_options(platform))


def _restrict(params: Any, mesh: Mesh) -> Any:
    """Arrays that are whole on more devices, on those of the mesh alone; nothing is copied."""
    wanted = NamedSharding(mesh, P())
    devices = set(mesh.devices.flat)

    def one(x: Array) -> Array:
        copies = [shard.data for shard in x.addressable_shards if shard.device in devices]
        return jax.make_array_from_single_device_arrays(x.shape, wanted, copies)

    return jax.tree.map(one, params)


def _fill(rows: Any, missing: int) -> Any:
    """With copies of the last row: a row's result depends on that row alone."""
    if not missing:
        return rows
    return jax.tree.map(lambda x: jnp.concatenate([x, jnp.repeat(x[-1:], missing, axis=0)]), rows)
