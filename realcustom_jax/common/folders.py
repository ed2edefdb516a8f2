"""A folder that is there as a whole or not at all, whoever else writes to the same place."""

import contextlib
import fcntl
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from realcustom_jax.common.errors import UserError


@contextlib.contextmanager
def replacing_folder(path: Path, name: str) -> Iterator[Path]:
    """A folder beside `path` to write to; at the end it takes the place of `path`, which is absent or empty.

    Every writer has its own: for "OUT" a folder such as ".OUT.incomplete-1a2b3c4d", and a lock file beside
    it. A killed writer leaves both, and the next one removes them. Of two that write at once, the first to
    finish is kept.

    Raises:
      UserError: it cannot be written, a file that it is made of cannot be read, or another writer was first.
        The sentence calls the folder `name`.
    """
    with contextlib.ExitStack() as stack:
        with _one_sentence(path, name):
            target = _real_place(path, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(target)
            half = target.with_name(f".{target.name}.incomplete-{uuid.uuid4().hex[:8]}")
            stack.enter_context(_lock(half))
            stack.callback(shutil.rmtree, half, ignore_errors=True)
            half.mkdir()
        with _one_sentence(path, name, half):
            yield half
        with _one_sentence(path, name):
            if target.is_dir():
                if any(target.iterdir()):
                    raise UserError(
                        f"another run has meanwhile written {name} {str(path)!r}: that is kept, and not what "
                        "this run made"
                    )
                target.rmdir()
            half.rename(target)


def _real_place(path: Path, name: str) -> Path:
    """Where the folder will be: at the end of a link, which may lead to a larger disk.

    Raises:
      UserError: a folder there cannot be replaced.
    """
    target = Path(os.path.realpath(path))
    if os.path.ismount(target) or target == Path.cwd():
        what = "the current folder" if target == Path.cwd() else "where a disk is mounted"
        raise UserError(f"{name} {str(path)!r} is {what}, which cannot be replaced: give one inside it")
    return target


@contextlib.contextmanager
def _one_sentence(path: Path, name: str, half: Path | None = None) -> Iterator[None]:
    """Turns an `OSError` into a `UserError`.

    Where `half` is given, one of a file outside it is told as of reading; sentences name the folder's later
    place.
    """
    try:
        yield
    except UserError as error:
        if half and str(half) in str(error):
            raise UserError(str(error).replace(str(half), str(path))) from None
        raise
    except OSError as error:
        reason = error.strerror or error
        if half and error.filename is not None and not Path(str(error.filename)).is_relative_to(half):
            raise UserError(f"{error.filename} cannot be read: {reason}") from None
        raise UserError(f"{name} {str(path)!r} cannot be written: {reason}") from None


@contextlib.contextmanager
def _lock(half: Path) -> Iterator[None]:
    """A locked file beside the folder. However this process ends, the system takes the lock back."""
    path = half.with_name(f"{half.name}.lock")
    with open(path, "wb") as file:
        # On a file system without locks, nothing that is left is removed.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def _remove_abandoned(target: Path) -> None:
    """Remove the folders of writers of `target` whose processes are gone: their locks can be had."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.incomplete-*.lock"):
        with contextlib.suppress(OSError), open(path, "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink()
