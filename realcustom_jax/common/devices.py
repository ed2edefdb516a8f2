"""Pure programs on the rows of a batch, divided among devices.

Each program takes only the parameters that it uses. Each row, one a request or image, gives its own result.
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.precision import compiler_options

# (static object, parameters, rows) → rows.
Program = Callable[[Any, Any, Any], Any]


def run_rows(mesh: Mesh | None, program: Program, static: Any, params: Any, rows: Any) -> Any:
    """A program's result for rows (n, …), on one device.

    Args:
      mesh: the devices; None for those where the parameters lie.
      program, static, params: see `Program`; `static` is hashable.
      rows: tree of arrays with a row for each request.
    """
    devices = Devices.of(mesh, params, len(jax.tree.leaves(rows)[0]))
    return devices.collect(devices.run(program, static, devices.place(rows)))


@dataclasses.dataclass(frozen=True)
class Devices:
    """As many devices of a mesh as have rows to do.

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
    def of(cls, mesh: Mesh | None, params: Any, count: int) -> "Devices":
        if mesh is None or mesh.size == 1:
            return cls(params, count)
        leaves = jax.tree.leaves(params)
        if is_tracing() or not all(isinstance(leaf, Array) for leaf in leaves):
            return cls(params, count)  # the caller's program, or the default device, has them
        if {frozenset(leaf.sharding.device_set) for leaf in leaves} != {frozenset(mesh.devices.flat)}:
            return cls(params, count)  # a sharding of other devices was asked for
        home = mesh.devices.flat[0]
        if not all(leaf.sharding.is_fully_replicated for leaf in leaves):
            return cls(params, count, mesh, True, home)
        per_device = -(-count // mesh.size)
        rows = Mesh(mesh.devices.reshape(-1)[: -(-count // per_device)], ("rows",))
        return cls(_restrict(params, rows), count, rows, False, home)

    def place(self, rows: Any) -> Any:
        """Rows on their devices, the last filled up so that all do as many."""
        if self.mesh is None:
            return rows
        axis = self.mesh.axis_names[0]
        rows = fill(rows, -self.count % self.mesh.shape[axis])
        return jax.device_put(rows, NamedSharding(self.mesh, P(axis)))

    def run(self, program: Program, static: Any, rows: Any) -> Any:
        """A program on rows that are placed; its rows stay where they are made."""
        function, mesh = _on_one, {}
        if self.mesh is not None:
            function, mesh = (_divided if self.divided else _copied), {"mesh": self.mesh}
        first = jax.tree.leaves(self.params)[0]
        if not is_tracing():  # else a caller's own jit compiles it
            numpy = not isinstance(first, Array)
            platform = jax.default_backend() if numpy else next(iter(first.devices())).platform
            function = _compiled(function, platform)
        return function(self.params, rows, program=program, static=static, **mesh)

    def collect(self, out: Any) -> Any:
        """A program's rows, on one device."""
        if self.mesh is None:
            return out
        return jax.device_put(jax.tree.map(lambda x: x[: self.count], out), self.home)


def is_tracing() -> bool:
    """Whether a caller's jit or other transformation is tracing; parameters may be concrete within it."""
    return isinstance(jnp.zeros(()), Tracer)


def _on_one(params: Any, rows: Any, *, program: Program, static: Any) -> Any:
    return program(static, params, rows)


def _copied(params: Any, rows: Any, *, program: Program, static: Any, mesh: Mesh) -> Any:
    """Parameters are whole on every device, so each does its own rows and none talks to another."""
    run = functools.partial(program, static)
    return jax.shard_map(run, mesh=mesh, in_specs=(P(), P("rows")), out_specs=P("rows"), check_vma=False)(
        params, rows
    )


def _divided(params: Any, rows: Any, *, program: Program, static: Any, mesh: Mesh) -> Any:
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


def lower(program: Program, static: Any, params: Any, rows: Any, mesh: Mesh) -> Any:
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


def fill(rows: Any, missing: int) -> Any:
    """With copies of the last row: a row's result depends on that row alone."""
    if not missing:
        return rows
    return jax.tree.map(lambda x: jnp.concatenate([x, jnp.repeat(x[-1:], missing, axis=0)]), rows)


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """A device out of memory is one sentence.

    Raises:
      UserError: in place of JAX's error.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            "the device is out of memory: use a smaller height and width, fewer images at once, "
            "dtype='bfloat16', or offload=True when loading"
        ) from error
