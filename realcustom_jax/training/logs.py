"""What a run tells: a progress bar, `metrics.jsonl`, TensorBoard scalars, and the hash of the result."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from realcustom_jax.files import replacing
from realcustom_jax.training.meter import Meter
from realcustom_jax.weights.keys import flatten


class Logger:
    """Progress bar with loss, images/s and time left; a report is one JSON line in WORKDIR/metrics.jsonl and
    the same numbers as scalars in WORKDIR/tensorboard/, with pictures.

    Only the first process writes. A resumed run repeats the steps after its checkpoint, so their earlier
    lines are dropped first; TensorBoard drops them by itself.
    """

    def __init__(self, workdir: Path, first_step: int, steps: int):
        self._active = jax.process_index() == 0
        self._file = None
        if self._active:
            _drop_after(workdir / "metrics.jsonl", first_step)
            self._file = (workdir / "metrics.jsonl").open("a")
            # `purge_step` tells it which steps come again.
            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)
        self._bar = tqdm(
            total=steps, initial=first_step, unit="step", disable=not self._active, dynamic_ncols=True
        )

    def advance(self) -> None:
        self._bar.update()

    def report(self, step: int, metrics: dict[str, jax.Array], meter: Meter) -> None:
        """Fetch a step's metrics from the device, and write them and what the meter reads."""
        values = {name: float(value) for name, value in metrics.items()} | meter.read()
        self.write({"step": step, **values})
        if self._active:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        self._bar.set_postfix_str(f"loss {values['loss']:.4f}, {values['images_per_second']:.1f} images/s")

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Show uint8 (H, W, 3) in TensorBoard."""
        if self._active:
            self._board.add_image(name, pixels, step, dataformats="HWC")

    def write(self, record: dict[str, Any]) -> None:
        if self._file:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._bar.close()
        if self._active:
            self._file.close()
            self._board.close()


def _drop_after(path: Path, step: int) -> None:
    """Keep a metrics file's reports up to a step; not the hash, which is the last step's and comes again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
            earlier = record["step"] <= step
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # a line that the end of the process cut off
        if earlier and "sha256" not in record:
            kept.append(f"{line}\n")
    with replacing(path) as half:
        half.write_text("".join(kept))


def params_sha256(params: Any) -> str:
    """SHA-256 over the names, shapes and bytes of all parameters, in the order of their names."""
    digest = hashlib.sha256()
    # One component at a time: those of an offloaded pipeline come when they are asked for.
    for name in sorted(params, key="{}/".format):
        for path, value in sorted(flatten({name: params[name]}).items()):
            value = np.ascontiguousarray(value)
            digest.update(f"{path} {value.dtype} {value.shape}\n".encode())
            digest.update(value.tobytes())
    return digest.hexdigest()
