"""The toybox as a data set on disk."""

import numpy as np
import pytest

from realcustom_jax.common.errors import UserError
from realcustom_jax.data.cut_outs import marked_mask, marked_words, marks
from realcustom_jax.data.image_text import open_split
from realcustom_jax.toybox import is_held_out, sample_scene
from realcustom_jax.toybox.dataset import write_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "toybox"
    write_dataset(folder, train=24, validation=8, seed=3)
    return folder


@pytest.mark.parametrize(("split", "count"), [("train", 24), ("validation", 8)])
def test_records_equal_the_scenes_of_their_seeds(folder, split, count):
    """Bit-exact after the PNG; subjects of the validation split, and only those, are held out."""
    data = open_split(folder, split)
    assert len(data) == count
    for i in range(count):
        record = data[i]
        scene = sample_scene(record["metadata"]["scene_seed"], held_out=split == "validation")
        np.testing.assert_array_equal(record["image"], scene.image)
        assert record["caption"] == scene.caption
        assert record["metadata"]["words"] == [identity.word for identity in scene.identities]
        held_out = [is_held_out(seed) for seed in record["metadata"]["identities"]]
        assert [marked_words(entry, "") for entry in marks(record)] == record["metadata"]["words"]
        np.testing.assert_array_equal([marked_mask(entry, "") for entry in marks(record)], scene.masks)
        assert held_out == [split == "validation"] * len(scene.identities)


def test_training_scenes_differ(folder):
    data = open_split(folder, "train")
    assert len({data[i]["image"].tobytes() for i in range(24)}) == 24


def test_invalid_example_count_raises(tmp_path):
    with pytest.raises(UserError, match="not train=0"):
        write_dataset(tmp_path / "none", train=0)
