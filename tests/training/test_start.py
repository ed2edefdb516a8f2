"""The start of a run: the drawn toybox, an initial model folder, and parameters added to it."""

import copy
import dataclasses
import functools
import re
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from realcustom_jax import pipeline
from realcustom_jax.common.errors import UserError
from realcustom_jax.data.image_text import write
from realcustom_jax.toybox.dataset import WORLD_VERSION, make_example
from realcustom_jax.training import start
from realcustom_jax.training.config import read_config
from realcustom_jax.weights.added import ADDED
from realcustom_jax.weights.keys import flatten, split_added

DATA = ConfigDict({"path": "toybox", "split": "train", "toybox_examples": 3})


@pytest.fixture
def drawings(monkeypatch) -> list[Path]:
    """The folders into which the toybox was drawn, here without worker processes."""
    folders = []

    def write_dataset(folder: Path, train: int) -> None:
        folders.append(folder)
        write(folder, {"train": (make_example(seed, held_out=False) for seed in range(train))})

    monkeypatch.setattr(start, "write_dataset", write_dataset)
    return folders


def test_toybox_is_drawn_once(drawings, tmp_path):
    for _ in range(2):
        assert len(start.open_data(DATA, tmp_path)) == 3
    assert drawings == [tmp_path / f"toybox-v{WORLD_VERSION}-3"]


def test_interrupted_drawing_is_drawn_again(drawings, tmp_path):
    """A killed process leaves TFDS's temporary folder without the data set."""
    half = tmp_path / f"toybox-v{WORLD_VERSION}-3" / "image_text" / "1.0.0.incompleteABC"
    half.mkdir(parents=True)
    (half / "image_text-train.array_record").write_text("half of it")
    assert len(start.open_data(DATA, tmp_path)) == 3
    assert not half.exists()


def test_new_world_version_makes_new_data_set(drawings, tmp_path, monkeypatch):
    start.open_data(DATA, tmp_path)
    monkeypatch.setattr(start, "WORLD_VERSION", WORLD_VERSION + 1)
    start.open_data(DATA, tmp_path)
    assert len(set(drawings)) == 2


@pytest.fixture(scope="module")
def folder(micro_pipe, tmp_path_factory) -> str:
    """A model folder with realcustom/."""
    path = tmp_path_factory.mktemp("models") / "micro"
    pipeline.save(micro_pipe, path)
    return str(path)


@pytest.fixture(scope="module")
def base(micro_pipe, tmp_path_factory) -> str:
    """The same without realcustom/."""
    path = tmp_path_factory.mktemp("models") / "base"
    models = dataclasses.replace(micro_pipe.models, realcustom=None)
    unet, _ = split_added(micro_pipe.params["unet"])
    pipeline.save(micro_pipe.replace(models=models, params={**micro_pipe.params, "unet": unet}), path)
    return str(path)


@pytest.fixture(scope="module")
def open_once():
    """Opening a model takes a second, and every test needs one."""
    return functools.cache(pipeline.open_model)


@pytest.fixture
def make_config(micro_configs, monkeypatch, open_once):
    monkeypatch.setattr(pipeline, "open_model", open_once)

    def make(init_from: str, fresh: str = "", **changes) -> ConfigDict:
        model = copy.deepcopy(micro_configs)
        model["scheduler"] = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
        for key, value in changes.items():
            part, name = key.split("__")
            model[part][name] = value
        trainable = (ADDED,)
        return ConfigDict(
            {"init_from": init_from, "fresh": fresh, "seed": 5, "model": model, "trainable": trainable}
        )

    return make


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("unet", "block_out_channels", (16, 48)),
        ("vae", "block_out_channels", (8, 32)),
        ("text_encoder", "hidden_size", 32),
        ("image_encoder", "patch_size", 8),
        ("scheduler", "prediction_type", "epsilon"),
    ],
)
def test_config_not_matching_model_folder_raises(folder, make_config, part, name, value):
    config = make_config(folder, **{f"{part}__{name}": value})
    with pytest.raises(UserError) as error:
        start.starting_pipeline(read_config(config), None)
    assert f"config.model.{part}.{name} is {value}, but the model in '{folder}' has " in str(error.value)


def test_values_that_the_run_computes_may_differ(folder, make_config, micro_pipe):
    config = make_config(
        folder, text_encoder__vocab_size=0, text_encoder__eos_token_id=0, vae__scaling_factor=1.0
    )
    pipe = start.starting_pipeline(read_config(config), None)
    assert pipe.models == micro_pipe.models
    ours, theirs = flatten(micro_pipe.params), flatten(pipe.params)
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        assert type(theirs[path]) is np.ndarray  # on the host; training places them in shards
        np.testing.assert_array_equal(theirs[path], value)


def test_changed_realcustom_without_fresh_raises(folder, make_config):
    with pytest.raises(UserError) as error:
        start.starting_pipeline(read_config(make_config(folder, realcustom__scoring_dim=12)), None)
    assert "unet/scoring/text_score/linear_1/bias (model (12,), file (8,))" in str(error.value)
    with pytest.raises(UserError, match="unexpected: unet/scoring/"):
        start.starting_pipeline(read_config(make_config(folder, realcustom__scoring=False)), None)


@pytest.mark.parametrize("kind", ["fresh", "added"])
def test_only_fresh_or_missing_parameters_are_initialised(
    folder, base, make_config, micro_pipe, monkeypatch, kind
):
    """With another width of the scoring, from a folder that has it (fresh) and from one without it."""
    init_params, made = start.init_params, []

    def record(shapes, *args):
        made.extend(flatten(shapes))
        return init_params(shapes, *args)

    monkeypatch.setattr(start, "init_params", record)
    init_from, fresh = (folder, ADDED) if kind == "fresh" else (base, "")
    pipe = start.starting_pipeline(
        read_config(make_config(init_from, fresh, realcustom__scoring_dim=12)), None
    )
    params, loaded = flatten(pipe.params), flatten(micro_pipe.params)
    added = {path for path in params if re.search(ADDED, path)}
    assert set(made) == added and 0 < len(added) < len(params)
    assert pipe.models.realcustom.scoring_dim == 12
    assert params["unet/scoring/text_score/linear_1/bias"].shape == (12,)
    for path, value in params.items():
        assert type(value) is np.ndarray
        assert path in added or np.array_equal(value, loaded[path])
    assert flatten(pipe.models.param_shapes()).keys() == params.keys()


def test_missing_trainable_image_tower_is_added(base, make_config, micro_configs, micro_pipe):
    config = make_config(base)
    del config.model.realcustom
    config.model.image_encoder_2 = {**micro_configs["image_encoder"], "num_hidden_layers": 1}
    config.trainable = ("^image_encoder_2/",)
    pipe = start.starting_pipeline(read_config(config), None)
    params, loaded = flatten(pipe.params), flatten(micro_pipe.params)
    assert params.keys() == flatten(pipe.models.param_shapes()).keys()
    added = {path for path in params if path not in loaded}
    assert added == {path for path in params if path.startswith("image_encoder_2/")}
    assert len(pipe.models.image_configs) == 2 and pipe.models.image_configs[1].num_hidden_layers == 1
    for path in params.keys() - added:
        np.testing.assert_array_equal(params[path], loaded[path])


def test_missing_frozen_image_tower_raises(base, make_config, micro_configs):
    """It would keep its random weights, also when real weights are customized."""
    config = make_config(base)
    config.model.image_encoder_2 = micro_configs["image_encoder"]
    with pytest.raises(UserError, match=r"config\.model has a image_encoder_2, but the model in .* has none"):
        start.starting_pipeline(read_config(config), None)


def test_image_tower_unused_by_realcustom_raises(folder, make_config, micro_configs):
    config = make_config(folder)
    config.model.image_encoder_2 = micro_configs["image_encoder"]
    config.trainable = ("^image_encoder_2/",)
    with pytest.raises(UserError, match="takes 1 layers of each of 2 image towers"):
        start.starting_pipeline(read_config(config), None)


WIDER = {"unet__in_channels": 6, "unet__out_channels": 6, "vae__latent_channels": 6}
LATENT_LAYERS = (
    r"^vae/(encoder/conv_out|quant_conv|post_quant_conv|decoder/conv_in)/|^unet/(conv_in|conv_out|scoring)/"
)


def test_changed_latent_channels_without_fresh_layers_raise(folder, make_config):
    with pytest.raises(UserError) as error:
        start.starting_pipeline(read_config(make_config(folder, **WIDER)), None)
    for path in ("unet/conv_in/kernel", "vae/decoder/conv_in/kernel", "unet/scoring/visual_attention/kernel"):
        assert f"{path} (model (" in str(error.value)


def test_changed_latent_channels_initialise_only_fresh_layers(folder, make_config, micro_pipe):
    pipe = start.starting_pipeline(read_config(make_config(folder, LATENT_LAYERS, **WIDER)), None)
    assert (pipe.models.unet_config.in_channels, pipe.models.vae_config.latent_channels) == (6, 6)
    ours, loaded = flatten(pipe.params), flatten(micro_pipe.params)
    assert ours["unet/conv_in/kernel"].shape[2] == ours["vae/post_quant_conv/kernel"].shape[3] == 6
    for path, value in ours.items():
        assert bool(re.search(LATENT_LAYERS, path)) != np.array_equal(value, loaded[path]), path


def test_fresh_regex_without_match_raises(folder, make_config):
    with pytest.raises(UserError, match=r"config\.fresh: 'scorng' matches no parameter"):
        start.starting_pipeline(read_config(make_config(folder, "scorng")), None)
