"""Original one-file checkpoints: diffusers converts the ones that we write to its own tensors."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'parity'")
diffusers = pytest.importorskip("diffusers", reason="needs the extra 'parity'")

from diffusers.loaders import single_file_utils as theirs  # noqa: E402

from realcustom_jax.models.clip_text import CLIPText, CLIPTextConfig  # noqa: E402
from realcustom_jax.models.config import UNetConfig, from_mapping  # noqa: E402
from realcustom_jax.models.family import unet_shapes  # noqa: E402
from realcustom_jax.models.init import param_shapes  # noqa: E402
from realcustom_jax.models.unet import UNet  # noqa: E402
from realcustom_jax.models.vae import VAE, VAEConfig  # noqa: E402
from realcustom_jax.weights.components import to_tensors  # noqa: E402
from realcustom_jax.weights.folder import component_json  # noqa: E402
from realcustom_jax.weights.keys import flatten  # noqa: E402
from realcustom_jax.weights.layouts import DIFFUSERS  # noqa: E402
from realcustom_jax.weights.original import original_base, original_layouts  # noqa: E402
from realcustom_jax.weights.tensors import Tensors  # noqa: E402

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))
published = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("published.py"))))
make = runpy.run_path(str(Path(__file__).parents[1] / "weights" / "original_models.py"))["make"]


@pytest.fixture(scope="module")
def pipes(micro_tokenizer):
    return {kind: make(kind, micro_tokenizer) for kind in ("sd15", "sdxl")}


def tensors(pipe, part: str, original: bool) -> dict[str, torch.Tensor]:
    prefix, layout = original_layouts(len(pipe.models.text_configs))[part]
    prefix, layout = (prefix, layout) if original else ("", DIFFUSERS)
    written = to_tensors(layout, pipe.params[part], "float32", prefix)
    return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in written.items()}


def converted(pipe, part: str) -> dict[str, torch.Tensor]:
    """What diffusers makes of our original tensors."""
    ours, config = tensors(pipe, part, original=True), component_json(part, pipe.models.configs[part])
    if part == "unet":
        return theirs.convert_ldm_unet_checkpoint(ours, config)
    if part == "vae":
        return theirs.convert_ldm_vae_checkpoint(ours, config)
    if part == "text_encoder":
        return theirs.convert_ldm_clip_checkpoint(ours, original_layouts(2)["text_encoder"][0])
    # It splits queries, keys and values by the projection's first axis, the encoder's width.
    return theirs.convert_open_clip_checkpoint(None, ours, original_layouts(2)["text_encoder_2"][0])


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_diffusers_converts_our_original_checkpoint(pipes, kind, part):
    _compare(pipes[kind], part)


def test_diffusers_converts_sdxl_second_text_encoder(pipes):
    _compare(pipes["sdxl"], "text_encoder_2")


def _compare(pipe, part: str) -> None:
    expected, got = tensors(pipe, part, original=False), converted(pipe, part)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        # VAE attention: theirs may stay 1×1 convolutions
        np.testing.assert_array_equal(got[key].reshape(value.shape), value, err_msg=key)


def _full_shapes(name: str) -> tuple[dict, UNetConfig]:
    """Shapes of all tensors of the real file, and its UNet's config."""
    config = from_mapping(UNetConfig, published.UNETS[name])
    texts = [
        from_mapping(CLIPTextConfig, values | {"with_projection": projects})
        for projects, values in published.TEXTS.values()
    ]
    pixels = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    shapes = {
        "unet": unet_shapes(UNet(config), text_tokens=77, visual_tokens=4, vision_dim=8),
        "vae": param_shapes(VAE(from_mapping(VAEConfig, published.VAE_VALUES)), pixels),
    }
    ids = jax.ShapeDtypeStruct((1, 77), np.int32)
    texts = texts[: 2 if config.addition_embed_type else 1]
    shapes |= {
        key: param_shapes(CLIPText(text), ids)
        for key, text in zip(("text_encoder", "text_encoder_2"), texts, strict=False)
    }
    layouts = original_layouts(len(texts))
    return {
        prefix + entry.key: entry.shape
        for part, (prefix, layout) in layouts.items()
        for entry in layout.entries(flatten(shapes[part]))
    }, config


# Shapes in the published files, from all parts: first and last blocks, resampling layers, fused tensors.
PUBLISHED = {
    "Stable Diffusion 1.5": {
        "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
        "model.diffusion_model.input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
        "model.diffusion_model.input_blocks.3.0.op.weight": (320, 320, 3, 3),
        "model.diffusion_model.input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        "model.diffusion_model.input_blocks.11.0.out_layers.3.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768),
        "model.diffusion_model.output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.8.2.conv.weight": (640, 640, 3, 3),
        "model.diffusion_model.output_blocks.11.1.proj_out.weight": (320, 320, 1, 1),
        "model.diffusion_model.time_embed.2.weight": (1280, 1280),
        "model.diffusion_model.out.2.weight": (4, 320, 3, 3),
        "first_stage_model.encoder.down.3.block.1.conv2.weight": (512, 512, 3, 3),
        "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "first_stage_model.encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "first_stage_model.decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
    },
    "Stable Diffusion XL": {
        "model.diffusion_model.input_blocks.1.0.in_layers.2.weight": (320, 320, 3, 3),
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight": (640, 2048),
        "model.diffusion_model.input_blocks.8.1.transformer_blocks.9.ff.net.0.proj.weight": (10240, 1280),
        "model.diffusion_model.input_blocks.8.1.proj_in.weight": (1280, 1280),
        "model.diffusion_model.output_blocks.2.2.conv.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.5.2.conv.weight": (640, 640, 3, 3),
        "model.diffusion_model.output_blocks.8.0.skip_connection.weight": (320, 640, 1, 1),
        "model.diffusion_model.label_emb.0.0.weight": (1280, 2816),
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (768,),
        "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_weight": (3840, 1280),
        "conditioner.embedders.1.model.transformer.resblocks.0.mlp.c_fc.weight": (5120, 1280),
        "conditioner.embedders.1.model.positional_embedding": (77, 1280),
        "conditioner.embedders.1.model.text_projection": (1280, 1280),
        "conditioner.embedders.1.model.ln_final.bias": (1280,),
    },
}


@pytest.mark.parametrize("name", published.UNETS)
def test_published_configs_are_derived_from_shapes(name):
    shapes, expected = _full_shapes(name)
    for key, shape in PUBLISHED[name].items():
        assert shapes[key] == shape, key
    # keys of the published files: the last UNet block, and the VAE's latents
    last = "11.1.proj_out" if name.endswith("1.5") else "8.0.skip_connection"
    assert {
        f"model.diffusion_model.output_blocks.{last}.weight",
        "first_stage_model.quant_conv.bias",
    } <= shapes.keys()
    texts = sum(key.endswith("token_embedding.weight") for key in shapes)
    base = original_base(Tensors("it", shapes, None), [Path()] * texts)
    for field in (
        "heads", "depths", "block_out_channels", "layers_per_block", "down_block_types", "up_block_types",
        "cross_attention_dim", "use_linear_projection", "addition_embed_type", "addition_time_embed_dim",
        "projection_class_embeddings_input_dim", "sample_size",
    ):  # fmt: skip
        assert getattr(base.unet, field) == getattr(expected, field), field
    for read, (projects, values) in zip(base.texts, published.TEXTS.values(), strict=False):
        assert read.with_projection == projects
        assert all(getattr(read, key) == value for key, value in values.items())
    assert base.vae.block_out_channels == (128, 256, 512, 512) and base.vae.layers_per_block == 2
