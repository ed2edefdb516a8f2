"""Model folders, given by a local path or by the id of a Hugging Face hub repository."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from realcustom_jax.common.errors import UserError, one_line
from realcustom_jax.common.files import exists
from realcustom_jax.common.rules import shown

_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Files that loading reads. A hub repository may have the same weights in several formats; one is downloaded,
# the first of this list.
_CONFIGS = ("*.json", "*.txt", "tokenizer*", "*.model")
_WEIGHTS = ("*.safetensors", "*.msgpack", "*.bin")


def find_folder(name: str | Path, components: Sequence[str] = ("",), revision: str | None = None) -> Path:
    """Find a local folder: the path itself if it exists, otherwise the download of a hub repository.

    Args:
      name: a path, or an id such as "stabilityai/stable-diffusion-xl-base-1.0".
      components: subfolders whose weights are needed; "" is the top folder. Missing ones are skipped.
      revision: branch, tag or commit on the hub.

    Raises:
      UserError: the name is neither, or the download fails.
    """
    check_path("a model or a part of one", name)
    path = Path(name)
    if exists(path):
        return path
    if not _ID.fullmatch(str(name)):
        shipped = "; the shipped model is called 'toybox'" if "unet" in components else ""
        raise UserError(f"there is no model folder {str(name)!r}, and it is not a hub id{shipped}")
    called = repr(str(name)) + (f" at revision {revision!r}" if revision else "")
    try:
        files = _files(str(name), revision)
        patterns = [*_CONFIGS, *_needed(files, components)]
        return Path(huggingface_hub.snapshot_download(str(name), revision=revision, allow_patterns=patterns))
    except LocalEntryNotFoundError:
        raise UserError(
            f"{called} is neither a folder nor in the local hub cache, and the hub cannot be reached"
        ) from None
    except HFValidationError as error:
        raise UserError(f"{str(name)!r} is neither a folder nor a hub id: {one_line(error)}") from None
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"{called} cannot be downloaded from the hub: {one_line(error)}") from None


def check_path(name: str, value: Any) -> None:
    """Raise UserError if a value is neither text nor a path; `name` names the argument."""
    if not isinstance(value, (str, Path)) or value == "":
        raise UserError(f"{name} must be a path or a hub id, not {shown(value)}")


def _files(name: str, revision: str | None) -> list[str] | None:
    """Names of the repository's files, or None if the hub cannot be reached; then the cache is used."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return None
    try:
        return huggingface_hub.list_repo_files(name, revision=revision)
    except (HfHubHTTPError, HFValidationError):
        raise
    except Exception:  # no connection; the class of this error depends on the client's version
        return None


def _needed(files: list[str] | None, components: Sequence[str]) -> list[str]:
    """Names or patterns of the weights to download: for every component the best format that exists."""
    if files is None:
        return list(_WEIGHTS)
    patterns = []
    for component in components:
        folder = f"{component}/" if component else ""
        own = [name for name in files if name.startswith(folder) and "/" not in name[len(folder) :]]
        # Full precision first; half-precision variants only where there is nothing else.
        full = [name for name in own if not re.search(r"\.(fp16|bf16|non_ema)[.-]", name)]
        for pattern in _WEIGHTS:
            ending = pattern[1:]
            # All files of the format: names of shards are not fixed, so single ones cannot be picked.
            chosen = [n for n in full or own if n.endswith(ending)] or [n for n in own if n.endswith(ending)]
            if chosen:
                patterns += chosen
                break
    return patterns
