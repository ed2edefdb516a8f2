"""What a run reports: progress, `metrics.jsonl`, TensorBoard scalars, speed and memory, profiles."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from realcustom_jax.common.chips import chip_of
from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import replacing
from realcustom_jax.common.progress import duration


# Seconds between two lines of a log.
class Meter:
    """Rates since they were last asked for.

    Args:
      batch_size: images of a step, over all processes.
    """

    def __init__(self, batch_size: int):
        self._batch_size, self._peak_share = batch_size, None
        self._start, self._steps, self._waited = time.perf_counter(), 0, 0.0

    def count(self, flops: Callable[[], float]) -> None:
        """Have utilisation told too, where the devices' peak is known.

        Args:
          flops: gives the operations of a step over all devices; called only then, as it must trace the step.
        """
        chip = chip_of(jax.local_devices()[0].device_kind)
        if chip:
            self._peak_share = flops() / chip.peak / jax.device_count()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around taking a batch from the loader: how long the step had to wait for its data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    @contextmanager
    def aside(self, pending: Any) -> Iterator[None]:
        """Around what is not training: its time does not count, but that of the `pending` arrays does."""
        jax.block_until_ready(pending)
        started = time.perf_counter()
        yield
        self._start += time.perf_counter() - started

    def step(self) -> None:
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Rates of the steps since the last reading; to be asked once they are done.

        Returns:
          images_per_second, step_seconds, input_wait (share of the time), and where the devices tell:
          utilisation (share of the peak operations of the TPUs) and memory_gib (most ever used of the first).
        """
        now = time.perf_counter()
        seconds, steps = max(now - self._start, 1e-9), max(self._steps, 1)
        values = {
            "images_per_second": self._steps * self._batch_size / seconds,
            "step_seconds": seconds / steps,
            "input_wait": min(self._waited / seconds, 1.0),
        }
        if self._peak_share:
            values["utilisation"] = self._peak_share * steps / seconds
        used = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        if used:
            values["memory_gib"] = used / 2**30
        self._start, self._steps, self._waited = now, 0, 0.0
        return values


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


def parse_window(text: str) -> tuple[int, int]:
    """ "10:15" → the first and the last step.

    Raises:
      UserError: for anything else.
    """
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
        raise UserError(f"--profile {text!r} is not FIRST:LAST, two steps such as 10:15")
    return int(first), int(last)


class Profile:
    """Records the steps of a window, if there is one, into a folder."""

    def __init__(self, window: tuple[int, int] | None, folder: Path):
        self._window, self._folder, self._running = window, folder, False

    def before(self, step: int) -> None:
        if self._window and step == self._window[0]:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, result: Any) -> None:
        """To be called with what the step gave, so that the last one is recorded to its end."""
        if self._running and step >= self._window[1]:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
