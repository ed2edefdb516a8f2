"""Model folders by path or by the id of a repository on the Hugging Face hub."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from realcustom_jax.errors import UserError, shown
from realcustom_jax.files import exists

_ID = re.compile(r"[\w.-]+/[\w.-]+")
# What loading reads. Weights are chosen by name: of a repository with several forms only one is downloaded.
_CONFIGS = ("*.json", "*.txt", "tokenizer*", "*.model")
_WEIGHTS = ("*.safetensors", "*.msgpack", "*.bin")


def find_folder(name: str | Path, components: Sequence[str] = ("",), revision: str | None = None) -> Path:
    """A local folder: the path itself where there is one, else the download of a hub repository.

    Args:
      name: a path, or an id such as "stabilityai/stable-diffusion-xl-base-1.0".
      components: subfolders whose weights are needed; "" is the repository's own folder. Those that it
        does not have are left out.
      revision: branch, tag or commit on the hub.

    Raises:
      UserError: when it is neither, or cannot be downloaded.
    """
    check_path("a model or a part of one", name)
    path = Path(name)
    if exists(path):
        return path
    if not _ID.fullmatch(str(name)):
        shipped = "; the shipped model is called 'toybox'" if "unet" in components else ""
        raise UserError(f"there is no model folder {str(name)!r}, and it is no hub id{shipped}")
    try:
        files = _files(str(name), revision)
        patterns = [*_CONFIGS, *_needed(files, components)]
        return Path(huggingface_hub.snapshot_download(str(name), revision=revision, allow_patterns=patterns))
    except LocalEntryNotFoundError:
        raise UserError(
            f"{str(name)!r} is neither a folder nor in the local hub cache, and the hub cannot be reached"
        ) from None
    except HFValidationError as error:
        raise UserError(f"{str(name)!r} is neither a folder nor a hub id: {_one_line(error)}") from None
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"the hub does not give {str(name)!r}: {_one_line(error)}") from None


def check_path(name: str, value: Any) -> None:
    """Raises UserError for what is neither text nor a path; `name` is what it should give the place of."""
    if not isinstance(value, (str, Path)) or value == "":
        raise UserError(f"{name} must be a path or a hub id, not {shown(value)}")


def _files(name: str, revision: str | None) -> list[str] | None:
    """The repository's files, or None when the hub cannot be asked: the cache must do then."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return None
    try:
        return huggingface_hub.list_repo_files(name, revision=revision)
    except (HfHubHTTPError, HFValidationError):
        raise
    except Exception:  # no connection: of which kind depends on the client's version
        return None


def _needed(files: list[str] | None, components: Sequence[str]) -> list[str]:
    """Patterns of the weights to download: of every component the most welcome kind that there is."""
    if files is None:
        return list(_WEIGHTS)
    patterns = []
    for component in components:
        folder = f"{component}/" if component else ""
        own = [name for name in files if name.startswith(folder) and "/" not in name[len(folder) :]]
        full = [name for name in own if not re.search(r"\.(fp16|bf16|non_ema)[.-]", name)]
        for pattern in _WEIGHTS:
            ending = pattern[1:]
            # Shards have no fixed name but the component's stem, other checkpoints lie beside them.
            chosen = [n for n in full or own if n.endswith(ending)] or [n for n in own if n.endswith(ending)]
            if chosen:
                patterns += chosen
                break
    return patterns


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
