"""The compiled programs of a request, on a pipeline's devices: text, image towers, denoising loop, decoding.

Each takes only the parameters that it uses, and divides its rows, one a request or image, among the devices.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from realcustom_jax.data.views import reference_views
from realcustom_jax.diffusion.sampler import Conditioning, Contexts, Denoiser, Run, advance, begin
from realcustom_jax.diffusion.sampler_config import SamplerConfig
from realcustom_jax.models.conditioning import encode_reference, encode_text
from realcustom_jax.models.family import IMAGE, TEXT, Models
from realcustom_jax.models.vae import VAE
from realcustom_jax.models.vae_tiles import decode_in_tiles
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.precision import compiler_options
from realcustom_jax.sanity import check_finite, finite_rows

# Pixels of the images that a device decodes at once.
_DECODED_AT_ONCE = 1024 * 1024

# (steps done, the z_0 predicted last, the images of it) → the step at which to call it again. The second and
# third are functions, called only where they are wanted; an offloaded UNet is read again after the third.
Watcher = Callable[[int, Callable[[], Array], Callable[[], np.ndarray]], int]
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
        features = reference_features(pipe, views[None])
        if _tracing():  # what a caller's jit computes is gone after it
            return features
        pipe.cache["black"] = features
    return pipe.cache["black"]


def latents_and_masks(
    pipe: Pipeline,
    conditioning: Conditioning,
    keys: Array,
    config: SamplerConfig,
    watch: Watcher | None = None,
) -> tuple[Array, Array]:
    """The denoising loop: z_0 (B, h, w, C) and the masks of all steps (B, steps, R, h', w').

    Args:
      pipe, conditioning, keys, config: see `sample_latents`.
      watch: called between steps. The same compiled program runs with and without it.
    """
    static = (pipe.models, pipe.schedule, config)
    devices = _Devices.of(pipe, {"unet": pipe.params["unet"]}, len(keys))
    rows = devices.place((conditioning, keys))
    contexts, run = devices.run(_begin, static, rows)

    def latents() -> Array:
        return devices.collect(run.state.z0)

    def images() -> np.ndarray:
        nonlocal devices
        z0 = jax.block_until_ready(latents())
        if pipe.offloaded:  # the UNet makes room for the VAE
            devices = dataclasses.replace(devices, params=None)
        return images_of(pipe, z0)

    done, stop = 0, config.steps if watch is None else watch(0, latents, images)
    while done < config.steps:
        if devices.params is None:
            devices = _Devices.of(pipe, {"unet": pipe.params["unet"]}, len(keys))
        span = devices.place(np.full((len(keys), 2), [done, stop], np.int32))
        run = devices.run(_advance, static, (*rows, contexts, run, span))
        done = stop
        if watch is not None:
            stop = watch(done, latents, images)
    out = devices.collect((run.state.z0, run.history))
    return jax.block_until_ready(out) if pipe.offloaded else out


def images_of(pipe: Pipeline, latents: Array) -> np.ndarray:
    """Latents (B, h, w, C) → uint8 images (B, H, W, 3), so many at once that memory stays bounded.

    Several slices are equal, the last filled up: one program decodes them all.

    Raises:
      UserError: where the VAE gives what is not finite.
    """
    down = pipe.models.vae_config.downscale
    pixels = latents.shape[1] * latents.shape[2] * down * down
    devices = 1 if pipe.mesh is None else pipe.mesh.size
    slices = -(-len(latents) // (devices * max(1, _DECODED_AT_ONCE // pixels)))
    rows = -(-len(latents) // slices)
    filled = _fill(latents, slices * rows - len(latents))
    params = {"vae": pipe.params["vae"]}
    parts = [
        jax.device_get(_run_with(pipe, params, _decode, pipe.models, filled[start : start + rows]))
        for start in range(0, len(filled), rows)
    ]
    images, finite = (np.concatenate(part)[: len(latents)] for part in zip(*parts, strict=True))
    check_finite(finite)
    return images


def decode(models: Models, params: Any, latents: Array) -> Array:
    """Latents (B, h, w, C) → uint8 images (B, H, W, 3), large ones in tiles. Pure; `params` are the VAE's."""
    return _to_bytes(_decoded(models, params, latents))


def _decoded(models: Models, params: Any, latents: Array) -> Array:
    """Images (B, H, W, 3) in [-1, 1]."""

    def apply(latents: Array) -> Array:
        return models.vae.apply({"params": params}, latents, method=VAE.decode)

    return decode_in_tiles(apply, latents, models.vae_config.downscale)


def _to_bytes(images: Array) -> Array:
    return jnp.round(jnp.clip(images * 0.5 + 0.5, 0.0, 1.0) * 255.0).astype(jnp.uint8)


def _encode_text(models: Models, params: Any, ids: Sequence[Array]) -> tuple[Array, Array | None]:
    return encode_text(models, params, ids)


def _encode_references(models: Models, params: Any, views: Array) -> tuple[Array, ...]:
    return encode_reference(models, params, views)


def _begin(static: Any, params: Any, rows: tuple[Conditioning, Array]) -> tuple[Contexts, Run]:
    (models, schedule, config), (conditioning, keys) = static, rows
    return begin(Denoiser(models.unet, schedule, config), params["unet"], conditioning, keys)


def _advance(static: Any, params: Any, rows: tuple[Conditioning, Array, Contexts, Run, Array]) -> Run:
    (models, schedule, config), (conditioning, keys, contexts, run, span) = static, rows
    denoiser = Denoiser(models.unet, schedule, config)
    first = (span[0, 0], span[0, 1])  # every row's is the same
    return advance(denoiser, params["unet"], conditioning, contexts, keys, run, first)


def _decode(models: Models, params: Any, latents: Array) -> tuple[Array, Array]:
    images = _decoded(models, params["vae"], latents)
    return _to_bytes(images), finite_rows(images)


# ---------------------------------------------------------------- devices


def _run(pipe: Pipeline, components: Sequence[str], program: _Program, static: Any, rows: Any) -> Any:
    """A program with the parameters of some components, which it lets go of when they are offloaded."""
    params = {name: pipe.params[name] for name in components if name in pipe.params}
    out = _run_with(pipe, params, program, static, rows)
    # Before the next component's parameters come.
    return jax.block_until_ready(out) if pipe.offloaded else out


def _run_with(pipe: Pipeline, params: Any, program: _Program, static: Any, rows: Any) -> Any:
    devices = _Devices.of(pipe, params, len(jax.tree.leaves(rows)[0]))
    return devices.collect(devices.run(program, static, devices.place(rows)))


@dataclasses.dataclass(frozen=True)
class _Devices:
    """As many of a pipeline's devices as have rows to do.

    Attributes:
      params: of the programs, on these devices.
      count: rows.
      mesh: the devices, the rows along the first axis; None for one device.
      divided: whether the parameters are divided among them, and not whole on each.
      home: the device for what is put together from several programs' results; None for any.
    """

    params: Any
    count: int
    mesh: Mesh | None = None
    divided: bool = False
    home: Any = None

    @classmethod
    def of(cls, pipe: Pipeline, params: Any, count: int) -> "_Devices":
        if pipe.mesh is None or pipe.mesh.size == 1:
            return cls(params, count)
        leaves = jax.tree.leaves(params)
        if _tracing() or not all(isinstance(leaf, Array) for leaf in leaves):
            return cls(params, count)  # the caller's program, or the default device, has them
        if {frozenset(leaf.sharding.device_set) for leaf in leaves} != {frozenset(pipe.mesh.devices.flat)}:
            return cls(params, count)  # a sharding of other devices was asked for
        home = pipe.mesh.devices.flat[0]
        if not all(leaf.sharding.is_fully_replicated for leaf in leaves):
            return cls(params, count, pipe.mesh, True, home)
        per_device = -(-count // pipe.mesh.size)
        mesh = Mesh(pipe.mesh.devices.reshape(-1)[: -(-count // per_device)], ("rows",))
        return cls(_restrict(params, mesh), count, mesh, False, home)

    def place(self, rows: Any) -> Any:
        """Rows on their devices, the last filled up so that all do as many."""
        if self.mesh is None:
            return rows
        axis = self.mesh.axis_names[0]
        rows = _fill(rows, -self.count % self.mesh.shape[axis])
        return jax.device_put(rows, NamedSharding(self.mesh, P(axis)))

    def run(self, program: _Program, static: Any, rows: Any) -> Any:
        """A program on rows that are placed; its rows stay where they are made."""
        function, mesh = _on_one, {}
        if self.mesh is not None:
            function, mesh = (_divided if self.divided else _copied), {"mesh": self.mesh}
        first = jax.tree.leaves(self.params)[0]
        if not _tracing():  # else a caller's own jit compiles it
            numpy = not isinstance(first, Array)
            platform = jax.default_backend() if numpy else next(iter(first.devices())).platform
            function = _compiled(function, platform)
        return function(self.params, rows, program=program, static=static, **mesh)

    def collect(self, out: Any) -> Any:
        """A program's rows, on one device."""
        if self.mesh is None:
            return out
        return jax.device_put(jax.tree.map(lambda x: x[: self.count], out), self.home)


def _tracing() -> bool:
    """Whether a caller's jit or other transformation is tracing; parameters may be concrete within it."""
    return isinstance(jnp.zeros(()), Tracer)


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


def lower(program: _Program, static: Any, params: Any, rows: Any, mesh: Mesh) -> Any:
    """A program for shapes with shardings, on a mesh with the axis "rows", to be compiled ahead of time.

    Parameters that it does not use count as arguments too: they are on the devices all the same.
    """
    options = compiler_options(mesh.devices.flat[0].platform)
    names = ("program", "static", "mesh")
    run = jax.jit(_copied, static_argnames=names, keep_unused=True, compiler_options=options)
    return run.lower(params, rows, program=program, static=static, mesh=mesh)


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
