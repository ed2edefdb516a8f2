"""Progress reports on a terminal and in a log, with a fake clock."""

import io

import pytest

from realcustom_jax.common import progress
from realcustom_jax.common.progress import Counter, Progress, counted, duration, pace


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A fake clock: the test sets the time, and timers act only when `fire` is called."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        self.timers = []
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(progress.threading, "Timer", self._timer)

    def _timer(self, seconds, write, arguments):
        self.timers.append((seconds, write, arguments))
        return self

    def start(self):
        pass

    def cancel(self):
        pass

    def fire(self, which=-1):
        _, write, arguments = self.timers[which]
        write(*arguments)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_log_gets_plain_lines_at_intervals(clock):
    log = io.StringIO()
    with Progress(stream=log) as report:
        report.stage("compiling")
        clock.fire()
        report.stage("sampling")
        for step in range(1, 41):
            clock.now += 1.5
            report.step(step, 40, "sampling", "step")
    lines = log.getvalue().splitlines()
    assert lines[:2] == ["compiling", "sampling: step 2 of 40, 1.5 s a step, 57 s left"]
    assert lines[-1] == "sampling: step 37 of 40, 1.5 s a step, 4 s left"  # each 10.5 s
    assert len(lines) == 2 + 35 // 7 and "\r" not in log.getvalue() and "\x1b" not in log.getvalue()


def test_terminal_progress_uses_one_line(clock):
    terminal = Terminal()
    with Progress(stream=terminal) as report:
        report.stage("sampling")
        for step in range(1, 5):
            clock.now += 3
            report.step(step, 4, "sampling", "step")
    text = terminal.getvalue()
    assert "\n" not in text and text.count("step 4 of 4") == 1 and text.endswith("\r\x1b[2K")


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_nothing_is_written_after_close(clock, stream):
    """Neither by a timer that has fired already, nor by reports of another thread."""
    log = stream()
    with Progress(stream=log) as report:
        report.stage("sampling")
        clock.now += 11
        report.step(1, 2, "sampling", "step")
    before = log.getvalue()
    assert before.count("step 1 of 2") == 1
    clock.fire()
    clock.now += 11
    report.step(2, 2, "sampling", "step")
    report.stage("decoding")
    assert log.getvalue() == before and len(clock.timers) == 1
    with Counter(2, "drawing", "word", stream=(log := stream())) as counter:
        pass
    clock.now += 11
    counter.update()
    clock.fire()
    assert log.getvalue() == ""


def test_late_timer_of_older_stage_is_ignored(clock):
    """Its timer fired before the next stage or step took the lock, and writes after it."""
    log = io.StringIO()
    with Progress(stream=log) as report:
        report.stage("compiling")
        report.stage("sampling")
        clock.fire(0)
        assert log.getvalue() == ""
        clock.now += 11
        report.step(1, 2, "sampling", "step")
        clock.fire(1)
        assert log.getvalue().splitlines() == ["sampling: step 1 of 2, 11 s a step, 11 s left"]
        report.stage("decoding")
        clock.fire(2)
    assert log.getvalue().endswith("left\ndecoding\n")


def test_quick_work_prints_nothing(clock):
    log = io.StringIO()
    with Progress(stream=log) as report:
        report.stage("sampling")
        for step in range(1, 20):
            clock.now += 0.05
            report.step(step, 20, "sampling", "step")
    with Progress(shown=False, stream=log) as report:
        report.stage("sampling")
        clock.now += 100
        report.step(1, 2, "sampling", "step")
    assert log.getvalue() == "" and len(clock.timers) == 1


def test_byte_amounts_are_shown_in_gib(clock):
    """Lines are some seconds apart; without a total, only the amount done is shown."""
    log, gib = io.StringIO(), 2**30
    with Progress(stream=log) as report:
        report.stage("reading")
        for part in range(1, 88):
            clock.now += 0.5
            report.amount(part * gib // 10, 87 * gib // 10, "reading")
        report.stage("reading")
        clock.now += 5
        report.amount(3 * gib, None, "reading")
    lines = log.getvalue().splitlines()
    assert lines[0] == "reading: 0.4 of 8.7 GiB, 42 s left"
    assert lines[-2].startswith("reading: 8.4 of 8.7 GiB, ")
    assert len(lines) == 6 and lines[-1] == "reading: 3.0 GiB"


def test_pace_excludes_steps_before_the_stage(clock):
    """Steps done before the stage began do not count."""
    log = io.StringIO()
    with Progress(stream=log) as report:
        report.stage("sampling", done=5)
        clock.now += 20
        report.step(7, 9, "sampling", "step")
    assert log.getvalue() == "sampling: step 7 of 9, 10 s a step, 20 s left\n"


def test_counter_reports_part_note_and_pace(clock, capsys):
    log = io.StringIO()
    with Counter(None, "preparing", "part", stream=log) as counter:
        counter.note("5 kept")
        clock.now += 12
        counter.update(3)
    assert log.getvalue() == "preparing (5 kept): part 3, 4 s a part\n"
    assert list(counted("abc", 3, "drawing", "word")) == ["a", "b", "c"]


def test_pace_and_duration_formats():
    assert (pace(2.345, "image"), pace(1, "step")) == ("2.35 s an image", "1 s a step")
    assert (pace(0.25, "image"), pace(0.002, "step")) == ("4 images a second", "500 steps a second")
    assert [duration(x) for x in (3, 99, 600, 9000)] == ["3 s", "99 s", "10 min", "2.5 h"]


def test_slow_stage_is_named_without_steps():
    """With the real timer."""
    log = io.StringIO()
    with Progress(patience=0.02, stream=log) as report:
        report.stage("compiling")
        progress.time.sleep(0.3)
    assert log.getvalue() == "compiling\n"
