"""Adaptive scoring (eq. 5–10) against a float64 transcription, and its place in the UNet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.models.attention import CrossAttention, VisualControl
from realcustom_jax.models.scoring import AdaptiveScoring, TokenSelection, keep_top_tokens

B, N, TEXT_TOKENS, SIDE = 2, 12, 7, 4
C_VISUAL, C_TEXT, C_LATENT, HIDDEN = 6, 5, 4, 8


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def numpy_scores(p: dict, visual, text, latents, text_weight, visual_weight) -> np.ndarray:
    """Eq. 5–8 for one sample, in the paper's order: pool, repeat and concatenate, score, fuse by time."""

    def mlp(p, x):
        hidden = np.maximum(x @ p["linear_1"]["kernel"] + p["linear_1"]["bias"], 0.0)
        return (hidden @ p["linear_2"]["kernel"] + p["linear_2"]["bias"])[:, 0]

    pixels = latents.reshape(-1, latents.shape[-1])
    c_text = softmax(text @ p["text_attention"]["kernel"], axis=0).T @ text  # (1, C_t)
    c_visual = softmax(pixels @ p["visual_attention"]["kernel"], axis=0).T @ pixels  # (1, C_z)
    s_text = mlp(p["text_score"], np.hstack([visual, np.repeat(c_text, len(visual), axis=0)]))
    s_visual = mlp(p["visual_score"], np.hstack([visual, np.repeat(c_visual, len(visual), axis=0)]))
    return softmax(text_weight * s_text + visual_weight * s_visual, axis=0)


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape)

    def score(context):
        return {
            "linear_1": {"kernel": draw(C_VISUAL + context, HIDDEN), "bias": draw(HIDDEN)},
            "linear_2": {"kernel": draw(HIDDEN, 1), "bias": draw(1)},
        }

    params = {
        "text_attention": {"kernel": draw(C_TEXT, 1)},
        "visual_attention": {"kernel": draw(C_LATENT, 1)},
        "text_score": score(C_TEXT),
        "visual_score": score(C_LATENT),
    }
    inputs = draw(B, N, C_VISUAL), draw(B, TEXT_TOKENS, C_TEXT), draw(B, SIDE, SIDE, C_LATENT)
    return params, inputs


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_scores_equal_equations_5_to_8(case, alpha):
    """Tolerance 1e-5: scores are float32 shares of 1, through logits of about 30."""
    params, inputs = case
    weights = 1.0 - np.sqrt([alpha, 0.5]), np.sqrt([alpha, 0.5])  # another time for each sample
    token_selection = TokenSelection(jnp.ones(B), *(jnp.asarray(w, jnp.float32) for w in weights))
    scores = AdaptiveScoring(HIDDEN).apply({"params": params}, *inputs, token_selection)
    wanted = [numpy_scores(params, *(x[i] for x in inputs), weights[0][i], weights[1][i]) for i in range(B)]
    np.testing.assert_allclose(scores, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("gamma", "count", "kept"),
    [(1.0, 10, 10), (0.7, 10, 7), (0.8, 16, 12), (0.3, 10, 3), (0.79, 10, 7), (0.05, 10, 1), (1e-6, 10, 1)],
)
def test_keep_top_tokens_keeps_floor_of_gamma_n(gamma, count, kept):
    """0.7·10 is 6.9999998 in float32 and must give 7; the kept tokens are the best ones."""
    scores = np.random.default_rng(1).permutation(count)[None] / count
    bias = np.asarray(keep_top_tokens(jnp.asarray(scores, jnp.float32), jnp.full((1,), gamma, jnp.float32)))[
        0
    ]
    assert set(np.flatnonzero(bias == 0.0)) == set(np.argsort(-scores[0])[:kept])
    assert np.all(np.isneginf(bias[bias != 0.0]))


def test_gamma_is_per_sample_and_ties_keep_earlier_token():
    bias = keep_top_tokens(jnp.full((2, 4), 0.25), jnp.asarray([0.5, 0.75]))
    assert (np.asarray(bias) == 0.0).tolist() == [[True, True, False, False], [True, True, True, False]]


def test_minus_infinity_bias_equals_gather():
    """Attention with the bias over all tokens against attention over the kept tokens alone (float32 sums of
    a dozen terms in another order: 1e-5)."""
    rng = np.random.default_rng(2)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    module = CrossAttention(features=8, heads=2, visual=True)
    x, text, visual = draw(1, 9, 8), draw(1, 3, 5), draw(1, 1, 10, 6)
    params = module.init(jax.random.key(0), text, visual, method="encode")
    params["params"] |= {"to_q": {"kernel": draw(8, 8)}, "to_out_0": {"kernel": draw(8, 8), "bias": draw(8)}}
    scores = jax.nn.softmax(draw(1, 10))
    bias = keep_top_tokens(scores, jnp.asarray([0.4]))

    def attend(tokens, scale, bias):
        context = module.apply(params, text, tokens, method="encode")
        return module.apply(params, x, context, VisualControl(jnp.ones((1, 1, 9)), scale, bias), None)[0]

    kept = np.sort(np.argsort(-np.asarray(scores[0]))[:4])
    hidden = attend(visual, 1.0 + scores[None], bias[None])
    gathered = attend(visual[:, :, kept], 1.0 + scores[None][..., kept], None)
    np.testing.assert_allclose(hidden, gathered, atol=1e-5)
    assert np.abs(attend(visual, 1.0 + scores[None], None) - gathered).max() > 1e-2


@pytest.fixture(scope="module")
def inputs():
    """Arguments of `micro_denoise` up to the features: two samples, one subject each."""
    rng = np.random.default_rng(3)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return draw(2, 8, 8, 4), jnp.asarray([700.0, 200.0]), draw(2, 77, 16), (draw(2, 1, 16, 16),)


@pytest.fixture(scope="module")
def token_selection():
    half = jnp.full((2,), 0.5)
    return TokenSelection(half, half, half)


def test_prediction_gradients_reach_both_score_networks(micro_denoise, micro_params, inputs, token_selection):
    """Training moves text_attention, visual_attention and both MLPs: gradients far above rounding."""
    unet = micro_params["unet"]

    def objective(scoring):
        return jnp.square(
            micro_denoise({**unet, "scoring": scoring}, *inputs, token_selection=token_selection)[0]
        ).mean()

    gradients = jax.jit(jax.grad(objective))(unet["scoring"])
    assert gradients.keys() == {"text_attention", "visual_attention", "text_score", "visual_score"}
    for name, tree in gradients.items():
        kernels = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim > 1]
        assert kernels and all(np.abs(kernel).max() > 1e-7 for kernel in kernels), name


def test_latents_outside_mask_do_not_change_scores(micro_denoise, micro_params, inputs, token_selection):
    """In the generation branch only the subject's part of z_t judges the subject (exact: the rest is 0)."""
    latents, t, text, features = inputs
    masks = jnp.zeros((2, 1, 8, 8)).at[:, :, 2:6, 2:6].set(1.0)
    noise = jnp.asarray(np.random.default_rng(4).standard_normal(latents.shape), jnp.float32)
    scope = masks[:, 0, :, :, None]

    def run(latents, masks):
        out, aux = micro_denoise(
            micro_params["unet"], latents, t, text, features, masks=masks, token_selection=token_selection
        )
        return np.asarray(out), np.asarray(aux.scores)

    out, scores = run(latents, masks)
    outside, outside_scores = run(latents + noise * (1 - scope), masks)
    _, inside_scores = run(latents + noise * scope, masks)
    _, unmasked_scores = run(latents + noise * (1 - scope), jnp.ones_like(masks))
    np.testing.assert_array_equal(outside_scores, scores)
    assert np.abs(outside - out).max() > 1e-2  # while the prediction does see them
    assert np.abs(inside_scores - scores).max() > 1e-4
    assert np.abs(unmasked_scores - scores).max() > 1e-4


def test_unet_pass_reports_scores_of_equations(micro_denoise, micro_params, inputs, token_selection):
    """aux.scores of two subjects, each with its own mask, against the transcription (1e-5)."""
    latents, t, text, (features,) = inputs
    rng = np.random.default_rng(5)
    features = jnp.concatenate(
        [features, jnp.asarray(rng.standard_normal(features.shape), jnp.float32)], axis=1
    )
    masks = jnp.asarray(rng.uniform(size=(2, 2, 8, 8)), jnp.float32)
    _, aux = micro_denoise(
        micro_params["unet"], latents, t, text, (features,), masks=masks, token_selection=token_selection
    )
    p = jax.tree.map(np.float64, micro_params["unet"])
    projector = p["encoder_hidden_states_vision_projection"]
    tokens = np.float64(features) @ projector["proj"]["kernel"] + projector["proj"]["bias"]
    tokens = (tokens - tokens.mean(-1, keepdims=True)) / np.sqrt(tokens.var(-1, keepdims=True) + 1e-6)
    tokens = tokens * projector["norm"]["scale"] + projector["norm"]["bias"]
    for b in range(2):
        for r in range(2):
            inside = np.float64(latents[b]) * np.float64(masks[b, r])[..., None]
            wanted = numpy_scores(p["scoring"], tokens[b, r], np.float64(text[b]), inside, 0.5, 0.5)
            np.testing.assert_allclose(aux.scores[b, r], wanted, atol=1e-5)
