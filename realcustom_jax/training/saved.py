"""Reads trained parameters from a run's checkpoints without changing them, even while the run continues.

Only the selected leaves are read, as numpy arrays, so memory use is about their size.
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
    """Contents of a checkpoint, with the selected parameters.

    Attributes:
      step: step of the checkpoint.
      config: config of the run.
      loader: state of the data loader.
      params: selected trained parameters, {"component/module/…/kernel": values}.
      others: names of the other trained parameters.
    """

    step: int
    config: TrainConfig
    loader: dict[str, Any]
    params: dict[str, np.ndarray]
    others: tuple[str, ...]


def finished_steps(workdir: Path) -> list[int]:
    """Steps of the finished checkpoints, in ascending order.

    Raises:
      UserError: if the folder does not exist, is not a training workdir, or cannot be read.
    """
    folder = workdir / "checkpoints"
    try:
        if not folder.is_dir():
            no_checkpoints = "has no checkpoints/: it is not a training workdir"
            problem = no_checkpoints if workdir.is_dir() else "does not exist"
            raise UserError(f"the workdir {str(workdir)!r} {problem}")
        names = [path.name for path in folder.iterdir() if path.name.isdecimal() and _is_finished(path)]
    except OSError as error:
        raise UserError(f"the workdir {str(workdir)!r} cannot be read: {error.strerror}") from None
    return sorted(map(int, names))


def _is_finished(folder: Path) -> bool:
    try:
        metadata = json.loads((folder / "_CHECKPOINT_METADATA").read_text())
        return metadata["commit_timestamp_nsecs"] is not None
    except (OSError, ValueError, KeyError, TypeError):  # it is being written or deleted
        return False


def read_saved(workdir: Path, step: int | None, averaged: bool, select: Callable[[str], bool]) -> Saved:
    """Read trained parameters from a checkpoint.

    A run deletes old checkpoints when it writes new ones. If the newest checkpoint is deleted while being
    read, the one that is then the newest is read.

    Args:
      workdir: folder of the run.
      step: step of the checkpoint; None for the newest readable one.
      averaged: read the moving average of the parameters instead of their last values.
      select: function of a path "component/module/…/kernel"; true for parameters to read.

    Raises:
      UserError: if there is no such checkpoint, or it cannot be read.
    """
    damaged: dict[int, str] = {}
    while True:
        folder = _choose(workdir, step, damaged)
        saved, reason = None, ""
        try:
            saved = _read(folder, averaged, select)
        except (*UNREADABLE, TypeError, AttributeError) as error:  # last two: unexpected JSON types
            reason = _damage(folder, error)
        except OSError as error:
            raise UserError(f"the checkpoint {folder} cannot be read: {error.strerror or error}") from None
        if not _is_finished(folder):  # deleted meanwhile, so the result may be incomplete
            continue
        if saved:
            config, rest = saved
            try:  # an invalid config does not mean a damaged checkpoint
                return Saved(config=read_config(config), **rest)
            except UserError as error:
                raise UserError(f"the config in {folder}: {error}") from None
        damaged[int(folder.name)] = reason
        print(f"the checkpoint {folder} cannot be read: {reason}", flush=True)


def _damage(folder: Path, error: BaseException) -> str:
    """Describe the damage in one line.

    Raises:
      UserError: if the error is transient (no permission, network), so the files may be undamaged.
    """
    try:
        return damage(error)
    except Exception:
        raise UserError(f"the checkpoint {folder} cannot be read now: {one_line(error)}") from None


def _choose(workdir: Path, step: int | None, damaged: Mapping[int, str]) -> Path:
    """Folder of the checkpoint to read next; `damaged` maps the steps of damaged ones to the reasons.

    Raises:
      UserError: if none is left.
    """
    folder, steps = workdir.absolute() / "checkpoints", finished_steps(workdir)  # Orbax needs absolute paths
    if step is not None and step not in steps:
        available = ", ".join(map(str, steps)) or "none"
        raise UserError(f"there is no checkpoint of step {step} in {folder}; available steps: {available}")
    candidates = [one for one in (steps if step is None else [step]) if one not in damaged]
    if candidates:
        return folder / str(candidates[-1])
    if not damaged:
        raise UserError(f"there is no finished checkpoint in {folder} yet")
    why = "; ".join(f"step {one}: {reason}" for one, reason in damaged.items())
    raise UserError(f"no requested checkpoint in {folder} can be read ({why})")


def _read(
    folder: epath.PathLike, averaged: bool, select: Callable[[str], bool]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint: its config as JSON values, and the other fields of `Saved`."""
    folder = epath.Path(folder)
    config, data = (
        ocp.JsonCheckpointHandler().restore(folder / name, args=ocp.args.JsonRestore())
        for name in ("config", "data")
    )
    if not (isinstance(config, dict) and isinstance(data, dict)):
        raise ValueError("its config or its data is not a JSON object")
    handler = ocp.PyTreeCheckpointHandler()
    tree = "ema" if averaged else "params"
    leaves = flatten_dict(handler.metadata(folder / "state").tree[tree], sep="/")
    selected = unflatten_dict({path: leaf for path, leaf in leaves.items() if select(path)}, sep="/")
    params: dict[str, Any] = {}
    if selected:
        as_numpy = {
            path: ocp.RestoreArgs(restore_type=np.ndarray) for path in flatten_dict(selected, sep="/")
        }
        args = ocp.args.PyTreeRestore(
            item={tree: selected},
            restore_args={tree: unflatten_dict(as_numpy, sep="/")},
            partial_restore=True,
        )
        params = flatten_dict(handler.restore(folder / "state", args=args)[tree], sep="/")
    checksums = data.get("checksums", {})  # missing in checkpoints of earlier versions
    indices = {path: i for i, path in enumerate(checksums)}
    for path, value in params.items():
        name = f"{tree}/{path}"
        if indices and int(leaf_checksum(value, indices[name])) != checksums[name]:
            raise ValueError(f"the checksum of {name} is wrong")
    others = tuple(path for path in leaves if path not in params)
    rest = {"step": int(folder.name), "loader": data["loader"], "params": params, "others": others}
    return config, rest
