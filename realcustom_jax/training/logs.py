"""What a run tells: a progress bar, `metrics.jsonl`, and the hash of the result."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from realcustom_jax.weights.keys import flatten


class Logger:
    """Progress bar with loss, images/s and time left; one JSON line in WORKDIR/metrics.jsonl a report.

    Only the first process writes. A resumed run repeats the steps after its checkpoint, so their earlier
    lines are dropped first.
    """

    def __init__(self, workdir: Path, first_step: int, steps: int, batch_size: int):
        self._active = jax.process_index() == 0
        self._file = None
        if self._active:
            _drop_after(workdir / "metrics.jsonl", first_step)
            self._file = (workdir / "metrics.jsonl").open("a")
        self._batch_size = batch_size
        self._bar = tqdm(
            total=steps, initial=first_step, unit="step", disable=not self._active, dynamic_ncols=True
        )
        self._last = (time.perf_counter(), first_step)

    def advance(self) -> None:
        self._bar.update()

    def report(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Fetch a step's metrics from the device and write them."""
        values = {name: float(value) for name, value in metrics.items()}
        now = time.perf_counter()
        then, before = self._last
        self._last = (now, step)
        rate = (step - before) * self._batch_size / max(now - then, 1e-9)
        self.write({"step": step, **values, "images_per_second": rate})
        self._bar.set_postfix_str(f"loss {values['loss']:.4f}, {rate:.1f} images/s")

    def write(self, record: dict[str, Any]) -> None:
        if self._file:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._bar.close()
        if self._file:
            self._file.close()


def _drop_after(path: Path, step: int) -> None:
    """Keep a metrics file's reports up to a step; not the hash, which is the last step's and comes again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # a line that the end of the process cut off
        if record["step"] <= step and "sha256" not in record:
            kept.append(f"{line}\n")
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)


def params_sha256(params: Any) -> str:
    """SHA-256 over the names, shapes and bytes of all parameters, in the order of their names."""
    digest = hashlib.sha256()
    for path, value in sorted(flatten(params).items()):
        value = np.ascontiguousarray(value)
        digest.update(f"{path} {value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
