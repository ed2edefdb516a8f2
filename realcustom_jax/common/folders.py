"""Atomic folder writes, safe against other writers of the same folder."""

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
    """Context manager for an atomic folder write.

    It yields a temporary folder, and renames it to `path` at the end.

    Each writer has its own temporary folder, such as ".OUT.incomplete-1a2b3c4d" for "OUT", and a lock file
    beside it. A killed writer leaves both behind; the next writer removes them. If two writers run at the
    same time, the first to finish wins.

    Args:
      path: the folder to write; absent or empty.
      name: name of the folder in errors.

    Raises:
      UserError: if the folder cannot be written, if an input file cannot be read, or if another writer
        finished first.
    """
    with contextlib.ExitStack() as stack:
        with _as_user_errors(path, name):
            target = _link_target(path, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(target)
            # In the parent folder, because a rename is atomic only within a file system.
            temporary = target.with_name(f".{target.name}.incomplete-{uuid.uuid4().hex[:8]}")
            # The lock is taken before the folder exists, so another writer never sees it unlocked.
            stack.enter_context(_lock(temporary))
            stack.callback(shutil.rmtree, temporary, ignore_errors=True)
            temporary.mkdir()
        with _as_user_errors(path, name, temporary):
            yield temporary
        with _as_user_errors(path, name):
            if target.is_dir():
                if any(target.iterdir()):
                    raise UserError(
                        f"another run has meanwhile written {name} {str(path)!r}: its folder is kept, and "
                        "the result of this run is discarded"
                    )
                target.rmdir()
            temporary.rename(target)


def _link_target(path: Path, name: str) -> Path:
    """The folder that `path` leads to, with links resolved: a link may lead to a larger disk.

    Raises:
      UserError: if a folder cannot be renamed to that path.
    """
    target = Path(os.path.realpath(path))
    if os.path.ismount(target) or target == Path.cwd():
        kind = "the current folder" if target == Path.cwd() else "the mount point of a disk"
        raise UserError(f"{name} {str(path)!r} is {kind}, which cannot be replaced: give a folder inside it")
    return target


@contextlib.contextmanager
def _as_user_errors(path: Path, name: str, temporary: Path | None = None) -> Iterator[None]:
    """Turn an `OSError` into a `UserError`.

    Args:
      path: the folder that is written.
      name: name of the folder in errors.
      temporary: the temporary folder. Errors name `path` instead of it, and an error for a file outside it is
        reported as a read error.
    """
    try:
        yield
    except UserError as error:
        # The user does not know the temporary folder.
        if temporary and str(temporary) in str(error):
            raise UserError(str(error).replace(str(temporary), str(path))) from None
        raise
    except OSError as error:
        reason = error.strerror or error
        file = error.filename
        if temporary and file is not None and not Path(str(file)).is_relative_to(temporary):
            raise UserError(f"{error.filename} cannot be read: {reason}") from None
        raise UserError(f"{name} {str(path)!r} cannot be written: {reason}") from None


@contextlib.contextmanager
def _lock(temporary: Path) -> Iterator[None]:
    """Hold a lock on a file beside the folder; the system releases it when the process ends."""
    path = temporary.with_name(f"{temporary.name}.lock")
    with open(path, "wb") as file:
        # A file system without locks raises. Abandoned folders then stay, because `flock` below fails too.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def _remove_abandoned(target: Path) -> None:
    """Remove temporary folders of `target` whose writers have ended: their locks are free."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.incomplete-*.lock"):
        with contextlib.suppress(OSError), open(path, "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink()
