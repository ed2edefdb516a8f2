"""Worker processes that end with their parent, however it ends."""

import multiprocessing
import os
import threading

_SECONDS = 0.5  # between looks at who the parent is


def end_with_parent(*_: object) -> None:
    """To be called first in a worker process; what a pool passes to its initializer is ignored.

    A parent that is killed ends none of its workers: each would wait for it for minutes, or for ever. Linux
    can send a signal then (PR_SET_PDEATHSIG), but at the end of the *thread* that started the worker, which
    in Grain comes early. So a thread waits for the parent's end of a pipe to close.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_exit, args=(parent,), daemon=True).start()


def _wait_and_exit(parent: multiprocessing.process.BaseProcess) -> None:
    # A process that the parent forked may hold the pipe open; the parent's number changes all the same.
    while parent.is_alive() and os.getppid() == parent.pid:
        parent.join(_SECONDS)
    os._exit(1)  # nobody is left to be told why
