"""Model configs are derived from tensors' shapes; a missing tensor or a wrong shape gives a one-line error.

Only names and shapes are changed here; test_tensors.py has damaged bytes.
"""

import runpy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from realcustom_jax import pipeline
from realcustom_jax.common.errors import UserError
from realcustom_jax.models.family import Models
from realcustom_jax.models.vit import ViTConfig
from realcustom_jax.weights.components import LAYOUTS, misfits, open_params
from realcustom_jax.weights.configs import read_timm
from realcustom_jax.weights.exports import export_original
from realcustom_jax.weights.keys import flatten
from realcustom_jax.weights.layouts import DIFFUSERS, TIMM
from realcustom_jax.weights.official import guess_config
from realcustom_jax.weights.original import original_base
from realcustom_jax.weights.tensors import Tensors, open_tensors
from realcustom_jax.weights.towers import tower_shapes

make = runpy.run_path(str(Path(__file__).with_name("original_models.py")))["make"]
Shapes = Mapping[str, tuple[int, ...]]


def damaged(shapes: Shapes, every: int) -> Iterator[tuple[str, Shapes]]:
    """(description, shapes): each tensor is missing once; one in `every` also gets wrong shapes."""
    yield "nothing", {}
    for number, (key, shape) in enumerate(shapes.items()):
        others = {name: value for name, value in shapes.items() if name != key}
        yield f"no {key}", others
        if number % every == 0:
            yield f"{key} is a number", {**others, key: ()}
            yield f"{key} has a dimension more", {**others, key: (*shape, 1)}
            yield f"{key} is huge", {**others, key: tuple(2**40 for _ in shape)}
            yield f"{key} is empty", {**others, key: (0,) * len(shape)}


def check(shapes: Shapes, read: Callable[[Tensors], None], every: int = 1) -> int:
    """Read the intact file, then damaged ones: each must raise a one-line error. Returns their number."""
    read(Tensors("FILE", shapes, None))
    count = 0
    for what, wrong_shapes in damaged(shapes, every):
        with pytest.raises(UserError) as error:
            read(Tensors("FILE", wrong_shapes, None))
            pytest.fail(f"silent: {what}")
        text = str(error.value)
        assert "\n" not in text, (what, text)
        count += 1
    return count


@pytest.mark.parametrize("kind", ["sd15", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_damaged_original_checkpoints_give_one_line_errors(micro_tokenizer, tmp_path, kind):
    pipe = make(kind, micro_tokenizer)
    export_original(pipe, tmp_path / "m.safetensors", "float16")

    def read(tensors: Tensors) -> None:
        base = original_base(tensors, [Path()] * len(pipe.models.text_configs))
        models = Models(base.unet, base.vae, base.texts)
        for name in models.configs:
            with misfits("FILE"):
                shapes = models.component_shapes(name)
            base.open(name, shapes)

    assert check(open_tensors(tmp_path / "m.safetensors").shapes, read, every=11) > 500


@pytest.mark.parametrize("kind", ["siglip", "dinov2"])
def test_damaged_timm_towers_give_one_line_errors(kind):
    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=1, projection_dim=None, pre_norm=False, patch_bias=True,
        class_token=kind == "dinov2", layer_scale=kind == "dinov2",
    )  # fmt: skip
    entries = TIMM.entries(flatten(tower_shapes(config)))

    def read(tensors: Tensors) -> None:
        found = read_timm({"architecture": f"vit_base_patch8_{kind}"}, tensors)
        with misfits("FILE"):
            shapes = tower_shapes(found)
        open_params(tensors, LAYOUTS["image_encoder"], shapes)

    assert check({entry.key: entry.shape for entry in entries}, read) > 100


def test_damaged_adapters_give_one_line_errors(micro_models):
    _, added = pipeline.split_added(micro_models.component_shapes("unet"))
    entries = DIFFUSERS.entries(flatten(added))

    def read(tensors: Tensors) -> None:
        config = guess_config(tensors)
        with misfits("FILE"):
            models = Models(
                micro_models.unet_config, micro_models.vae_config, micro_models.text_configs,
                micro_models.image_configs, config,
            )  # fmt: skip
            _, wanted = pipeline.split_added(models.component_shapes("unet"))
        open_params(tensors, LAYOUTS["realcustom"], wanted)

    assert check({entry.key: entry.shape for entry in entries}, read) > 100
