"""Reports of a run: progress, `metrics.jsonl`, TensorBoard scalars, speed and memory, profiles."""

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


class Meter:
    """Measures speed, input wait and memory between two readings.

    Args:
      batch_size: images per step, over all processes.
    """

    def __init__(self, batch_size: int):
        self._batch_size, self._peak_share = batch_size, None
        self._start, self._steps, self._waited = time.perf_counter(), 0, 0.0

    def count(self, flops: Callable[[], float]) -> None:
        """Report utilisation too, if the peak of the devices is known.

        Args:
          flops: returns the operations of one step over all devices.
        """
        # `flops` has to trace the step, so it is called only where its result is used.
        chip = chip_of(jax.local_devices()[0].device_kind)
        if chip:
            self._peak_share = flops() / chip.peak / jax.device_count()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Context manager around taking a batch: measures how long the step waits for its data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    @contextmanager
    def aside(self, pending: Any) -> Iterator[None]:
        """Context manager around work that is not training, such as samples: its time does not count."""
        # Steps run asynchronously: without this wait their time would be counted as that of the other work.
        jax.block_until_ready(pending)
        started = time.perf_counter()
        yield
        self._start += time.perf_counter() - started

    def step(self) -> None:
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Rates since the last reading. Call it when the steps are finished, not only dispatched.

        Returns:
          images_per_second, step_seconds and input_wait (share of the time); where the devices report it,
          also utilisation (share of the peak operations) and memory_gib (peak of the first device).
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


_BETWEEN_LINES = 60.0  # seconds


class Lines:
    """Progress as plain lines, for a log file, with the methods of `tqdm`.

    A line has the step, the newest report and the time left. It is printed at the first report, then once a
    minute, and at the last step.
    """

    # A redrawn bar would fill a log file with one endless line.

    def __init__(self, total: int, initial: int, stream: TextIO):
        self._total, self._initial, self._done, self._stream = total, initial, initial, stream
        self._text, self._last = "", time.monotonic()
        self._begun = self._last
        self._write(f"training: {initial} of {total} steps are done, the next one compiles first")

    def update(self) -> None:
        """Count one more step."""
        self._done += 1
        if (
            self._done == self._initial + 1
        ):  # this step includes compilation, so the pace is measured after it
            self._begun = time.monotonic()
        if self._done < self._total and time.monotonic() - self._last >= _BETWEEN_LINES:
            self._print()

    def set_postfix_str(self, text: str) -> None:
        """Set the newest report, which the next lines repeat."""
        first, self._text = not self._text, f", {text}"
        if first or self._done == self._total:
            self._print()

    def close(self) -> None:
        """Do nothing: every line is complete already."""

    def _print(self) -> None:
        self._last = time.monotonic()
        steps, left = self._done - self._initial - 1, ""
        if steps > 0 and self._done < self._total:
            left = f", {duration((self._last - self._begun) / steps * (self._total - self._done))} left"
        self._write(f"training: step {self._done} of {self._total}{self._text}{left}")

    def _write(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class Logger:
    """Writes the reports of a run; only the first process writes.

    Progress goes to the terminal as a bar, or to a log file as lines. Metrics go to WORKDIR/metrics.jsonl,
    one JSON object per line, and with pictures to WORKDIR/tensorboard/.
    """

    def __init__(self, workdir: Path, first_step: int, steps: int):
        self._active = jax.process_index() == 0
        self._file = None
        if self._active:
            # A resumed run repeats the steps after its checkpoint, so their earlier lines are removed.
            _drop_after(workdir / "metrics.jsonl", first_step)
            self._file = (workdir / "metrics.jsonl").open("a")
            # TensorBoard itself hides the repeated steps, from `purge_step` on.
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
        """Fetch a step's metrics from the device and write them, with the rates of the meter."""
        # Fetching waits for the step, so the meter is read after it.
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
            self._file.flush()  # a killed run must not lose its newest lines

    def close(self) -> None:
        self._bar.close()
        if self._file:
            self._file.close()
            self._board.close()


def _drop_after(path: Path, step: int) -> None:
    """Keep the lines of a metrics file up to a step. The final hash goes too: the run will write it again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
            earlier = record["step"] <= step
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # an incomplete line, written when the process was killed
        if earlier and "sha256" not in record:
            kept.append(f"{line}\n")
    with replacing(path) as temporary:
        temporary.write_text("".join(kept))


def parse_window(text: str) -> tuple[int, int]:
    """Parse "FIRST:LAST" into two steps.

    Raises:
      UserError: for any other text.
    """
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
        raise UserError(f"--profile {text!r} is not FIRST:LAST, two steps such as 10:15")
    return int(first), int(last)


class Profile:
    """Profiles the steps of a window, if one is given, into a folder that TensorBoard reads."""

    def __init__(self, window: tuple[int, int] | None, folder: Path):
        self._window, self._folder, self._running = window, folder, False

    def before(self, step: int) -> None:
        if self._window and step == self._window[0]:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, result: Any) -> None:
        """Stop after the last step of the window; `result` is anything that this step returned."""
        if self._running and self._window and step >= self._window[1]:
            # The step was only dispatched: without waiting, the trace would end before it.
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
