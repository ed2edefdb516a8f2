"""Damaged and odd JSON in a model folder: each kind of damage is one sentence that names the file."""

import shutil

import pytest

import realcustom_jax as rc
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
def test_a_damaged_config_is_named(saved, tmp_path, name, damage):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    (folder / name).write_bytes(DAMAGE[damage])
    with pytest.raises(UserError, match=name.replace(".", r"\.")) as error:
        rc.load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [*DAMAGE, *INDEXES])
def test_a_damaged_index_is_named(tmp_path, damage):
    path = tmp_path / "m.safetensors.index.json"
    path.write_bytes((DAMAGE | INDEXES)[damage])
    with pytest.raises(UserError, match=r"m\.safetensors\.index\.json"):
        open_tensors(path)


def test_image_encoders_must_be_a_list():
    for wrong in (None, 3, "folder"):
        with pytest.raises(UserError, match="image_encoders must be a list"):
            rc.load("toybox", image_encoders=wrong)
