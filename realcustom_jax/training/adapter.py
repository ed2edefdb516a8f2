"""Takes what a run trained out of one of its checkpoints: the adapter alone, or the whole model."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from realcustom_jax.cli import cache_dir
from realcustom_jax.errors import UserError
from realcustom_jax.models.config import RealCustomConfig, from_mapping
from realcustom_jax.pipeline import TOYBOX
from realcustom_jax.training.batches import make_training_loader
from realcustom_jax.training.card import PUBLISHED_FILE, write_card
from realcustom_jax.training.config import check_config
from realcustom_jax.training.export import write_model
from realcustom_jax.training.saved import Saved, read_saved
from realcustom_jax.training.start import open_data, open_start, starting_models
from realcustom_jax.weights.added import ADDED
from realcustom_jax.weights.components import read_config, weights_name, write_json
from realcustom_jax.weights.exports import write_added, write_published
from realcustom_jax.weights.keys import flatten

FORMS = ("realcustom", "published", "diffusers")


class Choice(NamedTuple):
    """Which parameters of a run.

    Attributes:
      step: of the checkpoint; None for the newest.
      averaged: the average of the parameters over the steps, not their last values.
    """

    step: int | None = None
    averaged: bool = True


def export_checkpoint(workdir: Path, choice: Choice, form: str, folder: Path, dtype: str) -> tuple[int, str]:
    """Write what a run trained, with a model card.

    Args:
      workdir: of the run, which may go on meanwhile.
      choice: of the parameters.
      form: one of `FORMS`.
      folder: to write; it is there, and empty.
      dtype: of the weights.

    Returns:
      the checkpoint's step, and what of the trained parameters the form leaves out, as a sentence or "".

    Raises:
      UserError: there is no such checkpoint, or the form cannot hold what the run trained.
    """
    file = left = ""
    if form == "diffusers":
        saved = _read(workdir, choice, "")
        _write_whole(saved, folder, dtype)
    else:
        saved = _read(workdir, choice, r"^unet/" if form == "published" else ADDED)
        config, base, added = _split(saved, workdir)
        if form == "published":
            file = PUBLISHED_FILE
            write_published(folder / file, config, base | added, dtype)
        else:
            base, file = {}, weights_name("realcustom")
            write_added(folder, config, added, dtype)
            write_json(folder / "sampling.json", _sampling(saved.config.init_from))
        left = _left_out(saved, len(saved.params) - len(base) - len(added))
    write_card(folder, saved, choice.averaged, file, left)
    return saved.step, left


def _read(workdir: Path, choice: Choice, within: str) -> Saved:
    """Those trained parameters that a regex finds."""
    saved = read_saved(workdir, *choice, lambda path: bool(re.search(within, path)))
    try:
        check_config(saved.config)
    except UserError as error:
        raise UserError(f"the config in {workdir / 'checkpoints' / str(saved.step)}: {error}") from None
    return saved


def _split(saved: Saved, workdir: Path) -> tuple[RealCustomConfig, dict[str, Any], dict[str, Any]]:
    """The adapter's config, the base UNet where all of it trained, and what RealCustom adds.

    Paths are those within the UNet.

    Raises:
      UserError: the run trains nothing, or only a part, of what RealCustom adds.
    """
    config = saved.config
    unet = {path.removeprefix("unet/"): value for path, value in saved.params.items()}
    added = {path: value for path, value in unet.items() if re.search(ADDED, path)}
    if not added:
        raise UserError(
            f"the run in {str(workdir)!r} trains nothing that RealCustom adds to a model (its stage is "
            f"{config.stage}): there is no adapter; --form diffusers writes the whole model"
        )
    base = {path: value for path, value in unet.items() if path not in added}
    given = config.get("model", {}).get("realcustom")
    # Where all is trained that RealCustom adds, the model that the run began with need not be there.
    if base or ADDED not in config.trainable or not given:
        models = starting_models(config)
        given = models.realcustom
        wanted = flatten(models.component_shapes("unet")).keys()
        missing = sorted(path for path in wanted - added.keys() if re.search(ADDED, path))
        if missing:
            raise UserError(
                f"the run in {str(workdir)!r} trains only a part of what RealCustom adds, not {missing[0]}: "
                "--form diffusers writes the whole model"
            )
        base = base if wanted <= unet.keys() else {}
    else:
        given = from_mapping(RealCustomConfig, given.to_dict())
    return given, base, added


def _sampling(init_from: str) -> dict[str, Any]:
    """The sampling options of the model that the run began with, where it is there and has some."""
    if not init_from:
        return {}
    folder = (TOYBOX if init_from == "toybox" else Path(init_from)) / "realcustom"
    return read_config(folder, "sampling.json") if (folder / "sampling.json").is_file() else {}


def _left_out(saved: Saved, unwritten: int) -> str:
    """A sentence about trained parameters that are not in the result."""
    count = len(saved.others) + unwritten
    if not count:
        return ""
    return (
        f"The run also trained {count} parameters of the model itself, which are not here; "
        "--form diffusers writes all."
    )


def _write_whole(saved: Saved, folder: Path, dtype: str) -> None:
    config, data, loader = saved.config, None, None
    vae = config.stage == "vae"  # whose latents are measured once more
    if vae or not config.init_from:
        data = open_data(config.data, cache_dir())
    if vae:
        config.data.workers = 0
        loader = make_training_loader(config, open_start(config, data), data, {})
        loader.set_state(saved.loader)
    write_model(config, saved.params, data, loader, folder, dtype)
    if loader:
        loader.close()
