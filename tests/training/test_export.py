"""The model folder that a run exports: averaged trained parameters, all others unchanged."""

import zlib
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax import pipeline
from realcustom_jax.common.errors import UserError
from realcustom_jax.data.encode import encode_data_set, make_encoding
from realcustom_jax.data.image_text import open_split, write
from realcustom_jax.toybox.dataset import make_example
from realcustom_jax.training import partition
from realcustom_jax.training.batches import DataConfig, example_shapes, make_training_loader
from realcustom_jax.training.config import TrainConfig
from realcustom_jax.training.export import export
from realcustom_jax.training.losses import LossConfig
from realcustom_jax.weights.added import ADDED
from realcustom_jax.weights.keys import flatten


@pytest.fixture(scope="module")
def folder(micro_pipe, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("export") / "model"
    pipeline.save(micro_pipe, path)
    return str(path)


def test_frozen_parameters_are_exported_unrounded(folder, micro_pipe, tmp_path):
    """On devices they would be bfloat16; the folder has the original bits."""
    values = {"stage": "customize", "init_from": folder, "fresh": "", "seed": 0, "export_dtype": "float32"}
    config = TrainConfig(**values)
    trained, _ = partition.split_trainable(micro_pipe.params, [ADDED], [".*"])
    ema = jax.tree.map(lambda x: jnp.asarray(x) + 1.0, trained)
    export(config, ema, data=None, loader=None, folder=tmp_path / "result")
    result = flatten(pipeline.load_on_host(tmp_path / "result").params)
    ours, changed = flatten(micro_pipe.params), flatten(trained)
    assert result.keys() == ours.keys() and 0 < len(changed) < len(ours)
    for path, value in ours.items():
        np.testing.assert_array_equal(result[path], value + 1.0 if path in changed else value, err_msg=path)


@pytest.mark.parametrize(
    ("stage", "stored", "subject_weight", "subjects"),
    [
        ("base", False, 1.0, 1),
        ("instance", False, 1.0, 1),
        ("customize", False, 1.0, 1),
        ("customize", False, 4.0, 1),
        ("customize", False, 1.0, 2),
        ("base", True, 1.0, 1),
        ("customize", True, 4.0, 2),
    ],
)
def test_example_shapes_match_loader_batches(micro_pipe, tmp_path, stage, stored, subject_weight, subjects):
    """The shapes for the ahead-of-time compiler are those of the loader's examples."""
    write(tmp_path, {"train": (make_example(seed, held_out=False) for seed in range(2))})
    options = {"workers": 0, "prefetch": 1, "text_only": 0.5}
    options |= {"reference": "subject" if subject_weight != 1.0 or subjects > 1 else "image"}
    options |= {"subjects": subjects}
    options |= dict.fromkeys(("drop_text", "drop_image", "drop_both"), 0.0)
    options |= {"encoded": stored, "encoded_text": stored}
    if stored:
        pipeline.save(micro_pipe, tmp_path / "model")
        encode_data_set(tmp_path, make_encoding(str(tmp_path / "model"), 1, text=True))
    config = TrainConfig(
        stage=stage, batch_size=2, data=DataConfig(**options), loss=LossConfig(subject_weight=subject_weight)
    )
    loader = make_training_loader(config, micro_pipe, open_split(tmp_path, "train"), micro_pipe.params)
    batch = next(loader)
    loader.close()
    found = {name: (x.shape[1:], x.dtype) for name, x in batch.items()}
    wanted = example_shapes(config, micro_pipe.models)
    assert found == {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in wanted.items()}


def test_by_word_batches_have_one_word_each(micro_pipe, tmp_path):
    """The word of the first marked subject; subject numbers tell which pictures the batch contains."""
    examples = [make_example(seed, held_out=False) for seed in range(64)]
    words = {e.key: e.metadata["subjects"][0]["words"] for e in examples}
    counts = Counter(words.values())
    kept = [e for e in examples if counts[words[e.key]] >= 3]
    write(tmp_path, {"train": kept})
    options = {"workers": 0, "prefetch": 1, "by_word": True}
    config = TrainConfig(stage="instance", batch_size=3, data=DataConfig(**options))
    loader = make_training_loader(config, micro_pipe, open_split(tmp_path, "train"), {})
    by_number = {zlib.crc32(f"{e.key}/0".encode()) & 0x7FFFFFFF: words[e.key] for e in kept}
    seen = [{by_number[int(number)] for number in next(loader)["subject"]} for _ in range(20)]
    loader.close()
    assert all(len(of_batch) == 1 for of_batch in seen) and len(set.union(*seen)) > 3
    config = config.replace(batch_size=40)
    with pytest.raises(
        UserError, match=r"config\.data\.by_word: '\w+' has \d+ examples, fewer than one batch"
    ):
        make_training_loader(config, micro_pipe, open_split(tmp_path, "train"), {})
