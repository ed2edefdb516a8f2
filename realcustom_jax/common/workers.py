"""Ends worker processes when their parent process ends, even if it is killed."""

import multiprocessing
import multiprocessing.process
import os
import threading

_POLL_SECONDS = 0.5  # between two checks of the parent


def end_with_parent(*_: object) -> None:
    """Make this worker process end with its parent. Call it first in the worker.

    Arguments are ignored: pools pass some to their initializer.
    """
    # A killed parent does not end its workers: they would wait for it for minutes or forever. Linux can send
    # a signal (PR_SET_PDEATHSIG), but when the *thread* ends that started the worker, and in Grain that
    # thread ends early. So a thread here waits until the parent's end of a pipe is closed.
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_exit, args=(parent,), daemon=True).start()


def _wait_and_exit(parent: multiprocessing.process.BaseProcess) -> None:
    # Another process forked by the parent may hold the pipe open. The parent's id changes even then.
    while parent.is_alive() and os.getppid() == parent.pid:
        parent.join(_POLL_SECONDS)
    os._exit(1)  # without cleanup: nobody needs the results of this worker
