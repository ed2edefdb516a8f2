"""Parameter paths and layouts ↔ PyTorch's."""

import numpy as np
import pytest

from realcustom_jax.common.errors import UserError
from realcustom_jax.weights.keys import check_keys, from_torch, to_torch, torch_key, torch_shape


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("conv_in/kernel", "conv_in.weight"),
        ("time_embedding/linear_1/kernel", "time_embedding.linear_1.weight"),
        ("add_embedding/linear_2/bias", "add_embedding.linear_2.bias"),
        ("down_blocks_0/resnets_0/norm1/scale", "down_blocks.0.resnets.0.norm1.weight"),
        ("up_blocks_11/upsamplers_0/conv/bias", "up_blocks.11.upsamplers.0.conv.bias"),
        (
            "down_blocks_1/attentions_0/transformer_blocks_0/attn2/to_out_0/kernel",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0.weight",
        ),
        (
            "mid_block/attentions_0/transformer_blocks_3/ff/net_0/proj/kernel",
            "mid_block.attentions.0.transformer_blocks.3.ff.net.0.proj.weight",
        ),
        (
            "up_blocks_0/attentions_2/transformer_blocks_0/attn2/to_k_vision/kernel",
            "up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_k_vision.weight",
        ),
        (
            "text_model/embeddings/token_embedding/embedding",
            "text_model.embeddings.token_embedding.weight",
        ),
        ("vision_model/embeddings/class_embedding", "vision_model.embeddings.class_embedding"),
        (
            "vision_model/encoder/layers_1/layer_norm1/scale",
            "vision_model.encoder.layers.1.layer_norm1.weight",
        ),
        ("scoring/text_score/linear_2/kernel", "scoring.text_score.linear_2.weight"),
    ],
)
def test_paths_become_diffusers_and_transformers_keys(path, key):
    assert torch_key(path) == key


def test_kernels_are_transposed_to_pytorch_layout():
    """A dense kernel applied as x Wᵀ, and a convolution's kernel as (out, in, height, width)."""
    dense = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(to_torch("a/kernel", dense), dense.T)
    conv = np.arange(3 * 2 * 5 * 4.0).reshape(3, 2, 5, 4)  # height, width, in, out
    assert to_torch("a/kernel", conv)[3, 4, 2, 1] == conv[2, 1, 4, 3]
    table = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(to_torch("a/embedding", table), table)


@pytest.mark.parametrize("shape", [(2, 3), (3, 2, 5, 4)])
def test_from_torch_undoes_to_torch(shape):
    value = np.random.default_rng(0).standard_normal(shape)
    there = to_torch("a/kernel", value)
    assert there.shape == torch_shape("a/kernel", shape) != shape
    np.testing.assert_array_equal(from_torch("a/kernel", there), value)
    assert torch_shape("a/bias", (3,)) == (3,)


def test_check_keys_lists_every_difference():
    wanted = {"a": (1, 2), "b": (3,), "c": (4,)}
    with pytest.raises(UserError) as error:
        check_keys("FILE", wanted, {"a": (2, 1), "c": (4,), "d": (5,)})
    text = str(error.value)
    assert text.startswith("FILE does not fit the model")
    for part in ("1 missing: b", "1 unexpected: d", "1 mis-shaped: a (model (1, 2), file (2, 1))"):
        assert part in text
    assert "c (" not in text


def test_check_keys_shortens_long_lists():
    """Only the first 20 keys are listed."""
    with pytest.raises(UserError, match=r"20 missing: k00, .*, k19$"):
        check_keys("FILE", {f"k{i:02d}": (1,) for i in range(20)}, {})
    with pytest.raises(UserError, match=r"32 missing: k00, .*, k19 and 12 more$"):
        check_keys("FILE", {f"k{i:02d}": (1,) for i in range(32)}, {})


def test_check_keys_accepts_equal_keys():
    assert check_keys("FILE", {"a": (1, 2)}, {"a": (1, 2)}) is None
