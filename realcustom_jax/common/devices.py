"""Runs pure programs on the rows of a batch, divided among devices.

A row is one request or image; its result does not depend on the other rows. Each program gets only the
parameters that it uses.
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
    """Run a program on rows (n, …); the result is on one device.

    Args:
      mesh: devices that share the rows; None for the device of the parameters.
      program, static, params: see `Program`; `static` is hashable.
      rows: tree of arrays (n, …).
    """
    devices = Devices.choose(mesh, params, len(jax.tree.leaves(rows)[0]))
    return devices.collect(devices.run(program, static, devices.place(rows)))


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices that a batch of rows runs on, with the parameters on them.

    There are three cases. One device: `mesh` is None. Parameters copied to each device: rows are divided, and
    each device works alone. Parameters divided among devices: the compiler divides the work.

    Attributes:
      params: parameters of the programs, on these devices.
      count: number of rows.
      mesh: the devices, with rows along the first axis; None for one device.
      divided: whether the parameters are divided among the devices; if not, each has a copy.
      home: the device of rows and results that are not divided; None for any.
    """

    params: Any
    count: int
    mesh: Mesh | None = None
    divided: bool = False
    home: Any = None

    @classmethod
    def choose(cls, mesh: Mesh | None, params: Any, count: int) -> "Devices":
        """Choose the devices for `count` rows: not more devices than rows.

        Args:
          mesh: devices that may be used; None for the device of the parameters.
          params: parameters of the programs.
          count: number of rows.
        """
        leaves = jax.tree.leaves(params)
        if is_tracing() or not all(isinstance(leaf, Array) for leaf in leaves):
            return cls(params, count)  # a caller's jit, or numpy parameters for the default device
        if mesh is None or mesh.size == 1:
            own = leaves[0].devices()
            return cls(params, count, home=next(iter(own)) if len(own) == 1 else None)
        if {frozenset(leaf.sharding.device_set) for leaf in leaves} != {frozenset(mesh.devices.flat)}:
            return cls(params, count)  # the user placed the parameters on other devices
        home = mesh.devices.flat[0]
        if not all(leaf.sharding.is_fully_replicated for leaf in leaves):
            return cls(params, count, mesh, True, home)
        # 5 rows on 4 devices are 2 per device on 3 devices: the fourth would compute only padding.
        per_device = -(-count // mesh.size)
        rows = Mesh(mesh.devices.reshape(-1)[: -(-count // per_device)], ("rows",))
        return cls(_restrict(params, rows), count, rows, False, home)

    def place(self, rows: Any) -> Any:
        """Move rows to their devices, padded so that each device has equally many."""
        if self.mesh is None:
            # Rows that come from the host, and those that a program returned, then run in the same program.
            return rows if self.home is None else jax.device_put(rows, self.home)
        # −n mod m rows are missing to a multiple of m.
        axis = self.mesh.axis_names[0]
        rows = fill(rows, -self.count % self.mesh.shape[axis])
        return jax.device_put(rows, NamedSharding(self.mesh, P(axis)))

    def run(self, program: Program, static: Any, rows: Any) -> Any:
        """Run a program on placed rows; the results stay on the devices that computed them."""
        function, mesh = _run_single, {}
        if self.mesh is not None:
            function, mesh = (_run_sharded if self.divided else _run_replicated), {"mesh": self.mesh}
        first = jax.tree.leaves(self.params)[0]
        if not is_tracing():  # within a caller's jit, that jit compiles it
            numpy = not isinstance(first, Array)
            platform = jax.default_backend() if numpy else next(iter(first.devices())).platform
            function = _compiled(function, platform)
        return function(self.params, rows, program=program, static=static, **mesh)

    def collect(self, out: Any) -> Any:
        """Collect the results of a program on one device, without the padding."""
        if self.mesh is None:
            return out
        return jax.device_put(jax.tree.map(lambda x: x[: self.count], out), self.home)


def is_tracing() -> bool:
    """Whether this code runs inside a caller's jit or another transformation."""
    # Not by the parameters: inside a jit they may be concrete, if the caller closes over them.
    return isinstance(jnp.zeros(()), Tracer)


def _run_single(params: Any, rows: Any, *, program: Program, static: Any) -> Any:
    """Run on one device."""
    return program(static, params, rows)


def _run_replicated(params: Any, rows: Any, *, program: Program, static: Any, mesh: Mesh) -> Any:
    """Run with a copy of the parameters on each device: each device computes its own rows."""
    # `shard_map` instead of automatic partitioning, which could insert communication.
    run = functools.partial(program, static)
    return jax.shard_map(run, mesh=mesh, in_specs=(P(), P("rows")), out_specs=P("rows"), check_vma=False)(
        params, rows
    )


def _run_sharded(params: Any, rows: Any, *, program: Program, static: Any, mesh: Mesh) -> Any:
    """Run with parameters divided among the devices: the compiler partitions the work."""
    # The mesh is for `FlashAttention`, which the compiler cannot partition.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return program(static, params, rows)


@functools.cache
def _compiled(function: Callable[..., Any], platform: str) -> Callable[..., Any]:
    """One of the three functions above, jitted for a platform."""
    # Cached here: a new `jax.jit` object would trace again.
    static = [
        name for name in ("program", "static", "mesh") if name in inspect.signature(function).parameters
    ]
    return jax.jit(function, static_argnames=static, compiler_options=compiler_options(platform))


def lower(program: Program, static: Any, params: Any, rows: Any, mesh: Mesh) -> Any:
    """Lower a program for ahead-of-time compilation.

    Args:
      program, static: see `Program`.
      params, rows: shapes with shardings.
      mesh: mesh with the axis "rows".
    """
    options = compiler_options(mesh.devices.flat[0].platform)
    names = ("program", "static", "mesh")
    # `keep_unused`: parameters that the program does not use are in the devices' memory too, and must count.
    run = jax.jit(_run_replicated, static_argnames=names, keep_unused=True, compiler_options=options)
    return run.lower(params, rows, program=program, static=static, mesh=mesh)


def _restrict(params: Any, mesh: Mesh) -> Any:
    """Restrict replicated arrays to the devices of a smaller mesh, without copying data."""
    replicated = NamedSharding(mesh, P())
    devices = set(mesh.devices.flat)

    def restrict_array(x: Array) -> Array:
        # Each addressable shard of a replicated array is a complete copy.
        copies = [shard.data for shard in x.addressable_shards if shard.device in devices]
        return jax.make_array_from_single_device_arrays(x.shape, replicated, copies)

    return jax.tree.map(restrict_array, params)


def fill(rows: Any, missing: int) -> Any:
    """Append `missing` copies of the last row to each array: (n, …) → (n + missing, …)."""
    # Real values instead of zeros, so that padding cannot produce NaN or infinity.
    if not missing:
        return rows
    return jax.tree.map(lambda x: jnp.concatenate([x, jnp.repeat(x[-1:], missing, axis=0)]), rows)


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turn JAX's out-of-memory error into a `UserError` with advice.

    Raises:
      UserError: instead of JAX's error.
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
