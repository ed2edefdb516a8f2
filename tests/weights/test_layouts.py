"""Key layouts: names as in the libraries, and bit-exact round trips."""

import dataclasses

import jax
import numpy as np
import pytest

from realcustom_jax.common.errors import UserError
from realcustom_jax.models.init import init_params
from realcustom_jax.models.vit import ViTConfig
from realcustom_jax.weights.components import LAYOUTS, on_host, read_params, write_params
from realcustom_jax.weights.keys import flatten
from realcustom_jax.weights.layouts import CLIP_VISION, DIFFUSERS, DINOV2, FLAX, OLD_VAE, TIMM
from realcustom_jax.weights.tensors import Tensors, open_tensors
from realcustom_jax.weights.towers import fit_positions, tower_shapes

DINO = ViTConfig(
    image_size=12, patch_size=4, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
    num_attention_heads=2, hidden_act="gelu", projection_dim=None, registers=3, pre_norm=False,
    patch_bias=True, layer_scale=True,
)  # fmt: skip
SIGLIP = dataclasses.replace(DINO, class_token=False, registers=0, layer_scale=False)
CLIP = ViTConfig(image_size=12, patch_size=4, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
                 num_attention_heads=2, projection_dim=6)  # fmt: skip


def tensors_of(values: dict) -> Tensors:
    return Tensors("here", {key: value.shape for key, value in values.items()}, values.__getitem__)


def random_params(shapes, seed: int = 0):
    """Random numbers, so that a swapped or transposed tensor is noticed."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), init_params(shapes, 0))


@pytest.mark.parametrize(
    ("layout", "component", "ending"),
    [
        (DIFFUSERS, "unet", "safetensors"),
        (FLAX, "unet", "msgpack"),
        (DIFFUSERS, "vae", "safetensors"),
        (OLD_VAE, "vae", "safetensors"),
        (FLAX, "vae", "msgpack"),
        (DIFFUSERS, "text_encoder", "safetensors"),
        (FLAX, "text_encoder", "msgpack"),
    ],
    ids=lambda x: getattr(x, "name", x),
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_component_round_trips_bit_exactly(micro_models, tmp_path, layout, component, ending, dtype):
    """Also in bfloat16: values that are rounded once do not change again."""
    shapes = micro_models.component_shapes(component)
    params = random_params(shapes)
    path, again = tmp_path / f"a.{ending}", tmp_path / f"b.{ending}"
    write_params(path, layout, params, dtype)
    read = read_params(open_tensors(path), LAYOUTS[component], shapes, on_host(np.float32))
    if dtype == "float32":
        jax.tree.map(np.testing.assert_array_equal, read, params)
    write_params(again, layout, read, dtype)
    assert path.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("config", "layout"),
    [(DINO, DINOV2), (DINO, FLAX), (dataclasses.replace(DINO, position_prefix=False), TIMM), (SIGLIP, TIMM),
     (SIGLIP, CLIP_VISION), (CLIP, CLIP_VISION), (CLIP, FLAX)],
    ids=["dinov2", "dinov2-flax", "dinov2-timm", "siglip-timm", "siglip", "clip", "clip-flax"],
)  # fmt: skip
def test_tower_round_trips_bit_exactly(tmp_path, config, layout):
    shapes = tower_shapes(config)
    params = random_params(shapes)
    path = tmp_path / ("a.msgpack" if layout is FLAX else "a.safetensors")
    write_params(path, layout, params, "float32")
    read = read_params(open_tensors(path), LAYOUTS["image_encoder"], shapes, on_host(np.float32))
    jax.tree.map(np.testing.assert_array_equal, read, params)


def test_timm_fuses_qkv_as_rows_of_one_matrix():
    """Against an explicit stack: q above k above v, each (out, in)."""
    params = flatten(random_params(tower_shapes(SIGLIP)))
    (entry,) = [e for e in TIMM.entries(params) if e.key == "blocks.1.attn.qkv.weight"]
    attention = "vision_model/encoder/layers_1/self_attn"
    expected = np.vstack([params[f"{attention}/{name}_proj/kernel"].T for name in "qkv"])
    np.testing.assert_array_equal(entry.to_file(params[path] for path in entry.paths), expected)


def test_layout_names_match_libraries():
    """Copied from state dicts of timm, of transformers' DINOv2 and of Flax models."""
    shapes = flatten(tower_shapes(DINO))
    dino = {entry.key: entry.shape for entry in DINOV2.entries(shapes)}
    assert dino["embeddings.cls_token"] == (1, 1, 8)
    assert dino["embeddings.register_tokens"] == (1, 3, 8)
    assert dino["embeddings.position_embeddings"] == (1, 10, 8)
    assert dino["encoder.layer.1.attention.attention.query.weight"] == (8, 8)
    assert dino["encoder.layer.0.layer_scale2.lambda1"] == (8,)
    assert dino["layernorm.bias"] == (8,)
    flax = {entry.key for entry in FLAX.entries(shapes)}
    assert "vision_model/encoder/layers/1/self_attn/q_proj/kernel" in flax
    timm = {entry.key: entry.shape for entry in TIMM.entries(shapes)}
    assert timm["blocks.0.ls1.gamma"] == (8,) and timm["reg_token"] == (1, 3, 8)
    assert timm["patch_embed.proj.weight"] == (8, 3, 4, 4) and timm["norm.weight"] == (8,)


def test_old_vae_layout_uses_old_names(micro_models):
    keys = {entry.key for entry in OLD_VAE.entries(flatten(micro_models.component_shapes("vae")))}
    for name in ("query", "key", "value", "proj_attn"):
        assert f"encoder.mid_block.attentions.0.{name}.weight" in keys
    assert not any("to_q" in key for key in keys)


def test_vision_tower_is_read_from_whole_clip(tmp_path):
    shapes = tower_shapes(CLIP)
    params = random_params(shapes)
    tensors = {
        e.key: e.to_file(flatten(params)[p] for p in e.paths) for e in CLIP_VISION.entries(flatten(params))
    }
    rest = {
        "text_model.final_layer_norm.weight": np.ones(4),
        "logit_scale": np.ones(()),
        "text_projection.weight": np.ones((2, 2)),
    }

    read = read_params(tensors_of(tensors | rest), LAYOUTS["image_encoder"], shapes, on_host(np.float32))
    jax.tree.map(np.testing.assert_array_equal, read, params)
    with pytest.raises(UserError, match="1 unexpected: other"):
        read_params(
            tensors_of(tensors | {"other": np.ones(1)}), LAYOUTS["image_encoder"], shapes, on_host(np.float32)
        )


def test_positions_are_resampled_like_pytorch_with_antialiasing():
    """Bicubic, half-pixel centres, down from 9×9 to 5×5 and up to 14×14; 1e-5 is float32 rounding."""
    torch = pytest.importorskip("torch", reason="the extra `convert` is not installed")
    old = dataclasses.replace(DINO, image_size=36)
    positions = np.random.default_rng(0).standard_normal((82, 8)).astype(np.float32)
    grid = torch.from_numpy(positions[1:]).reshape(1, 9, 9, 8).permute(0, 3, 1, 2)
    for side in (5, 14):
        ours = fit_positions(positions, old, dataclasses.replace(DINO, image_size=4 * side))
        theirs = torch.nn.functional.interpolate(grid, (side, side), mode="bicubic", antialias=True)
        np.testing.assert_array_equal(ours[0], positions[0])
        np.testing.assert_allclose(ours[1:], theirs[0].permute(1, 2, 0).reshape(-1, 8), atol=1e-5)
