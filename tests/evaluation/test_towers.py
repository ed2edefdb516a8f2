"""CLIP-T, CLIP-I and DINO-I against transformers' own models, preprocessing included, on random weights.

Tolerance 1e-5 for a cosine in float32: the two sides add in another order, which leaves some 1e-7.
"""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'parity'")

import transformers  # noqa: E402
from PIL import Image  # noqa: E402

from realcustom_jax.common.errors import UserError  # noqa: E402
from realcustom_jax.evaluation import metrics  # noqa: E402
from realcustom_jax.evaluation.dino import load_dino  # noqa: E402
from realcustom_jax.inputs.encoder_pair import load_pair  # noqa: E402
from realcustom_jax.inputs.preprocess import CLIP, DINO, segment  # noqa: E402
from realcustom_jax.inputs.tokenize import save_tokenizer  # noqa: E402

TOLERANCE = 1e-5
SIDES = ((300, 451), (640, 333), (224, 224), (90, 121))  # high and wide, some smaller than the crop
TEXTS = ["a cat on the beach", "a robot in the snow and a cup", "fish", "a teapot at sunset"]


def randomise(module, seed):
    """Weights large enough that images differ: their cosines must not all be near 1."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            value = rng.standard_normal(parameter.shape)
            if name != "logit_scale":
                scale = name.endswith("weight") and parameter.ndim == 1
                value = value * 0.3 + scale if parameter.ndim < 2 else value * parameter[0].numel() ** -0.5
            parameter.copy_(torch.from_numpy(np.asarray(value, np.float32)))
    return module.eval()


@pytest.fixture(scope="module")
def images():
    """Noise with large shapes, so that cropping and resampling both count."""
    rng = np.random.default_rng(5)
    pictures = []
    for height, width in SIDES:
        coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
        noise = rng.integers(-20, 21, (height, width, 3))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.NEAREST))
        pictures.append(np.clip(smooth + noise, 0, 255).astype(np.uint8))
    return pictures


@pytest.fixture(scope="module")
def clip(tmp_path_factory, micro_tokenizer):
    """A small CLIP with ViT-B/32's patches and 224 pixels: its folder and its transformers model."""
    folder = tmp_path_factory.mktemp("clip")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.CLIPConfig(
        text_config={
            **sizes, "vocab_size": len(micro_tokenizer), "eos_token_id": micro_tokenizer.eos_token_id,
            "bos_token_id": micro_tokenizer.bos_token_id,
        },
        vision_config={**sizes, "image_size": 224, "patch_size": 32},
        projection_dim=24,
    )  # fmt: skip
    model = randomise(transformers.CLIPModel(config), seed=6)
    model.save_pretrained(folder)
    save_tokenizer(micro_tokenizer, folder)
    return folder, model


def unit(x) -> np.ndarray:
    x = x.detach().numpy()
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_clip_scores_equal_transformers(clip, images, micro_tokenizer):
    folder, model = clip
    pixels = transformers.CLIPImageProcessor()([Image.fromarray(i) for i in images], return_tensors="pt")
    tokens = micro_tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        image_vectors = unit(model.get_image_features(**pixels))
        text_vectors = unit(model.get_text_features(input_ids=tokens.input_ids))
    pair = load_pair(folder)
    ours = pair.image.directions(images)
    expected_t, expected_i = (
        np.diag(image_vectors @ text_vectors.T),
        (image_vectors @ image_vectors[:3].T).mean(axis=1),
    )
    assert np.ptp(expected_t) > 0.05 and np.ptp(image_vectors @ image_vectors.T) > 0.01
    found_t = metrics.clip_t(ours, pair.text.directions(TEXTS))
    np.testing.assert_allclose(found_t, expected_t, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(metrics.image_similarity(ours, ours[:3]), expected_i, rtol=0, atol=TOLERANCE)


def test_dino_scores_equal_transformers(tmp_path, images):
    """With the processor set to DINO's own preprocessing, which is not transformers' default."""
    config = transformers.ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, patch_size=16
    )
    model = randomise(transformers.ViTModel(config), seed=7)
    model.save_pretrained(tmp_path)
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 256}, image_mean=(0.485, 0.456, 0.406), image_std=(0.229, 0.224, 0.225)
    )
    with torch.no_grad():
        pixels = processor([Image.fromarray(image) for image in images], return_tensors="pt")
        image_vectors = unit(model(**pixels).last_hidden_state[:, 0])
    ours = load_dino(tmp_path).directions(images)
    expected = image_vectors @ image_vectors.T
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(ours @ ours.T, expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(ours, image_vectors, rtol=0, atol=TOLERANCE)


def test_odd_crop_margins_round_as_in_each_library():
    """An image of 224×227 has a margin of 3: transformers begins at 1, torchvision at round(1.5) = 2."""
    image = np.broadcast_to(np.arange(227, dtype=np.uint8)[None, :, None], (224, 227, 3))
    assert CLIP(image)[0, 0, 0] == np.float32(1 / 127.5 - 1)
    wide = np.broadcast_to((np.arange(259) // 2).astype(np.uint8)[None, :, None], (256, 259, 3))
    # A margin of 35: torchvision begins at round(17.5) = 18, the next even number; 17 would give 8.
    assert DINO(wide)[0, 0, 0] == np.float32(9 / 127.5 - 1)


def test_segment_puts_subject_on_white():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    alone = segment(image, np.array([[1, 0], [0.5, 0]]))
    assert alone.tolist() == [[[0, 1, 2], [255] * 3], [[6, 7, 8], [255] * 3]]


def test_wrong_network_types_raise(tmp_path, clip):
    with pytest.raises(UserError, match="type 'vit'"):
        load_dino(clip[0])
    vision = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, patch_size=32
        )
    )
    vision.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "clip_vision_model"
    with pytest.raises(UserError, match="not a whole CLIP"):
        load_pair(tmp_path)
