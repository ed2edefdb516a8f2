"""Cross-attention with text and subjects (eq. 4 and 12) against a float64 transcription."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.models.attention import CrossAttention, VisualControl

B, PIXELS, TEXT_TOKENS, N, HEADS, FEATURES = 2, 9, 5, 6, 2, 8
# float32 sums of at most 20 products of size 1 against float64
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def numpy_heads(x: np.ndarray) -> list[np.ndarray]:
    return np.split(x, HEADS, axis=-1)


def numpy_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """softmax(QKᵀ/√d) V of each head for one sample, concatenated, and the probabilities' mean over heads."""
    outs, probabilities = [], []
    for qh, kh, vh in zip(numpy_heads(q), numpy_heads(k), numpy_heads(v), strict=True):
        e = np.exp(qh @ kh.T / np.sqrt(qh.shape[-1]))
        probabilities.append(e / e.sum(axis=-1, keepdims=True))
        outs.append(probabilities[-1] @ vh)
    return np.concatenate(outs, axis=-1), np.mean(probabilities, axis=0)


def numpy_cross_attention(p: dict, x, text, visual, strength) -> np.ndarray:
    """Eq. 12 for one sample: visual (R, N, C_i), strength (R, pixels) = M̂."""
    q = x @ p["to_q"]["kernel"]
    out, _ = numpy_attention(q, text @ p["to_k"]["kernel"], text @ p["to_v"]["kernel"])
    for tokens, mask in zip(visual, strength, strict=True):
        k, v = tokens @ p["to_k_vision"]["kernel"], tokens @ p["to_v_vision"]["kernel"]
        out = out + mask[:, None] * numpy_attention(q, k, v)[0]
    return out @ p["to_out_0"]["kernel"] + p["to_out_0"]["bias"]


MODULE = CrossAttention(FEATURES, HEADS, visual=True)


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape)

    sizes = {"to_q": FEATURES, "to_k": 7, "to_v": 7, "to_k_vision": 5, "to_v_vision": 5, "to_out_0": FEATURES}
    params = {name: {"kernel": 0.5 * draw(size, FEATURES)} for name, size in sizes.items()}
    params["to_out_0"]["bias"] = draw(FEATURES)
    return params, draw(B, PIXELS, FEATURES), draw(B, TEXT_TOKENS, 7), draw(B, 2, N, 5)


@jax.jit
def run(params, x, text, visual=None, strength=None, scale=None, words=None):
    context = MODULE.apply({"params": params}, text, visual, method="encode")
    control = None if strength is None else VisualControl(strength, scale)
    return MODULE.apply({"params": params}, x, context, control, words)


def expected(case, subjects: int, strength) -> np.ndarray:
    params, x, text, visual = case
    return np.stack(
        [numpy_cross_attention(params, x[i], text[i], visual[i, :subjects], strength[i]) for i in range(B)]
    )


def test_text_only_equals_transcription(case):
    params, x, text, _ = case
    out, maps = run(params, x, text)
    np.testing.assert_allclose(out, expected(case, 0, np.zeros((B, 0, PIXELS))), **TOLERANCE)
    assert maps is None


def test_visual_tokens_without_control_have_no_effect(case):
    """A context with visual tokens, run without control, gives the text-only result."""
    params, x, text, visual = case
    np.testing.assert_array_equal(run(params, x, text, visual)[0], run(params, x, text)[0])


@pytest.mark.parametrize("subjects", [1, 2])
def test_masked_subjects_equal_equation_12(case, subjects):
    """Eq. 12, masks with zeros, ones and values between; the second sample's last subject has mask 0."""
    params, x, text, visual = case
    strength = np.random.default_rng(1).choice([0.0, 0.25, 1.0], size=(B, subjects, PIXELS))
    strength[1, -1] = 0.0
    out, _ = run(params, x, text, visual[:, :subjects], strength)
    np.testing.assert_allclose(out, expected(case, subjects, strength), **TOLERANCE)


def test_mask_of_ones_equals_equation_4(case):
    """Eq. 12 with M̂ = 1 is eq. 4: text attention plus visual attention, written without a mask."""
    params, x, text, visual = case
    out, _ = run(params, x, text, visual[:, :1], np.ones((B, 1, PIXELS)))
    wanted = []
    for i in range(B):
        q = x[i] @ params["to_q"]["kernel"]
        both = sum(
            numpy_attention(q, tokens @ params[k]["kernel"], tokens @ params[v]["kernel"])[0]
            for tokens, k, v in ((text[i], "to_k", "to_v"), (visual[i, 0], "to_k_vision", "to_v_vision"))
        )
        wanted.append(both @ params["to_out_0"]["kernel"] + params["to_out_0"]["bias"])
    np.testing.assert_allclose(out, wanted, **TOLERANCE)


def test_scaling_keys_and_values_equals_scaling_tokens(case):
    """Eq. 9, f ∘ (1 + S): rows of K and V times 1 + S against tokens multiplied before the projection."""
    params, x, text, visual = case
    scale = 1.0 + np.random.default_rng(2).uniform(size=(B, 2, N))
    ones = np.ones((B, 2, PIXELS))
    scaled, _ = run(params, x, text, visual, ones, scale)
    before, _ = run(params, x, text, visual * scale[..., None], ones)
    np.testing.assert_allclose(scaled, before, **TOLERANCE)
    assert np.abs(scaled - run(params, x, text, visual, ones)[0]).max() > 1e-2


def test_word_maps_average_heads_and_sum_tokens(case):
    params, x, text, _ = case
    words = np.zeros((B, 2, TEXT_TOKENS))
    words[:, 0, 1:3] = 1.0  # a word of two tokens
    words[:, 1, 4] = 1.0
    _, maps = run(params, x, text, words=words)
    for i in range(B):
        q, k = x[i] @ params["to_q"]["kernel"], text[i] @ params["to_k"]["kernel"]
        probabilities = numpy_attention(q, k, k)[1]
        np.testing.assert_allclose(maps[i, 0], probabilities[:, 1] + probabilities[:, 2], **TOLERANCE)
        np.testing.assert_allclose(maps[i, 1], probabilities[:, 4], **TOLERANCE)


def test_empty_slot_has_no_effect(micro_denoise, micro_params):
    """UNet pass with slots (subject, empty) against the subject alone, and (empty, empty) against text only.

    An empty slot adds 0 · attention: 1e-5 for another order of float32 sums in another compiled program.
    """
    rng = np.random.default_rng(3)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    unet, latents, t, text = (
        micro_params["unet"],
        draw(2, 8, 8, 4),
        jnp.asarray([500.0, 9.0]),
        draw(2, 77, 16),
    )
    features = draw(2, 2, 16, 16)
    flags = jnp.asarray([[1.0, 0.0], [0.0, 0.0]])

    def predict(features, flags, masks):
        return np.asarray(micro_denoise(unet, latents, t, text, features, flags, masks)[0])

    masks = jnp.asarray(rng.uniform(size=(2, 2, 4, 4)), jnp.float32)
    padded = predict((features,), flags, masks)
    alone = predict((features[:, :1],), flags[:, :1], masks[:, :1])
    text_only = predict(None, None, None)
    np.testing.assert_allclose(padded, alone, atol=1e-5)
    np.testing.assert_allclose(padded[1], text_only[1], atol=1e-5)
    assert np.abs(padded[0] - text_only[0]).max() > 1e-2
    # the content of the empty slot has no effect at all
    other = features.at[0, 1].add(1.0).at[1].add(1.0)
    np.testing.assert_array_equal(predict((other,), flags, masks), padded)


def test_no_mask_equals_mask_of_ones_in_unet(micro_denoise, micro_params):
    rng = np.random.default_rng(4)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    args = (
        draw(2, 8, 8, 4),
        jnp.asarray([500.0, 9.0]),
        draw(2, 77, 16),
        (draw(2, 2, 16, 16),),
        jnp.ones((2, 2)),
    )
    without, _ = micro_denoise(micro_params["unet"], *args)
    ones, _ = micro_denoise(micro_params["unet"], *args, masks=jnp.ones((2, 2, 4, 4)))
    np.testing.assert_allclose(without, ones, atol=1e-5)  # two compiled programs, float32


def test_scores_keep_precision_in_bfloat16():
    """1 + S just above 1 (1.0035, which is 1 in bfloat16) still moves sharp attention as eq. 9 says.

    Two tokens with equal logits of 28 and values ±1: without scores the output is 0, with them exactly
    p − 1.0035 (1 − p), p = 1/(1 + e^(28·0.0035)), about −0.05. In bfloat16 numbers near ½ are 0.002 apart.
    """
    module = CrossAttention(2, 1, visual=True, dtype=jnp.bfloat16)
    first, second, zero = np.diag([1.0, 0.0]), np.diag([0.0, 1.0]), np.zeros((2, 2))
    kernels = {"to_q": first, "to_k": zero, "to_v": zero, "to_k_vision": first, "to_v_vision": second}
    params = {name: {"kernel": jnp.asarray(kernel)} for name, kernel in kernels.items()}
    params["to_out_0"] = {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}
    x = jnp.asarray([[[28.0, 0.0]]]) * 2**0.5  # attention divides by √2
    tokens = jnp.asarray([[[[1.0, 1.0], [1.0, -1.0]]]])
    context = module.apply({"params": params}, jnp.zeros((1, 1, 2)), tokens, method="encode")
    control = VisualControl(jnp.ones((1, 1, 1)), jnp.asarray([[[1.0, 1.0035]]]))
    result = float(module.apply({"params": params}, x, context, control, None)[0][0, 0, 1])
    p = 1.0 / (1.0 + np.exp(28.0 * 0.0035))
    np.testing.assert_allclose(result, p - 1.0035 * (1.0 - p), atol=0.003)
