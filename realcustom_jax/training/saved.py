"""Reads trained parameters from a run's checkpoints, also while the run goes on; changes nothing there.

Only the leaves that are asked for are read, as numpy, so memory is about theirs.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from realcustom_jax.common.errors import UserError, one_line
from realcustom_jax.training.checkpoint import UNREADABLE, damage, leaf_checksum
from realcustom_jax.training.config import TrainConfig, read_config


@dataclasses.dataclass(frozen=True)
class Saved:
    """What was read of a checkpoint.

    Attributes:
      step: of the checkpoint.
      config: the run's.
      loader: the data loader's state.
      params: {"component/module/…/kernel": values} of the trained parameters that were asked for.
      others: names of the trained parameters that were not.
    """

    step: int
    config: TrainConfig
    loader: dict[str, Any]
    params: dict[str, np.ndarray]
    others: tuple[str, ...]


def finished_steps(workdir: Path) -> list[int]:
    """The steps of the checkpoints that are written whole, in order.

    Raises:
      UserError: the folder is not there, or is no training's.
    """
    folder = workdir / "checkpoints"
    try:
        if not folder.is_dir():
            what = "has no checkpoints/: it is no training's" if workdir.is_dir() else "does not exist"
            raise UserError(f"the workdir {str(workdir)!r} {what}")
        names = [path.name for path in folder.iterdir() if path.name.isdecimal() and _is_finished(path)]
    except OSError as error:
        raise UserError(f"the workdir {str(workdir)!r} cannot be read: {error.strerror}") from None
    return sorted(map(int, names))


def _is_finished(folder: Path) -> bool:
    try:
        metadata = json.loads((folder / "_CHECKPOINT_METADATA").read_text())
        return metadata["commit_timestamp_nsecs"] is not None
    except (OSError, ValueError, KeyError, TypeError):  # being written or deleted
        return False


def read_saved(workdir: Path, step: int | None, averaged: bool, wanted: Callable[[str], bool]) -> Saved:
    """Trained parameters of a checkpoint.

    A run deletes old checkpoints as it writes new ones: where the newest one goes while it is read, the one
    that is then the newest is read.

    Args:
      workdir: of the run.
      step: of the checkpoint; None for the newest that can be read.
      averaged: the average of the parameters over the steps, not their last values.
      wanted: whether a parameter is read, by its path "component/module/…/kernel".

    Raises:
      UserError: there is no such checkpoint, or it cannot be read.
    """
    damaged: dict[int, str] = {}
    while True:
        folder = _choose(workdir, step, damaged)
        saved, reason = None, ""
        try:
            saved = _read(folder, averaged, wanted)
        except (*UNREADABLE, TypeError, AttributeError) as error:  # the last two for JSON of other types
            reason = _damage(folder, error)
        except OSError as error:
            raise UserError(f"the checkpoint {folder} cannot be read: {error.strerror or error}") from None
        if not _is_finished(folder):  # deleted meanwhile: what was read may lack something
            continue
        if saved:
            config, rest = saved
            try:  # a config that is wrong is no damage
                return Saved(config=read_config(config), **rest)
            except UserError as error:
                raise UserError(f"the config in {folder}: {error}") from None
        damaged[int(folder.name)] = reason
        print(f"the checkpoint {folder} cannot be read: {reason}", flush=True)


def _damage(folder: Path, error: BaseException) -> str:
    """What is damaged, in one line.

    Raises:
      UserError: the error says that the files may be whole: no permission, a network that fails.
    """
    try:
        return damage(error)
    except Exception:
        raise UserError(f"the checkpoint {folder} cannot be read now: {one_line(error)}") from None


def _choose(workdir: Path, step: int | None, damaged: Mapping[int, str]) -> Path:
    """The folder of the checkpoint to read next; `damaged` has those that could not be read, and why.

    Raises:
      UserError: none is left.
    """
    folder, steps = workdir.absolute() / "checkpoints", finished_steps(workdir)  # Orbax takes no other path
    if step is not None and step not in steps:
        known = f"those of the steps {', '.join(map(str, steps))} are" if steps else "none is"
        raise UserError(f"there is no checkpoint of step {step} in {folder}: {known} there")
    left = [one for one in (steps if step is None else [step]) if one not in damaged]
    if left:
        return folder / str(left[-1])
    if not damaged:
        raise UserError(f"there is no finished checkpoint in {folder} yet")
    why = "; ".join(f"step {one}: {reason}" for one, reason in damaged.items())
    raise UserError(f"no checkpoint in {folder} that was asked for can be read ({why})")


def _read(
    folder: epath.PathLike, averaged: bool, wanted: Callable[[str], bool]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config of a checkpoint as it was saved, and the other fields of `Saved`."""
    folder = epath.Path(folder)
    config, data = (
        ocp.JsonCheckpointHandler().restore(folder / name, args=ocp.args.JsonRestore())
        for name in ("config", "data")
    )
    if not (isinstance(config, dict) and isinstance(data, dict)):
        raise ValueError("its config or its data is no JSON object")
    handler = ocp.PyTreeCheckpointHandler()
    tree = "ema" if averaged else "params"
    leaves = flatten_dict(handler.metadata(folder / "state").tree[tree], sep="/")
    chosen = unflatten_dict({path: leaf for path, leaf in leaves.items() if wanted(path)}, sep="/")
    params: dict[str, Any] = {}
    if chosen:
        as_numpy = {path: ocp.RestoreArgs(restore_type=np.ndarray) for path in flatten_dict(chosen, sep="/")}
        args = ocp.args.PyTreeRestore(
            item={tree: chosen},
            restore_args={tree: unflatten_dict(as_numpy, sep="/")},
            partial_restore=True,
        )
        params = flatten_dict(handler.restore(folder / "state", args=args)[tree], sep="/")
    checksums = data.get("checksums", {})  # earlier versions have none
    places = {path: i for i, path in enumerate(checksums)}
    for path, value in params.items():
        name = f"{tree}/{path}"
        if places and int(leaf_checksum(value, places[name])) != checksums[name]:
            raise ValueError(f"{name} gives another checksum than it was saved with")
    others = tuple(path for path in leaves if path not in params)
    rest = {"step": int(folder.name), "loader": data["loader"], "params": params, "others": others}
    return config, rest
