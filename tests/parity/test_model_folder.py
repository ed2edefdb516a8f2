"""Model folders exchanged with diffusers and transformers, in both directions: the same bits."""

import inspect
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'parity'")
diffusers = pytest.importorskip("diffusers", reason="needs the extra 'parity'")

import jax  # noqa: E402
import transformers  # noqa: E402

import realcustom_jax as rc  # noqa: E402
from realcustom_jax import pipeline  # noqa: E402
from realcustom_jax.common.files import write_json  # noqa: E402
from realcustom_jax.diffusion.schedule import ScheduleConfig  # noqa: E402
from realcustom_jax.inputs.tokenize import tokenize  # noqa: E402
from realcustom_jax.models.clip_text import CLIPText  # noqa: E402
from realcustom_jax.models.family import unet_shapes  # noqa: E402
from realcustom_jax.models.init import param_shapes  # noqa: E402
from realcustom_jax.models.unet import UNet  # noqa: E402
from realcustom_jax.models.vae import VAE  # noqa: E402
from realcustom_jax.models.vit import ViT  # noqa: E402
from realcustom_jax.weights.components import load_params, on_host, read_config, write_params  # noqa: E402
from realcustom_jax.weights.configs import read_text, read_unet, read_vae, vision_to_json  # noqa: E402
from realcustom_jax.weights.keys import (  # noqa: E402
    flatten,
    split_added,
    to_torch,
    torch_key,
)
from realcustom_jax.weights.layouts import CLIP_VISION, DINOV2  # noqa: E402
from realcustom_jax.weights.towers import load_tower  # noqa: E402

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))


@pytest.fixture(scope="module")
def saved(micro_pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity") / "model"
    pipeline.save(micro_pipe, folder)
    return folder


CLASSES = {
    "unet": diffusers.UNet2DConditionModel,
    "vae": diffusers.AutoencoderKL,
    "text_encoder": transformers.CLIPTextModel,
    "image_encoder": transformers.CLIPVisionModelWithProjection,
}


def assert_same_state(params, module) -> None:
    """Equal keys, and tensors that are equal bit for bit."""
    ours = {torch_key(path): to_torch(path, np.asarray(value)) for path, value in flatten(params).items()}
    theirs = common.numpy_state(module)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key)


@pytest.mark.parametrize("part", CLASSES)
def test_diffusers_and_transformers_read_our_components(micro_pipe, saved, part):
    """No key is missing or unexpected, every tensor is bit-equal, and they know every config field."""
    module, info = CLASSES[part].from_pretrained(saved / part, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    if CLASSES[part].__module__.startswith("diffusers"):
        fields = {name for name in read_config(saved / part) if not name.startswith("_")}
        assert fields <= inspect.signature(CLASSES[part]).parameters.keys()
    params = micro_pipe.params[part]
    assert_same_state(split_added(params)[0] if part == "unet" else params, module)


@pytest.mark.parametrize("name", ["AutoTokenizer", "CLIPTokenizer", "CLIPTokenizerFast"])
def test_transformers_reads_our_tokenizer(micro_pipe, saved, name):
    prompts = ["a cat on the beach", "Ünknown words, 12!"]
    theirs = getattr(transformers, name).from_pretrained(saved / "tokenizer")
    ids = theirs(prompts, padding="max_length", truncation=True)["input_ids"]
    np.testing.assert_array_equal(ids, tokenize(*micro_pipe.tokenizers, prompts))


def test_diffusers_reads_our_scheduler(micro_pipe, saved):
    """ᾱ (theirs is float32, see `test_solvers`), prediction type, timestep spacing, and no clipping."""
    theirs, ours = diffusers.DDIMScheduler.from_pretrained(saved / "scheduler"), micro_pipe.schedule
    np.testing.assert_allclose(theirs.alphas_cumprod, ours.alphas_cumprod(), rtol=6e-5)
    assert theirs.config.prediction_type == ours.prediction_type != ScheduleConfig().prediction_type
    assert theirs.config.timestep_spacing == ours.timestep_spacing != ScheduleConfig().timestep_spacing
    assert theirs.config.steps_offset == ours.steps_offset and not theirs.config.clip_sample


def test_diffusers_pipeline_makes_same_image(micro_pipe, saved):
    """`StableDiffusionPipeline` on our folder: text alone, DDIM, 4 steps with guidance, from the same noise.

    Images in 0 … 1; tolerance half a level, as ours are rounded to 8 bits, plus 1e-4 for the passes before.
    """
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(saved, safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(3), 0), (8, 8, 4))
    prompt = "a cat on the beach"
    expected = theirs(
        prompt, num_inference_steps=4, guidance_scale=7.5, latents=common.planes(noise[None]),
        height=16, width=16, output_type="np",
    ).images  # fmt: skip
    ours = rc.sample(micro_pipe, prompt, seed=3, steps=4, text_weight=7.5).images
    assert ours.std() > 10
    np.testing.assert_allclose(ours / 255.0, expected, atol=0.5 / 255 + 1e-4)


def test_unet_and_vae_of_diffusers_are_read(tmp_path):
    """SDXL's form of UNet and a VAE, written by `save_pretrained`."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=20,
        attention_head_dim=(1, 2), transformer_layers_per_block=(1, 2), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=6, projection_class_embeddings_input_dim=46,
    )  # fmt: skip
    common.randomise(unet, seed=11).save_pretrained(tmp_path / "unet")
    config = read_unet(read_config(tmp_path / "unet"), "it")
    assert (config.heads, config.depths, config.has_attention(0, "down")) == ((1, 2), (1, 2), False)
    shapes = unet_shapes(UNet(config), text_tokens=7, visual_tokens=4, vision_dim=8)
    assert_same_state(load_params(tmp_path / "unet", "unet", shapes, on_host(np.float32)), unet)

    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=2, scaling_factor=0.13025,
    )  # fmt: skip
    common.randomise(vae, seed=12).save_pretrained(tmp_path / "vae")
    config = read_vae(read_config(tmp_path / "vae"), "it")
    assert config.scaling_factor == 0.13025
    shapes = param_shapes(VAE(config), np.zeros((1, 16, 16, 3), np.float32))
    assert_same_state(load_params(tmp_path / "vae", "vae", shapes, on_host(np.float32)), vae)


def test_text_encoder_of_transformers_is_read(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=50, **sizes))
    common.randomise(text, seed=13).save_pretrained(tmp_path / "text_encoder")
    config = read_text(read_config(tmp_path / "text_encoder"), "it")
    shapes = param_shapes(CLIPText(config), np.zeros((1, 77), np.int32))
    assert_same_state(
        load_params(tmp_path / "text_encoder", "text_encoder", shapes, on_host(np.float32)), text
    )


SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
CLIP = transformers.CLIPVisionConfig(intermediate_size=40, projection_dim=6, **SIZES)
SIGLIP = transformers.SiglipVisionConfig(intermediate_size=40, **SIZES)
TOWERS = {
    "clip": lambda: transformers.CLIPVisionModelWithProjection(CLIP),
    "whole clip": lambda: transformers.CLIPModel(transformers.CLIPConfig(vision_config=CLIP.to_dict())),
    "siglip": lambda: transformers.SiglipVisionModel(SIGLIP),
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)),
    "dinov2 with registers": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**SIZES)
    ),
}


@pytest.mark.parametrize("name", TOWERS)
def test_image_towers_round_trip_with_transformers(tmp_path, name):
    """Their saved tower gives the same last state in ours; our saved tower gives them the same tensors."""
    theirs = common.randomise(TOWERS[name](), seed=14)
    theirs.save_pretrained(tmp_path / "theirs")
    config, params = load_tower(tmp_path / "theirs", on_host(np.float32))
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    pixels = (images * 0.5 + 0.5 - np.asarray(config.image_mean)) / np.asarray(config.image_std)
    vision = theirs.vision_model if name == "whole clip" else theirs
    pixel_values = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32))
    expected = vision(pixel_values, output_hidden_states=True).hidden_states[-1]
    ours = ViT(config).apply({"params": params}, images)
    common.assert_close(ours.states[-1], expected)

    if name == "whole clip":
        return
    write_json(tmp_path / "ours" / "config.json", vision_to_json(config))
    layout = DINOV2 if "dinov2" in name else CLIP_VISION
    write_params(tmp_path / "ours" / "model.safetensors", layout, params, "float32")
    again, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    # The pooling head after the features, and DINOv2's mask token, which only its training uses.
    assert all(re.match(r"vision_model\.head\.|embeddings\.mask_token", key) for key in info["missing_keys"])
    for key, value in theirs.state_dict().items():
        if key not in info["missing_keys"]:
            np.testing.assert_array_equal(again.state_dict()[key], value, err_msg=key)
