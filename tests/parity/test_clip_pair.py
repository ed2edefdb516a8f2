"""A whole CLIP as the matcher of `words="auto"`: its logits are transformers' own."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the extra 'parity'")

import transformers  # noqa: E402

import realcustom_jax as rc  # noqa: E402
from realcustom_jax.common.errors import UserError  # noqa: E402
from realcustom_jax.inputs.encode import resolve_auto_words  # noqa: E402
from realcustom_jax.inputs.encoder_pair import load_pair  # noqa: E402
from realcustom_jax.inputs.requests import Request  # noqa: E402
from realcustom_jax.inputs.tokenize import save_tokenizer, tokenize  # noqa: E402

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))

PHRASES = ["cat", "dog", "two-tone robot"]


@pytest.fixture(scope="module")
def clip(micro_tokenizer):
    sizes = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {"vocab_size": len(micro_tokenizer), "eos_token_id": micro_tokenizer.eos_token_id}
    config = transformers.CLIPConfig(
        text_config={**sizes, **words},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    model = common.randomise(transformers.CLIPModel(config), seed=4)
    model.logit_scale.fill_(2.5)
    return model


@pytest.fixture(scope="module")
def folder(clip, micro_tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    clip.save_pretrained(path)
    save_tokenizer(micro_tokenizer, path)
    return path


def test_clip_logits_equal_transformers(clip, folder, micro_tokenizer):
    """Preprocessing included: theirs resizes the short side bicubically and crops the centre.

    The images already have the model's short side, so that no two resamplings are compared; 1e-5 is
    float32 rounding through two small towers.
    """
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (32, width, 3), np.uint8) for width in (32, 48)]
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    pixels = processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
    ids = torch.from_numpy(tokenize(micro_tokenizer, [f"a photo of a {phrase}" for phrase in PHRASES])).long()
    expected = clip(input_ids=ids, pixel_values=pixels).logits_per_image
    pair = load_pair(folder)
    np.testing.assert_allclose(pair.logit_scale, np.exp(2.5), rtol=1e-6)
    common.assert_close(pair.logits(images, PHRASES), expected, tolerance=1e-5)


def test_matcher_chooses_words_for_unpaired_model(micro_pipe, folder):
    """With `rc.load(..., matcher=CLIP)`, CLIP chooses the word instead of the model's own encoders."""
    image = np.full((16, 16, 3), 200, np.uint8)
    prompt = "a dog and a cat on the beach"
    pair = load_pair(folder)
    best = ("dog", "cat", "beach")[int(pair.logits([image], ["dog", "cat", "beach"]).argmax())]
    lenient = SimpleNamespace(
        logits=lambda *args: 1e-3 * pair.logits(*args),
        vocabulary=pair.vocabulary,
        none=pair.none,
        rules=pair.rules,
    )
    request = Request(prompt, (rc.Subject(image, "auto"),))
    [chosen] = resolve_auto_words(micro_pipe.replace(matcher=lenient), [request])
    assert chosen.subjects[0].words == best


def test_non_clip_matcher_raises(folder, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(UserError, match="has model_type 'siglip': it is not a whole CLIP"):
        load_pair(tmp_path)
