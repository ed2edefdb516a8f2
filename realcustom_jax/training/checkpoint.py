"""Checkpoints of a run: train state, place in the data, config. Orbax, under WORKDIR/checkpoints/."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from realcustom_jax.weights.keys import check_keys


class Checkpoints:
    """Saves asynchronously and restores the newest whole checkpoint.

    Orbax writes into a temporary folder and renames it when all is there, so an interrupted save is never
    taken for a checkpoint.
    """

    def __init__(self, workdir: Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        # Without its handlers a fresh manager cannot tell what a checkpoint of an earlier process holds.
        handlers = {
            "state": ocp.StandardCheckpointHandler(),
            "data": ocp.JsonCheckpointHandler(),
            "config": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(), item_handlers=handlers, options=options
        )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: Any, data: dict[str, Any], config: dict[str, Any]) -> None:
        """Start writing; `data` is the loader's state and `config` the run's, both JSON-able."""
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data), config=ocp.args.JsonSave(config)
        )
        self._manager.save(step, args=args)

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """The state, straight into the shardings of `like`, and the loader's state.

        Args:
          step: which checkpoint.
          like: the state as `jax.ShapeDtypeStruct`s with shardings.

        Raises:
          UserError: when the checkpoint is of another model; every differing key is named.
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
