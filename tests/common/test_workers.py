"""Worker processes end soon after their parent was killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LOADER = """
import os
import numpy as np
from realcustom_jax.data.loader import make_loader


def transform(example, rng):
    return {"pid": np.int64(os.getpid())}


if __name__ == "__main__":
    loader = make_loader([{}] * 4, transform, batch_size=1, seed=0, num_workers=2)
    pids = {int(next(loader)["pid"][0]) for _ in range(8)}
    # The Grain thread that starts the workers ends long before the loader; batches must still come.
    import threading, time
    time.sleep(1.0)
    pids |= {int(next(loader)["pid"][0]) for _ in range(8)}
    print(*pids, flush=True)
    threading.Event().wait()
"""

# A forked child keeps all pipes of its parent open and outlives it.
FORKED = LOADER.replace("    print(*pids", "    os.fork() or time.sleep(5) or os._exit(0)\n    print(*pids")

POOL = """
import multiprocessing, os, threading, time
from concurrent.futures import ProcessPoolExecutor
from realcustom_jax.common.workers import end_with_parent


def pid(_):
    time.sleep(0.2)
    return os.getpid()


if __name__ == "__main__":
    pool = ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), end_with_parent)
    print(*set(pool.map(pid, range(8))), flush=True)
    threading.Event().wait()
"""


def is_running(pid: int) -> bool:
    """False also for a zombie process."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(state) and not state.startswith("Z")


@pytest.mark.parametrize("script", [LOADER, FORKED, POOL], ids=["loader", "forked loader", "pool"])
def test_workers_end_when_parent_is_killed(tmp_path, script):
    path = tmp_path / "parent.py"
    path.write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, text=True, env=environment)
    pids = list(map(int, parent.stdout.readline().split()))
    assert len(pids) == 2 and parent.pid not in pids and all(map(is_running, pids))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 2.0
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, pids))
