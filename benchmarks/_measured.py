"""Runs a module like `python -m` and reports its compile time: `_measured.py REPORT MODULE ARGS`.

REPORT is the JSON file to write. MODULE may be a .py file with several phases; its function `measure` adds
the figures of each phase to the report.
"""

import atexit
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import jax.monitoring

_COMPILE = ("/jax/core/compile/backend_compile_duration",)


class CompileClock:
    """Counts the seconds that XLA compiles, or loads a compiled program, in this process."""

    def __init__(self, on_program: Callable[[], None] = lambda: None) -> None:
        """Start counting; calls `on_program` after each program."""
        self.seconds, self._on_program = 0.0, on_program
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def _on_event(self, event: str, seconds: float, **_: object) -> None:
        if event in _COMPILE:
            self.seconds += seconds
            self._on_program()


def main() -> None:
    report, module, *arguments = sys.argv[1:]
    phases: dict[str, dict[str, float]] = {}

    def write() -> None:
        Path(report).write_text(json.dumps({"compile_seconds": clock.seconds, "phases": phases}))

    # Also write after each program, because a killed phase does not reach its exit handler.
    clock = CompileClock(write)
    atexit.register(write)
    sys.argv = [module, *arguments]
    if module.endswith(".py"):
        sys.path.insert(0, str(Path(module).parent))
        runpy.run_path(module)["measure"](phases, clock)
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
