"""Finding the parts of a model on disk and reading their configs."""

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import exists, reading
from realcustom_jax.common.rules import shown
from realcustom_jax.models.family import IMAGE, TEXT, Models, unet_shapes
from realcustom_jax.models.unet import UNet
from realcustom_jax.weights.bases import TOKENIZERS, Base, folder_base, with_tensors, with_unet
from realcustom_jax.weights.hub import check_path, find_folder
from realcustom_jax.weights.keys import flatten, torch_key
from realcustom_jax.weights.official import Added, open_added
from realcustom_jax.weights.original import default_tokenizers, is_original, original_base
from realcustom_jax.weights.tensors import open_tensors
from realcustom_jax.weights.towers import read_tower

_LOG = logging.getLogger(__name__)

# The model that ships with the package.
TOYBOX = Path(__file__).parents[1] / "toybox" / "model"

# Folder of the recogniser that finds words; a model need not have one.
MATCHER = "matcher"

COMPONENTS = ("unet", "vae", *TEXT, *IMAGE, "realcustom")


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of a model on disk.

    Attributes:
      base: the text-to-image model.
      towers: folders of the image towers, at most two.
      added: the weights that RealCustom adds, or None.
      defaults: folder with `sampling.json`, or None.
      matcher: folder of the recogniser that finds words, or None.
    """

    base: Base
    towers: tuple[Path, ...]
    added: Added | None
    defaults: Path | None
    matcher: Path | None = None


@reading()
def find_parts(
    path: str | Path,
    realcustom: str | Path | None = None,
    image_encoders: Sequence[str | Path] = (),
    tokenizers: Sequence[str | Path] = (),
    revision: str | None = None,
    unet: str | Path | None = None,
) -> Parts:
    """Find the parts of a model and read their configs; see `load` for the arguments.

    Raises:
      UserError: a path does not exist, a config is missing or not supported, or there are too many towers.
    """
    # A string is a sequence too: "ab" would be taken for the folders "a" and "b".
    if isinstance(image_encoders, (str, Path)) or not isinstance(image_encoders, Sequence):
        raise UserError("image_encoders must be a list of one or two folders, also of one")
    if len(image_encoders) > len(IMAGE):
        raise UserError(f"there can be {len(IMAGE)} image encoders, not {len(image_encoders)}")
    if realcustom is not None:
        check_path("realcustom", realcustom)
    towers = tuple(find_folder(one) for one in image_encoders)
    folder = _model_folder(path, revision)
    if folder.is_file():
        base, own = _one_file(folder, tokenizers), {}
    else:
        if tokenizers:
            raise UserError(
                f"{str(folder)!r} has its own tokenizers; others go only with a one-file checkpoint"
            )
        optional = {
            name for name in (*IMAGE, TEXT[1], TOKENIZERS[1], "realcustom") if not (folder / name).is_dir()
        }
        names = [name for name in (*COMPONENTS, *TOKENIZERS, "scheduler") if name not in optional]
        own = {name: folder / name for name in names}
        base = folder_base(own)
    # An explicit argument wins over the folder's own part, here and below.
    added_path = Path(realcustom) if realcustom else own.get("realcustom")
    # Lazy, because the shapes of SDXL's UNet take seconds, and only a file needs them.
    base_keys = functools.cache(lambda: set(map(torch_key, flatten(unet_shapes(UNet(base.unet), 1, 0, 0)))))
    added = open_added(added_path, base_keys) if added_path else None
    if unet is not None:
        base = with_unet(base, find_folder(unet, ("", "unet")))
    elif added and added.base:
        _LOG.warning("%s also holds a base UNet, which is used instead of the one of %s", added_path, folder)
        base = with_tensors(base, added.base)
    towers = towers or tuple(own[name] for name in IMAGE if name in own)
    defaults = added_path if added_path and added_path.is_dir() else None
    return Parts(base, towers, added, defaults, matcher if (matcher := folder / MATCHER).is_dir() else None)


def _model_folder(path: str | Path, revision: str | None) -> Path:
    """The folder or file of a model, downloaded if `path` is a hub id."""
    shipped = str(path) == "toybox"
    if not (revision is None or isinstance(revision, str)):
        raise UserError(f"revision must be the name of a branch, tag or commit, not {shown(revision)}")
    if revision is not None and (shipped or exists(path)):
        raise UserError(f"revision {revision!r} needs a hub repository, but {str(path)!r} is not on the hub")
    return TOYBOX if shipped else find_folder(path, (*COMPONENTS, MATCHER), revision)


def _one_file(path: Path, tokenizers: Sequence[str | Path]) -> Base:
    """The base model in an original one-file checkpoint."""
    tensors = open_tensors(path)
    if not is_original(tensors):
        raise UserError(
            f"{str(path)!r} is neither a model folder nor an original checkpoint of SD1.5 or SDXL"
        )
    names = tokenizers or default_tokenizers(tensors)
    return original_base(tensors, [find_folder(name, ()) for name in names])


@reading()
def models_of(parts: Parts, dtype: Any) -> Models:
    """The modules of a model, computing in `dtype`."""
    towers = [dataclasses.replace(read_tower(folder), position_prefix=True) for folder in parts.towers]
    # RealCustom++ runs both towers on the same image: DINOv2, trained at 518 pixels, at SigLIP's 384.
    towers = [dataclasses.replace(tower, image_size=towers[0].image_size) for tower in towers]
    base, added = parts.base, parts.added
    return Models(base.unet, base.vae, base.texts, tuple(towers), added.config if added else None, dtype)
