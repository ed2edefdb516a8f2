"""Checkpoints of a run: train state, place in the data, config. Orbax, under WORKDIR/checkpoints/."""

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

# Without its handlers a fresh manager cannot tell what a checkpoint of an earlier process holds.
_HANDLERS = {
    "state": ocp.StandardCheckpointHandler,
    "data": ocp.JsonCheckpointHandler,
    "config": ocp.JsonCheckpointHandler,
}


class Restored(NamedTuple):
    """What a checkpoint gives: its step, the train state in its shards, and the loader's state."""

    step: int
    state: Any
    loader: dict[str, Any]


class Checkpoints:
    """Saves asynchronously and restores the newest whole checkpoint.

    Orbax writes into a temporary folder and renames it when all is there, so an interrupted save is not taken
    for a checkpoint. A file system can still tear or spoil one: a checkpoint whose parts are not all there,
    cannot be read, or give another checksum than they were saved with, is said and set aside as
    `STEP.corrupt`, and the one before it counts.
    """

    def __init__(self, workdir: Path, keep: int, keep_every: int = 0):
        """`keep` the newest ones, and those whose step `keep_every` divides (0: none)."""
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
            self._set_aside_if(step, self._torn(step))

    def _torn(self, step: int) -> str:
        """What a checkpoint lacks, or "" for one that Orbax finished and whose items are there."""
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

    def _set_aside_if(self, step: int, reason: str) -> bool:
        """Rename a checkpoint in which one of the processes found damage; whether one did."""
        # All must agree: those that read it would wait for ever for the others.
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
        """Start writing; `loader` is the loader's state and `config` the run's, both JSON-able.

        Raises:
          UserError: when this or the save before it cannot be written.
        """
        checksums = leaf_checksums(state)
        data = {"loader": loader, "checksum": _joined(checksums), "checksums": checksums}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data), config=ocp.args.JsonSave(config)
        )
        with self._writing():
            self._manager.save(step, args=args)

    def config(self, step: int) -> dict[str, Any]:
        """The config that a checkpoint was saved with."""
        return self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]

    def restore_newest(self, like: Any) -> Restored | None:
        """The newest checkpoint that can be read whole, straight into the shardings of `like`, if any.

        Args:
          like: the state as `jax.ShapeDtypeStruct`s with shardings.

        Raises:
          UserError: when a checkpoint is of another model (the differing keys are named), or there were
            several and none of them can be read.
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
            if self._set_aside_if(step, reason):
                continue
            assert restored is not None
            data = restored["data"] if isinstance(restored["data"], dict) else {}
            if not isinstance(data.get("loader"), dict):
                self._set_aside(step, "its data/ does not say where in the data it is")
            elif _checksum(restored["state"]) != data.get("checksum"):
                self._set_aside(step, "its parameters give another checksum than they were saved with")
            else:
                return Restored(step, restored["state"], data["loader"])
        # Of a run's first checkpoint alone, the one before is the beginning.
        if self._corrupt > 1:
            raise UserError(
                f"none of the {self._corrupt} checkpoints in {self._manager.directory} can be read"
            )
        return None

    def close(self) -> None:
        """Wait for the last save.

        Raises:
          UserError: when it cannot be written.
        """
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Names a save's failure, which Orbax's threads raise as one of several kinds, in one sentence."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            whole = self._manager.latest_step()
            left = f"the newest whole one is of step {whole}" if whole else "there is no earlier one"
            raise UserError(
                f"a checkpoint cannot be written to {self._manager.directory}: {one_line(error)}; {left}"
            ) from error


def leaf_checksums(tree: Any) -> dict[str, int]:
    """Of 32 bits, for each leaf by its path, in the order of the leaves.

    Any changed bit changes one, and so do words that moved: each word has an odd factor of its place.
    Integers, so they are the same on any mesh. A program for each shape, of which a model has few: one for
    all leaves took half as long to compile as a training step, or longer.
    """
    leaves = _leaves(tree)
    sums = [leaf_checksum(leaf, i) for i, leaf in enumerate(leaves.values())]
    return dict(zip(leaves, map(int, jax.device_get(sums)), strict=True))


def leaf_checksum(leaf: Any, place: int) -> Array:
    """Of the leaf at a place among the leaves of its tree."""
    return _leaf_checksum(leaf, np.uint32(2 * place + 1))


def _checksum(tree: Any) -> int:
    return _joined(leaf_checksums(tree))


def _joined(checksums: Mapping[str, int]) -> int:
    return sum(checksums.values()) % 2**32


@jax.jit
def _leaf_checksum(leaf: Array, odd: Array) -> Array:
    """The uint32 sum of an array's words, each times the odd factor of its place; `odd` differs by array."""
    words = jax.lax.bitcast_convert_type(leaf, np.dtype(f"uint{8 * leaf.dtype.itemsize}"))
    place = jnp.full(leaf.shape, odd)
    for axis, size in enumerate(leaf.shape):
        # Even, so the factor stays odd; modulo 2³², in which odd factors lose no bit.
        place += 2 * (axis + 1) * 0x9E37 * jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        place *= jnp.uint32(2 * size + 1)
    return (place * words.astype(jnp.uint32)).sum(dtype=jnp.uint32)


# What Orbax, and what it reads with, raise for files that are not whole. A device without memory, a disk
# without permission, a network that fails raise others, or say so: then the checkpoint may be whole.
UNREADABLE = (ValueError, KeyError, FileNotFoundError, EOFError, RecursionError)
_PASSING = re.compile(r"PERMISSION_DENIED|UNAVAILABLE|RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED|ABORTED")


def damage(error: BaseException) -> str:
    """The error in one line; raised again where it says that the files may be whole."""
    if _PASSING.search(str(error)):
        raise error
    return one_line(error)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in _leaves(tree).items()}


def _leaves(tree: Any) -> dict[str, Any]:
    # The state is a dataclass in memory and a dict on disk; paths are written alike.
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
