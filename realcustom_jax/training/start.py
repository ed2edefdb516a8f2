"""Where a run starts: its data set, and its model, from a folder or afresh."""

import dataclasses
import re
import tempfile
from pathlib import Path

import filelock
from ml_collections import ConfigDict

from realcustom_jax import pipeline
from realcustom_jax.data.image_text import Split, open_split
from realcustom_jax.data.tokenize import load_tokenizer
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.models.config import RealCustomConfig, from_mapping
from realcustom_jax.models.family import Models
from realcustom_jax.models.init import init_params
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.toybox.dataset import write_dataset
from realcustom_jax.toybox.tokenizer import train_tokenizer
from realcustom_jax.weights.keys import flatten, unflatten

# Kernels that start at 0: customization begins as the base model, the base as a sum of skips.
_ADDED_ZEROS = r"to_v_vision/kernel$"
_BASE_ZEROS = r"^unet/(conv_out|.*(conv2|proj_out))/kernel$"
_TOKENIZER_CAPTIONS = 5000


def open_data(path: str, split: str, toybox_examples: int, cache: Path) -> Split:
    """The training split; "toybox" is drawn into `cache` when first needed, by one process."""
    if path != "toybox":
        return open_split(path, split)
    folder = cache / f"toybox-{toybox_examples}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        if not folder.exists():
            write_dataset(folder, train=toybox_examples)
    return open_split(folder, split)


def starting_pipeline(config: ConfigDict, data: Split) -> Pipeline:
    """The model that a run begins with.

    From `config.init_from` where given, with `config.model.realcustom` added if it has none and parameters
    that `config.fresh` finds initialised again; else fresh, of the shapes in `config.model`, with a tokenizer
    learned from the captions.
    """
    if config.init_from:
        return _from_folder(config)
    with tempfile.TemporaryDirectory() as folder:
        captions = (data[i]["caption"] for i in range(min(len(data), _TOKENIZER_CAPTIONS)))
        train_tokenizer(captions, folder)
        tokenizer = load_tokenizer(folder)
    configs = config.model.to_dict()
    configs["text_encoder"] |= {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    models = Models.from_configs(configs)
    params = init_params(models.param_shapes(), config.seed, f"{_BASE_ZEROS}|{_ADDED_ZEROS}")
    return Pipeline(models, from_mapping(ScheduleConfig, configs["scheduler"]), params, tokenizer)


def _from_folder(config: ConfigDict) -> Pipeline:
    pipe = pipeline.load(config.init_from)
    added = config.model.get("realcustom")
    if added is None:
        return pipe
    models = dataclasses.replace(pipe.models, realcustom=from_mapping(RealCustomConfig, added.to_dict()))
    fresh = flatten(init_params(models.param_shapes(), config.seed, _ADDED_ZEROS))
    loaded = flatten(pipe.params)
    keep = lambda path: path in loaded and not (config.fresh and re.search(config.fresh, path))  # noqa: E731
    params = unflatten({path: loaded[path] if keep(path) else value for path, value in fresh.items()})
    return pipe.replace(models=models, params=params)
