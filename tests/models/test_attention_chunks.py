"""Attention in chunks of queries against unchunked attention, and eq. 9 in bfloat16 at 729 tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.models import attention as module
from realcustom_jax.models.attention import (
    attend,
    attention,
    attention_probabilities,
    average_attention,
    pixel_attention,
)

PIXELS = 1100  # no multiple of a chunk


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_BYTES", 4 * 2 * 2 * PIXELS * 300)  # of 300 queries


def test_chunked_values_and_gradients_equal_unchunked(small_chunks):
    """To 1e-5: the same float32 sums per query; the gradients of keys and values are added chunk by chunk."""
    q, k, v, weights = arrays(*[(2, PIXELS, 2, 8)] * 4)

    def loss(function, *x):
        out = function(*x)
        return (out * weights).sum(), out

    def whole(q, k, v):
        return attend(attention_probabilities(q, k), v)

    found, wanted = (
        jax.jit(jax.value_and_grad(lambda *x, f=f: loss(f, *x), argnums=(0, 1, 2), has_aux=True))(q, k, v)
        for f in (attention, whole)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), found[1], wanted[1])
    np.testing.assert_allclose(found[0][1], wanted[0][1], atol=1e-5, rtol=1e-5)
    assert "scan" in str(jax.make_jaxpr(attention)(q, k, v)), "attention is not chunked"


def test_chunked_attention_with_gain_and_bias_equals_numpy(small_chunks):
    q, k, v = arrays((2, 1, PIXELS, 2, 8), (2, 3, 30, 2, 8), (2, 3, 30, 2, 8))
    (gain,) = arrays((2, 3, 1, 1, 30), seed=1)
    bias = jnp.where(gain > 0.5, -jnp.inf, 0.0)
    found = attention(q, k, v, bias, 1 + 0.1 * gain)
    logits = np.einsum("bqhd,brkhd->brhqk", q[:, 0], k) * 8**-0.5 * (1 + 0.1 * gain) + bias
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares = shares / shares.sum(-1, keepdims=True) * (1 + 0.1 * np.asarray(gain))
    np.testing.assert_allclose(found, np.einsum("brhqk,brkhd->brqhd", shares, v), atol=1e-5, rtol=1e-5)


def test_chunked_average_attention_equals_unchunked(small_chunks):
    q, k = arrays((2, PIXELS, 2, 8), (2, PIXELS, 2, 8))
    whole = attention_probabilities(q, k).mean(axis=1)
    np.testing.assert_allclose(average_attention(q, k), whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("gradients", [False, True])
def test_attention_memory_stays_below_full_logits(gradients):
    """SD1.5's first level at 512 pixels: 4096² logits of 8 heads are 512 MiB, a chunk is an eighth of it."""
    x = jax.ShapeDtypeStruct((1, 4096, 8, 40), jnp.float32)

    def run(q, k, v):
        return pixel_attention(q, k, v, None)

    program = jax.grad(lambda *x: run(*x).sum(), argnums=(0, 1, 2)) if gradients else run
    memory = jax.jit(program).lower(x, x, x).compile().memory_analysis()
    whole = 4 * 8 * 4096**2
    assert memory.temp_size_in_bytes < whole * (0.75 if gradients else 0.375)


@pytest.mark.parametrize("side", ["keys", "values"])
def test_bfloat16_keeps_scores_of_729_tokens(side):
    """1 + S of eq. 9, S of about 1/729, against float64: the error is small beside what S changes.

    Keys and values are tested separately, because an error in one could hide behind the other.
    """
    tokens, heads, channels = 729, 2, 8
    rng = np.random.default_rng(0)
    score = rng.dirichlet(np.ones(tokens)).astype(np.float32)  # sums to 1
    q = rng.standard_normal((1, 4, heads, channels)).astype(np.float32)
    k = rng.standard_normal((1, tokens, heads, channels)).astype(np.float32)
    q, k = (np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in (q, 4 * k))
    v = np.ones_like(k)
    if side == "values":
        k = np.zeros_like(k)
    else:
        v = np.broadcast_to((k[..., :1] > 0), k.shape).astype(np.float64)

    def exact(gain_k, gain_v):
        logits = np.einsum("bqhd,bkhd->bhqk", q, k) * channels**-0.5 * gain_k
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        shares = shares / shares.sum(-1, keepdims=True) * gain_v
        return np.einsum("bhqk,bkhd->bqhd", shares, v)

    gain = 1.0 + score.astype(np.float64)
    wanted, without = exact(gain, gain), exact(*((gain, 1.0) if side == "values" else (1.0, gain)))
    half = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    found = np.asarray(attention(*half, None, jnp.asarray(1.0 + score)), np.float64)
    error, effect = np.abs(found - wanted).max(), np.abs(without - wanted).max()
    assert error < 0.02 * effect, (error, effect)
