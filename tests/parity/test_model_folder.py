"""A model folder of ours read by diffusers and transformers, and theirs read by us: the same bits."""

import inspect
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'parity'")
diffusers = pytest.importorskip("diffusers", reason="needs the extra 'parity'")

import jax  # noqa: E402
import transformers  # noqa: E402

import realcustom_jax as rc  # noqa: E402
from realcustom_jax import pipeline  # noqa: E402
from realcustom_jax.data.tokenize import tokenize  # noqa: E402
from realcustom_jax.diffusion.schedule import ScheduleConfig  # noqa: E402
from realcustom_jax.models.clip_text import CLIPText, CLIPTextConfig  # noqa: E402
from realcustom_jax.models.config import UNetConfig, from_mapping  # noqa: E402
from realcustom_jax.models.family import unet_shapes  # noqa: E402
from realcustom_jax.models.init import param_shapes  # noqa: E402
from realcustom_jax.models.unet import UNet  # noqa: E402
from realcustom_jax.models.vae import VAE, VAEConfig  # noqa: E402
from realcustom_jax.models.vit import ViT, ViTConfig  # noqa: E402
from realcustom_jax.weights.diffusers import load_params, read_config  # noqa: E402
from realcustom_jax.weights.keys import flatten, to_torch, torch_key  # noqa: E402

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
    """Bit for bit, and neither has a tensor that the other has not."""
    ours = {torch_key(path): to_torch(path, np.asarray(value)) for path, value in flatten(params).items()}
    theirs = common.numpy_state(module)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key)


@pytest.mark.parametrize("part", CLASSES)
def test_they_read_our_folder(micro_pipe, saved, part):
    """No key is missing or unexpected, every tensor is bit-equal, and no config field is news to them."""
    module, info = CLASSES[part].from_pretrained(saved / part, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    if CLASSES[part].__module__.startswith("diffusers"):
        fields = {name for name in read_config(saved / part) if not name.startswith("_")}
        assert fields <= inspect.signature(CLASSES[part]).parameters.keys()
    params = micro_pipe.params[part]
    assert_same_state(pipeline.split_added(params)[0] if part == "unet" else params, module)


@pytest.mark.parametrize("name", ["AutoTokenizer", "CLIPTokenizer", "CLIPTokenizerFast"])
def test_they_read_our_tokenizer(micro_pipe, saved, name):
    prompts = ["a cat on the beach", "Ünknown words, 12!"]
    theirs = getattr(transformers, name).from_pretrained(saved / "tokenizer")
    ids = theirs(prompts, padding="max_length", truncation=True)["input_ids"]
    np.testing.assert_array_equal(ids, tokenize(micro_pipe.tokenizer, prompts))


def test_they_read_our_scheduler(micro_pipe, saved):
    """Its ᾱ (theirs float32, see `test_solvers`), what is predicted and at which timesteps, no clipping."""
    theirs, ours = diffusers.DDIMScheduler.from_pretrained(saved / "scheduler"), micro_pipe.schedule
    np.testing.assert_allclose(theirs.alphas_cumprod, ours.alphas_cumprod(), rtol=6e-5)
    assert theirs.config.prediction_type == ours.prediction_type != ScheduleConfig().prediction_type
    assert theirs.config.timestep_spacing == ours.timestep_spacing != ScheduleConfig().timestep_spacing
    assert theirs.config.steps_offset == ours.steps_offset and not theirs.config.clip_sample


def test_their_pipeline_makes_our_image(micro_pipe, saved):
    """`StableDiffusionPipeline` on our folder: text alone, DDIM, 4 steps with guidance, from the same noise.

    Images in 0 … 1; ours are rounded to 8 bits, so half a level, and 1e-4 for the passes before.
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


def test_we_read_their_unet_and_vae(tmp_path):
    """SDXL's form of UNet and a VAE, written by `save_pretrained`."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=20,
        attention_head_dim=(1, 2), transformer_layers_per_block=(1, 2), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=6, projection_class_embeddings_input_dim=46,
    )  # fmt: skip
    common.randomise(unet, seed=11).save_pretrained(tmp_path / "unet")
    config = from_mapping(UNetConfig, read_config(tmp_path / "unet"))
    assert (config.heads, config.depths, config.has_attention(0, "down")) == ((1, 2), (1, 2), False)
    shapes = unet_shapes(UNet(config), text_tokens=7, visual_tokens=4, vision_dim=8)
    assert_same_state(load_params(tmp_path / "unet", shapes), unet)

    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=2, scaling_factor=0.13025,
    )  # fmt: skip
    common.randomise(vae, seed=12).save_pretrained(tmp_path / "vae")
    config = from_mapping(VAEConfig, read_config(tmp_path / "vae"))
    assert config.scaling_factor == 0.13025
    shapes = param_shapes(VAE(config).init, np.zeros((1, 16, 16, 3), np.float32))
    assert_same_state(load_params(tmp_path / "vae", shapes), vae)


def test_we_read_their_text_and_image_towers(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=50, **sizes))
    common.randomise(text, seed=13).save_pretrained(tmp_path / "text_encoder")
    config = from_mapping(CLIPTextConfig, read_config(tmp_path / "text_encoder"))
    shapes = param_shapes(CLIPText(config).init, np.zeros((1, 77), np.int32))
    assert_same_state(load_params(tmp_path / "text_encoder", shapes), text)

    image = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(image_size=16, patch_size=4, projection_dim=6, **sizes)
    )
    common.randomise(image, seed=14).save_pretrained(tmp_path / "image_encoder")
    config = from_mapping(ViTConfig, read_config(tmp_path / "image_encoder"))
    shapes = param_shapes(ViT(config).init, np.zeros((1, 16, 16, 3), np.float32))
    assert_same_state(load_params(tmp_path / "image_encoder", shapes), image)
