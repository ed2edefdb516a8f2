"""The data set on disk: round trip, interruption, and user errors."""

import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from realcustom_jax.common.errors import UserError
from realcustom_jax.data.image_text import Example, is_written, open_split, write


def picture(seed: int, size: tuple[int, int] = (5, 7)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def encode(image: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind)
    return stream.getvalue()


def examples(count: int) -> list[Example]:
    return [
        Example(f"k{i}", encode(picture(i)), f"a dög № {i}", {"number": i, "of": [i]}) for i in range(count)
    ]


def test_round_trip_is_exact(tmp_path):
    write(tmp_path, {"train": iter(examples(20)), "validation": examples(1)})
    split = open_split(tmp_path, "train")
    assert len(split) == 20
    assert len(open_split(tmp_path, "validation")) == 1
    by_key = {split[i]["key"]: split[i] for i in range(20)}
    assert set(by_key) == {f"k{i}" for i in range(20)}
    for i in range(20):
        example = by_key[f"k{i}"]
        assert example["image"].dtype == np.uint8
        np.testing.assert_array_equal(example["image"], picture(i))
        assert example["caption"] == f"a dög № {i}"
        assert example["metadata"] == {"number": i, "of": [i]}


def test_index_is_checked_and_may_be_negative(tmp_path):
    write(tmp_path, {"train": examples(3)})
    split = open_split(tmp_path, "train")
    assert split[-1]["key"] == split[2]["key"]
    for index in (3, -4):
        with pytest.raises(IndexError):
            split[index]


def test_encoded_images_are_stored_unchanged(tmp_path):
    # A second JPEG encoding would change pixels: what comes out must be what the given bytes decode to.
    jpeg = encode(picture(0, (16, 16)), "JPEG")
    write(tmp_path, {"train": [Example("a", jpeg, "")]})
    np.testing.assert_array_equal(
        open_split(tmp_path, "train")[0]["image"], np.asarray(Image.open(io.BytesIO(jpeg)))
    )


def test_split_can_be_pickled(tmp_path):
    write(tmp_path, {"train": examples(3)})
    split = open_split(tmp_path, "train")
    assert pickle.loads(pickle.dumps(split))[1]["key"] == split[1]["key"]


def test_interrupted_write_leaves_no_data_set(tmp_path):
    def interrupted():
        yield from examples(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, {"train": interrupted()})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with pytest.raises(UserError, match="no image_text data set"):
        open_split(tmp_path, "train")
    write(tmp_path, {"train": examples(3)})
    assert len(open_split(tmp_path, "train")) == 3


def test_folder_of_killed_write_is_no_data_set(tmp_path):
    (tmp_path / "image_text" / "1.0.0.incompleteABC").mkdir(parents=True)
    with pytest.raises(UserError, match="no image_text data set"):
        open_split(tmp_path, "train")
    assert not is_written(tmp_path)
    write(tmp_path, {"train": examples(1)})
    assert len(open_split(tmp_path, "train")) == 1
    assert is_written(tmp_path)


def test_uncreatable_folder_raises(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"the data folder '.*/file/data' cannot be made: Not a directory"):
        write(tmp_path / "file" / "data", {"train": examples(1)})


def test_existing_data_set_is_not_overwritten(tmp_path):
    write(tmp_path, {"train": examples(2)})
    with pytest.raises(UserError, match="holds a data set already"):
        write(tmp_path, {"train": examples(5)})
    assert len(open_split(tmp_path, "train")) == 2


def test_errors_name_the_input(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        open_split(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match="example 'torn' cannot be decoded"):
        write(tmp_path / "a", {"train": [*examples(2), Example("torn", b"not an image", "")]})
    with pytest.raises(UserError, match="example 'gif' cannot be decoded as PNG, JPEG or WebP"):
        write(tmp_path / "a", {"train": [Example("gif", encode(picture(0), "GIF"), "")]})
    with pytest.raises(UserError, match="the key 'k1' appears twice"):
        write(tmp_path / "a", {"train": [*examples(2), Example("k1", encode(picture(9)), "other")]})
    with pytest.raises(UserError, match="split 'empty' has no example"):
        write(tmp_path / "a", {"empty": []})
    write(tmp_path / "a", {"train": examples(1), "validation": examples(1)})
    with pytest.raises(UserError, match="no split 'test'; it has: train, validation"):
        open_split(tmp_path / "a", "test")


def test_truncated_image_raises_on_reading(tmp_path):
    truncated = encode(picture(0, (64, 64)))[:200]
    write(tmp_path, {"train": [Example("half", truncated, "")]})
    with pytest.raises(UserError, match="example 'half' cannot be decoded"):
        open_split(tmp_path, "train")[0]


def test_data_set_functions_print_nothing(tmp_path, capfd):
    write(tmp_path, {"train": examples(2)})
    open_split(tmp_path, "train")[0]
    assert capfd.readouterr() == ("", "")


def test_jax_and_tensorflow_are_not_imported():
    code = "import sys, realcustom_jax.data.image_text; print({'jax', 'tensorflow'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
