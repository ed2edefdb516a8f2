"""Checkpoints of a run: train state, loader state and config, saved by Orbax in WORKDIR/checkpoints/."""

import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import Array
from jax.experimental import multihost_utils

from realcustom_jax.common.errors import UserError, one_line
from realcustom_jax.weights.keys import check_keys

# A new manager needs the handlers to read the metadata of checkpoints from earlier processes.
_HANDLERS = {
    "state": ocp.StandardCheckpointHandler,
    "data": ocp.JsonCheckpointHandler,
    "config": ocp.JsonCheckpointHandler,
}


class Restored(NamedTuple):
    """Contents of a checkpoint: its step, the sharded train state, and the loader's state."""

    step: int
    state: Any
    loader: dict[str, Any]


class Checkpoints:
    """Saves checkpoints asynchronously and restores the newest undamaged one.

    Orbax writes to a temporary folder and renames it at the end, so an interrupted save is not mistaken for a
    checkpoint. The file system can still damage one. A damaged checkpoint (missing parts, unreadable, or
    wrong checksum) is reported, renamed to `STEP.corrupt`, and the previous one is used.
    """

    def __init__(self, workdir: Path, keep: int, keep_every: int = 0):
        """Open the checkpoints of a run and set aside damaged ones.

        Args:
          workdir: folder of the run.
          keep: number of newest checkpoints to keep.
          keep_every: also keep checkpoints whose step is a multiple of this (0: none).
        """
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(),
            item_handlers={name: handler() for name, handler in _HANDLERS.items()},
            options=options,
        )
        self._corrupt = 0
        for step in self._manager.all_steps():
            self._quarantine(step, self._damage_of(step))

    def _damage_of(self, step: int) -> str:
        """Describe a checkpoint's damage: unfinished, missing items or unreadable; "" if there is none."""
        try:
            saved = self._manager.metadata(step)
            items = saved.item_metadata or {}
            missing = [name for name in _HANDLERS if name not in items]
            if missing:
                return f"it lacks {', '.join(missing)}"
            if saved.commit_timestamp_nsecs is None:
                return "it was never finished"
            self.config(step)
            self._manager.item_metadata(step)["state"]
        except UNREADABLE as error:
            return damage(error)
        return ""

    def _quarantine(self, step: int, reason: str) -> bool:
        """Rename a checkpoint if any process found damage in it; returns whether one did."""
        # All processes must agree; otherwise those that read it would wait forever for the others.
        if not multihost_utils.process_allgather(np.asarray(bool(reason))).any():
            return False
        self._set_aside(step, reason or "another process cannot read it")
        return True

    def _set_aside(self, step: int, reason: str) -> None:
        self._corrupt += 1
        folder = Path(self._manager.directory) / str(step)
        if jax.process_index() == 0:
            names = itertools.chain([f"{step}.corrupt"], (f"{step}.corrupt{i}" for i in itertools.count(2)))
            aside = next(path for path in map(folder.with_name, names) if not path.exists())
            print(f"the checkpoint {folder} is corrupt ({reason}): set aside as {aside.name}", flush=True)
            folder.rename(aside)
        multihost_utils.sync_global_devices(f"set aside {step}")
        self._manager.reload()

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: Any, loader: dict[str, Any], config: dict[str, Any]) -> None:
        """Start writing a checkpoint.

        Args:
          step: step of the checkpoint.
          state: train state.
          loader: state of the loader, JSON-serialisable.
          config: config of the run, JSON-serialisable.

        Raises:
          UserError: if this save or the previous one fails.
        """
        checksums = leaf_checksums(state)
        data = {"loader": loader, "checksum": _sum(checksums), "checksums": checksums}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data), config=ocp.args.JsonSave(config)
        )
        with self._writing():
            self._manager.save(step, args=args)

    def config(self, step: int) -> dict[str, Any]:
        """Read the config of a checkpoint."""
        return self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]

    def restore_newest(self, like: Any) -> Restored | None:
        """Restore the newest undamaged checkpoint into the shardings of `like`; None if there is none.

        Args:
          like: the state as `jax.ShapeDtypeStruct`s with shardings.

        Raises:
          UserError: if a checkpoint belongs to another model (the message names the differing keys), or if
            there are several and all are damaged.
        """
        while (step := self.latest_step()) is not None:
            saved = self._manager.item_metadata(step)["state"]
            check_keys(f"checkpoint {step} in {self._manager.directory}", _shapes(like), _shapes(saved))
            args = ocp.args.Composite(state=ocp.args.StandardRestore(like), data=ocp.args.JsonRestore())
            restored, reason = None, ""
            try:
                restored = self._manager.restore(step, args=args)
            except UNREADABLE as error:
                reason = damage(error)
            if self._quarantine(step, reason):
                continue
            assert restored is not None
            data = restored["data"] if isinstance(restored["data"], dict) else {}
            if not isinstance(data.get("loader"), dict):
                self._set_aside(step, "its data/ lacks the state of the loader")
            elif _checksum(restored["state"]) != data.get("checksum"):
                self._set_aside(step, "the checksum of its parameters is wrong")
            else:
                return Restored(step, restored["state"], data["loader"])
        # If the only checkpoint is damaged, the run starts over.
        if self._corrupt > 1:
            raise UserError(
                f"none of the {self._corrupt} checkpoints in {self._manager.directory} can be read"
            )
        return None

    def close(self) -> None:
        """Wait for the last save, and close.

        Raises:
          UserError: if the save fails.
        """
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn the errors that Orbax's threads raise when a save fails into a one-line `UserError`."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            latest = self._manager.latest_step()
            remaining = f"the newest finished one is step {latest}" if latest else "there is no earlier one"
            raise UserError(
                f"a checkpoint cannot be written to {self._manager.directory}: {one_line(error)}; {remaining}"
            ) from error


def leaf_checksums(tree: Any) -> dict[str, int]:
    """32-bit checksum of every leaf, by path, in the order of the leaves.

    A flipped bit or a moved word changes the checksum, because each word is multiplied by an odd factor that
    depends on its position. Integer sums are the same on any mesh. Each shape compiles its own program, and a
    model has few shapes: one program for all leaves took at least half the compile time of a training step.
    """
    # Each result is awaited, as in `step.all_finite`.
    return {path: int(leaf_checksum(leaf, i)) for i, (path, leaf) in enumerate(_leaves(tree).items())}


def leaf_checksum(leaf: Any, index: int) -> Array:
    """32-bit checksum of a leaf; `index` is its position among the leaves of its tree."""
    return _leaf_checksum(leaf, np.uint32(2 * index + 1))


def _checksum(tree: Any) -> int:
    return _sum(leaf_checksums(tree))


def _sum(checksums: Mapping[str, int]) -> int:
    return sum(checksums.values()) % 2**32


@jax.jit
def _leaf_checksum(leaf: Array, odd: Array) -> Array:
    """Sum of an array's words as uint32, each times an odd factor of its position; `odd` differs by array."""
    words = jax.lax.bitcast_convert_type(leaf, np.dtype(f"uint{8 * leaf.dtype.itemsize}"))
    factor = jnp.full(leaf.shape, odd)
    for axis, size in enumerate(leaf.shape):
        # Adding an even number keeps the factor odd. Odd factors are invertible modulo 2³².
        factor += 2 * (axis + 1) * 0x9E37 * jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        factor *= jnp.uint32(2 * size + 1)
    return (factor * words.astype(jnp.uint32)).sum(dtype=jnp.uint32)


# Errors of Orbax and its libraries for damaged files. Transient failures (out of memory, no permission,
# network) raise other errors, or these with a status code in the message. Then the files may be undamaged.
UNREADABLE = (ValueError, KeyError, FileNotFoundError, EOFError, RecursionError)
_TRANSIENT = re.compile(r"PERMISSION_DENIED|UNAVAILABLE|RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED|ABORTED")


def damage(error: BaseException) -> str:
    """Describe an error in one line; raises it again if it is transient, as the files may be undamaged."""
    if _TRANSIENT.search(str(error)):
        raise error
    return one_line(error)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in _leaves(tree).items()}


def _leaves(tree: Any) -> dict[str, Any]:
    # The state is a dataclass in memory and a dict on disk; both give the same paths.
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
