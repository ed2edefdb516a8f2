"""Runs a module as `python -m` would, and writes how long it compiled: `measured.py REPORT MODULE ARGS`.

A .py file is a benchmark with phases of its own: its function `measure` puts their figures into the report.
"""

import atexit
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import jax.monitoring

_COMPILE = ("/jax/core/compile/backend_compile_duration",)


class Compiling:
    """Seconds that XLA compiled, or fetched a compiled program, in this process."""

    def __init__(self, heard: Callable[[], None] = lambda: None) -> None:
        """`heard` is called after each program."""
        self.seconds, self._heard = 0.0, heard
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, seconds: float, **_: object) -> None:
        if event in _COMPILE:
            self.seconds += seconds
            self._heard()


def main() -> None:
    report, module, *arguments = sys.argv[1:]
    phases: dict[str, dict[str, float]] = {}

    def write() -> None:
        Path(report).write_text(json.dumps({"compile_seconds": compiling.seconds, "phases": phases}))

    # After each program too: a phase that is killed does not come to its end.
    compiling = Compiling(write)
    atexit.register(write)
    sys.argv = [module, *arguments]
    # A benchmark that has phases of its own is given where to put them, and the clock of compiling.
    if module.endswith(".py"):
        sys.path.insert(0, str(Path(module).parent))
        runpy.run_path(module)["measure"](phases, compiling)
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
