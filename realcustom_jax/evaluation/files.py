"""Files that are there as a whole or not at all, so that a run that was cut off can go on."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from realcustom_jax.errors import UserError


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a file beside the path, then move it there.

    Raises:
      UserError: when it cannot be written.
    """
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(half)
        half.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    write_whole(path, lambda half: half.write_text(text, encoding="utf-8"))


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda half: half.write_text(text, encoding="utf-8"))
