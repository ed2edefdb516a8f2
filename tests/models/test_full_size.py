"""The published base models' sizes, from shapes alone: nothing is allocated."""

import math
import runpy
from pathlib import Path

import jax
import pytest

from realcustom_jax.models.clip_text import CLIPTextConfig
from realcustom_jax.models.config import RealCustomConfig, UNetConfig, from_mapping
from realcustom_jax.models.family import Models
from realcustom_jax.models.vae import VAEConfig
from realcustom_jax.models.vit import ViTConfig
from realcustom_jax.weights.keys import flatten, torch_key, torch_shape

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

SDXL = UNetConfig(
    sample_size=128,
    block_out_channels=(320, 640, 1280),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=2048,
    attention_head_dim=(5, 10, 20),
    transformer_layers_per_block=(1, 2, 10),
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)

BIG_G = CLIPTextConfig(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    hidden_act="gelu",
    projection_dim=1280,
    with_projection=True,
)


def count(shapes) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.fixture(scope="module")
def sd15():
    return Models(UNetConfig(), VAEConfig(), (CLIPTextConfig(),), (ViTConfig(),)).param_shapes()


def test_sd15_parameter_counts_match_published(sd15):
    """The counts that the checkpoints of Stable Diffusion 1.5 and CLIP ViT-L/14 are known to have."""
    assert count(sd15["unet"]) == 859_520_964
    assert count(sd15["vae"]) == 83_653_863
    assert count(sd15["text_encoder"]) == 123_060_480
    # CLIP ViT-L/14's vision tower, 303,179,776, and its projection to 768
    assert count(sd15["image_encoder"]) == 303_179_776 + 1024 * 768


def test_sdxl_parameter_counts_match_published():
    shapes = Models(SDXL, VAEConfig(), (CLIPTextConfig(), BIG_G)).param_shapes()
    assert count(shapes["unet"]) == 2_567_463_684
    # OpenCLIP ViT-bigG's text tower with its projection
    assert count(shapes["text_encoder_2"]) == 694_659_840


def test_sd15_names_and_shapes_match_checkpoint(sd15):
    """Copied from SD1.5's state dict: one of each kind of layer, in PyTorch's layout."""
    state = {
        torch_key(path): torch_shape(path, leaf.shape)
        for component in ("unet", "text_encoder")
        for path, leaf in flatten(sd15[component]).items()
    }
    expected = {
        "conv_in.weight": (320, 4, 3, 3),
        "time_embedding.linear_2.bias": (1280,),
        "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        "down_blocks.1.attentions.0.proj_in.weight": (640, 640, 1, 1),
        "down_blocks.2.downsamplers.0.conv.weight": (1280, 1280, 3, 3),
        "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight": (10240, 1280),
        "up_blocks.3.resnets.0.conv_shortcut.weight": (320, 960, 1, 1),
        "up_blocks.3.attentions.2.transformer_blocks.0.attn1.to_out.0.bias": (320,),
        "text_model.encoder.layers.11.self_attn.out_proj.weight": (768, 768),
        "text_model.embeddings.position_embedding.weight": (77, 768),
    }
    assert {key: state.get(key) for key in expected} == expected


SIGLIP = ViTConfig(
    image_size=384, hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16,
    projection_dim=None, class_token=False, pre_norm=False, patch_bias=True,
)  # fmt: skip
DINOV2 = ViTConfig(
    image_size=384, projection_dim=None, registers=4, pre_norm=False, patch_bias=True, layer_scale=True
)


@pytest.mark.parametrize("projector", ["deep", "shallow"])
def test_realcustom_plus_adds_expected_parameters_to_sdxl(projector):
    """configs/sdxl.py: 729 tokens of 1152 + 1024 channels to 2048, and K and V of 70 cross-attentions."""
    values = runpy.run_path(str(CONFIGS / "sdxl.py"))["get_config"](projector).model.realcustom.to_dict()
    realcustom = from_mapping(RealCustomConfig, values)
    towers = (SIGLIP, DINOV2)
    models = Models(SDXL, VAEConfig(), (CLIPTextConfig(), BIG_G), towers, realcustom)
    assert [tower.tokens for tower in towers] == [729, 729] and models.vision_dim == 2176
    flat = flatten(models.component_shapes("unet"))
    root = "encoder_hidden_states_vision_projection"
    shapes = {key: leaf.shape for key, leaf in flat.items()}
    assert shapes[f"{root}/projector_base/kernel"] == (2176, 2048)
    assert shapes[f"{root}/projector_0/kernel"] == (2176, 8704)
    assert shapes[f"{root}/min_attention/to_k/kernel"] == (2176, 2176)
    assert (f"{root}/min_attention2/to_k/kernel" in shapes) == (projector == "shallow")
    values = [shape for key, shape in shapes.items() if key.endswith("to_v_vision/kernel")]
    assert len(values) == 70 and {shape[0] for shape in values} == {2048}


def test_realcustom_adds_expected_parameters_to_sd15():
    """16 cross-attentions with two projections each from 768 channels, the projector, the scoring."""
    models = Models(UNetConfig(), VAEConfig(), (CLIPTextConfig(),), (ViTConfig(),), RealCustomConfig())
    shapes = flatten(models.component_shapes("unet"))
    widths = [shape.shape[1] for path, shape in shapes.items() if path.endswith("to_v_vision/kernel")]
    assert sorted(widths) == [320] * 5 + [640] * 5 + [1280] * 6
    added = count({path: leaf for path, leaf in shapes.items() if "_vision/" in path})
    assert added == 2 * 768 * sum(widths)
