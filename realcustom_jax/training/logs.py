"""What a run reports: a progress bar, `metrics.jsonl` and TensorBoard scalars."""

import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from realcustom_jax.common.files import replacing
from realcustom_jax.common.progress import duration
from realcustom_jax.training.meter import Meter

# Seconds between two lines of a log.
_BETWEEN_LINES = 60.0


class Lines:
    """The steps of a run in a log, where a redrawn bar would be one endless line; called as `tqdm` is.

    A line tells the step, the newest report and the time left: at the first report, then once a minute, and
    at the last step.
    """

    def __init__(self, total: int, initial: int, stream: TextIO):
        self._total, self._initial, self._done, self._stream = total, initial, initial, stream
        self._text, self._last = "", time.monotonic()
        self._begun = self._last
        self._write(f"training: {initial} of {total} steps are done, the next one compiles first")

    def update(self) -> None:
        """One more step is done."""
        self._done += 1
        if self._done == self._initial + 1:  # it compiled, so the pace is that of those after it
            self._begun = time.monotonic()
        if self._done < self._total and time.monotonic() - self._last >= _BETWEEN_LINES:
            self._tell()

    def set_postfix_str(self, text: str) -> None:
        """The newest report."""
        first, self._text = not self._text, f", {text}"
        if first or self._done == self._total:
            self._tell()

    def close(self) -> None:
        """All lines are whole already."""

    def _tell(self) -> None:
        self._last = time.monotonic()
        steps, left = self._done - self._initial - 1, ""
        if steps > 0 and self._done < self._total:
            left = f", {duration((self._last - self._begun) / steps * (self._total - self._done))} left"
        self._write(f"training: step {self._done} of {self._total}{self._text}{left}")

    def _write(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class Logger:
    """Progress with loss, images/s and time left: a bar on a terminal, else lines.

    A report is one JSON line in WORKDIR/metrics.jsonl, and the same numbers as scalars in
    WORKDIR/tensorboard/, with pictures.

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
        if self._active and not sys.stderr.isatty():
            self._bar = Lines(steps, first_step, sys.stderr)
        else:
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
