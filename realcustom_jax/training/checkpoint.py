"""Checkpoints of a run: train state, place in the data, config. Orbax, under WORKDIR/checkpoints/."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from realcustom_jax.weights.keys import check_keys

# Without its handlers a fresh manager cannot tell what a checkpoint of an earlier process holds.
_HANDLERS = {
    "state": ocp.StandardCheckpointHandler,
    "data": ocp.JsonCheckpointHandler,
    "config": ocp.JsonCheckpointHandler,
}


class Checkpoints:
    """Saves asynchronously and restores the newest whole checkpoint.

    Orbax writes into a temporary folder and renames it when all is there, so an interrupted save is not taken
    for a checkpoint. Where a file system does not rename a folder at once, or a copy was cut short, a step's
    folder can still be torn: it is removed, because Orbax saves no step at or before one that it sees.
    """

    def __init__(self, workdir: Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(),
            item_handlers={name: handler() for name, handler in _HANDLERS.items()},
            options=options,
        )
        for step in self._manager.all_steps():
            if not self._is_whole(step):
                if jax.process_index() == 0:
                    print(f"removing the torn checkpoint {self._manager.directory / str(step)}", flush=True)
                self._manager.delete(step)

    def _is_whole(self, step: int) -> bool:
        """Whether Orbax finished the checkpoint, and all its items are there."""
        saved = self._manager.metadata(step)
        items = saved.item_metadata or {}
        return saved.commit_timestamp_nsecs is not None and all(name in items for name in _HANDLERS)

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: Any, data: dict[str, Any], config: dict[str, Any]) -> None:
        """Start writing; `data` is the loader's state and `config` the run's, both JSON-able."""
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data), config=ocp.args.JsonSave(config)
        )
        self._manager.save(step, args=args)

    def config(self, step: int) -> dict[str, Any]:
        """The config that a checkpoint was saved with."""
        return self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """The state, straight into the shardings of `like`, and the loader's state.

        Args:
          step: which checkpoint.
          like: the state as `jax.ShapeDtypeStruct`s with shardings.

        Raises:
          UserError: when the checkpoint is of another model; the differing keys are named.
        """
        saved = self._manager.item_metadata(step)["state"]
        check_keys(f"checkpoint {step} in {self._manager.directory}", _shapes(like), _shapes(saved))
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like), data=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=args)
        return restored["state"], restored["data"]

    def close(self) -> None:
        """Wait for the last save."""
        self._manager.wait_until_finished()
        self._manager.close()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    # The state is a dataclass in memory and a dict on disk; paths are written alike.
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves
    }
