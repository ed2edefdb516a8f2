"""Damaged and unexpected JSON in a model folder: each gives a one-line error that names the file."""

import itertools
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

import realcustom_jax as rc
from realcustom_jax import pipeline
from realcustom_jax.common.errors import UserError
from realcustom_jax.weights.tensors import open_tensors

CONFIGS = [
    "unet/config.json", "vae/config.json", "text_encoder/config.json", "image_encoder/config.json",
    "realcustom/config.json", "realcustom/sampling.json", "scheduler/scheduler_config.json",
]  # fmt: skip
DAMAGE = {
    "binary": b"\xff\xfe\x00\x80",
    "cut off": b'{"a": [1, 2',
    "nested": b'{"a":' + b"[" * 100_000,
    "list": b"[1, 2]",
    "number": b"7",
    "empty": b"",
}
INDEXES = {
    "itself": b'{"weight_map": {"a": "m.safetensors.index.json"}}',
    "a number": b'{"weight_map": {"a": 5}}',
    "a list": b'{"weight_map": ["a"]}',
    "outside": b'{"weight_map": {"a": "../../m.safetensors"}}',
    "absolute": b'{"weight_map": {"a": "/etc/passwd"}}',
    "nothing": b'{"weight_map": {}}',
    "no map": b"{}",
}


@pytest.fixture(scope="module")
def saved(micro_pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    rc.save(micro_pipe, folder)
    return folder


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", CONFIGS)
def test_damaged_config_error_names_file(saved, tmp_path, name, damage):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    (folder / name).write_bytes(DAMAGE[damage])
    with pytest.raises(UserError, match=name.replace(".", r"\.")) as error:
        rc.load(folder)
    assert "\n" not in str(error.value)


# Wrong types, nothing, zero, absurd numbers.
WRONG_VALUES = {
    "null": None, "text": "x", "no text": "", "below zero": -1, "zero": 0, "huge": 10**9, "long": 10**400,
    "NaN": float("nan"), "infinity": float("inf"), "half": 0.5, "no list": [], "list": [[1]],
    "null in a list": [None], "object": {}, "true": True,
}  # fmt: skip
# Values that could be those of another model.
OTHER_MODELS = {
    *((name, "half") for name in ("norm_eps", "layer_norm_eps", "logit_scale", "beta_start", "beta_end")),
    ("eos_token_id", "zero"), ("steps_offset", "zero"), ("text_paired", "true"), ("feature_layers", "list"),
    ("timestep_spacing", "text"), ("timestep_spacing", "no text"),  # only names other libraries' default
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in CONFIGS if "sampling" not in name])
def test_wrong_config_values_give_one_line_error(saved, tmp_path, name):
    """Only keys that are not read, and values with the same meaning, are accepted."""
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    wanted = pipeline.open_model(folder)
    found = Counter()
    values = json.loads((folder / name).read_text())
    for key, label in itertools.product(values, WRONG_VALUES):
        (folder / name).write_text(json.dumps({**values, key: WRONG_VALUES[label]}))
        try:
            pipe = pipeline.open_model(folder)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000, (key, label)
            found["sentences"] += 1
        else:
            same = (pipe.models, pipe.schedule) == (wanted.models, wanted.schedule)
            assert same or (key, label) in OTHER_MODELS, (key, label)
            found["right"] += 1
    assert found.total() == len(values) * len(WRONG_VALUES) > 60 and found["sentences"] > 20, found


@pytest.mark.parametrize("damage", [*DAMAGE, *INDEXES])
def test_damaged_index_error_names_file(tmp_path, damage):
    path = tmp_path / "m.safetensors.index.json"
    path.write_bytes((DAMAGE | INDEXES)[damage])
    with pytest.raises(UserError, match=r"m\.safetensors\.index\.json"):
        open_tensors(path)


def test_image_encoders_other_than_a_list_raise():
    for wrong in (None, 3, "folder"):
        with pytest.raises(UserError, match="image_encoders must be a list"):
            rc.load("toybox", image_encoders=wrong)
