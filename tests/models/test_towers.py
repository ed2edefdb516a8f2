"""VAE, CLIP text encoder and vision transformer against float64 transcriptions; initial parameters."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.models.clip_text import CLIPText
from realcustom_jax.models.init import init_params, param_shapes
from realcustom_jax.models.vit import ViT, ViTConfig
from realcustom_jax.weights.keys import flatten, unflatten

# float32 through two transformer layers with normed inputs, values of size 1, against float64
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}


# ---------------------------------------------------------------- the transformer layers, in numpy


def dense(p: dict, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p.get("bias", 0.0)


def layer_norm(p: dict, x: np.ndarray, eps: float) -> np.ndarray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * p["scale"] + p["bias"]


def quick_gelu(x: np.ndarray) -> np.ndarray:
    return x / (1.0 + np.exp(-1.702 * x))


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def encoder_layer(p: dict, x: np.ndarray, heads: int, act, eps: float, causal: bool) -> np.ndarray:
    """One pre-norm layer on one sequence (n, C)."""
    y = layer_norm(p["layer_norm1"], x, eps)
    q, k, v = (np.split(dense(p["self_attn"][f"{name}_proj"], y), heads, axis=-1) for name in "qkv")
    outs = []
    for qh, kh, vh in zip(q, k, v, strict=True):
        e = np.exp(qh @ kh.T / np.sqrt(qh.shape[-1]))
        e = np.tril(e) if causal else e
        outs.append(e / e.sum(-1, keepdims=True) @ vh)
    x = x + p.get("layer_scale1", 1.0) * dense(p["self_attn"]["out_proj"], np.concatenate(outs, axis=-1))
    y = layer_norm(p["layer_norm2"], x, eps)
    hidden = act(dense(p["mlp"]["fc1"], y))
    return x + p.get("layer_scale2", 1.0) * dense(p["mlp"]["fc2"], hidden)


def float64(tree):
    return jax.tree.map(np.float64, tree)


# ---------------------------------------------------------------- text


def numpy_text(p: dict, config, ids: np.ndarray) -> list[np.ndarray]:
    """Hidden states of one prompt, the last one normed."""
    model = p["text_model"]
    embeddings = model["embeddings"]
    x = embeddings["token_embedding"]["embedding"][ids]
    states = [x + embeddings["position_embedding"]["embedding"][: len(ids)]]
    for i in range(config.num_hidden_layers):
        layer = model["encoder"][f"layers_{i}"]
        states.append(
            encoder_layer(
                layer, states[-1], config.num_attention_heads, quick_gelu, config.layer_norm_eps, True
            )
        )
    return [*states[:-1], layer_norm(model["final_layer_norm"], states[-1], config.layer_norm_eps)]


@pytest.fixture(scope="module")
def text_case(micro_pipe):
    """Ids with the end-of-text token at two places, other tokens after it; the parameters."""
    (config,) = micro_pipe.models.text_configs
    ids = np.random.default_rng(0).integers(3, config.eos_token_id - 1, size=(2, 12))
    ids[0, 5], ids[1, 11] = config.eos_token_id, config.eos_token_id
    return config, micro_pipe.params["text_encoder"], ids


def test_text_encoder_equals_transcription(text_case):
    config, params, ids = text_case
    out = jax.jit(CLIPText(config).apply)({"params": params}, ids)
    for i in range(2):
        states = numpy_text(float64(params), config, ids[i])
        np.testing.assert_allclose(out.last[i], states[-1], **TOLERANCE)
        np.testing.assert_allclose(out.penultimate[i], states[-2], **TOLERANCE)
        np.testing.assert_allclose(out.pooled[i], states[-1][(5, 11)[i]], **TOLERANCE)


def test_old_configs_pool_at_the_highest_id(text_case):
    """With eos_token_id 2, as old configs say, the end is the highest id; with a projection."""
    config, params, ids = text_case
    old = dataclasses.replace(config, eos_token_id=2, with_projection=True, projection_dim=6)
    kernel = np.random.default_rng(1).standard_normal((16, 6))
    out = jax.jit(CLIPText(old).apply)({"params": {**params, "text_projection": {"kernel": kernel}}}, ids)
    for i, end in enumerate((5, 11)):
        wanted = numpy_text(float64(params), config, ids[i])[-1][end] @ kernel
        np.testing.assert_allclose(out.pooled[i], wanted, **TOLERANCE)


def test_text_encoder_is_causal(text_case):
    """Changing tokens from index 8 on leaves the first eight outputs bit-identical."""
    config, params, ids = text_case
    apply = jax.jit(CLIPText(config).apply)
    changed = ids.copy()
    changed[:, 8:] = 7
    a, b = apply({"params": params}, ids).last, apply({"params": params}, changed).last
    np.testing.assert_array_equal(a[:, :8], b[:, :8])
    assert np.abs(a[:, 8:] - b[:, 8:]).max() > 1e-2


# ---------------------------------------------------------------- images

CLIP_LIKE = ViTConfig(
    image_size=16, patch_size=4, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=2, projection_dim=6,
)  # fmt: skip
DINO_LIKE = dataclasses.replace(
    CLIP_LIKE, hidden_act="gelu", layer_norm_eps=1e-6, projection_dim=None, registers=3, pre_norm=False,
    patch_bias=True, position_prefix=False, layer_scale=True, image_mean=(0.5, 0.4, 0.3),
)  # fmt: skip
SIGLIP_LIKE = dataclasses.replace(
    CLIP_LIKE, class_token=False, pre_norm=False, patch_bias=True, projection_dim=None, hidden_act="gelu",
)  # fmt: skip


def numpy_vit(p: dict, c: ViTConfig, image: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Hidden states of one image in [-1, 1], and the last one normed."""
    model, e = p["vision_model"], p["vision_model"]["embeddings"]
    pixels = ((image + 1.0) / 2.0 - np.asarray(c.image_mean)) / np.asarray(c.image_std)
    side = c.image_size // c.patch_size
    patches = pixels.reshape(side, c.patch_size, side, c.patch_size, 3).transpose(0, 2, 1, 3, 4)
    kernel = e["patch_embedding"]["kernel"].reshape(-1, c.hidden_size)
    x = patches.reshape(side * side, -1) @ kernel + e["patch_embedding"].get("bias", 0.0)
    positions = e["position_embedding"]["embedding"]
    rows = []
    if c.class_token:
        rows.append(e["class_embedding"][None] + (positions[:1] if c.position_prefix else 0.0))
    if c.registers:
        rows.append(e["register_tokens"])
    x = np.concatenate([*rows, x + positions[len(positions) - len(x) :]])
    if c.pre_norm:
        x = layer_norm(model["pre_layrnorm"], x, c.layer_norm_eps)
    states = [x]
    act = {"gelu": gelu, "quick_gelu": quick_gelu}[c.hidden_act]
    for i in range(c.num_hidden_layers):
        layer = model["encoder"][f"layers_{i}"]
        states.append(encoder_layer(layer, states[-1], c.num_attention_heads, act, c.layer_norm_eps, False))
    return states, layer_norm(model["post_layernorm"], states[-1], c.layer_norm_eps)


@pytest.mark.parametrize("config", [CLIP_LIKE, DINO_LIKE, SIGLIP_LIKE], ids=["clip", "dino", "siglip"])
def test_image_tower_equals_transcription(config):
    """Class token and pre-norm; registers, layer scale and no class position; no class token at all."""
    rng = np.random.default_rng(0)
    tower = ViT(config)
    shapes = param_shapes(tower, np.zeros((1, 16, 16, 3), np.float32))
    flat = flatten(init_params(shapes, seed=0))
    params = unflatten(
        {k: (v + 0.3 * rng.standard_normal(v.shape)).astype(np.float32) for k, v in flat.items()}
    )
    images = rng.uniform(-1.0, 1.0, size=(2, 16, 16, 3)).astype(np.float32)

    @jax.jit
    def apply(params, images):
        def run(module):
            return (module(images), module.features(images, (0, -2)))

        return tower.apply({"params": params}, method=run)

    out, features = apply(params, images)
    assert config.tokens == 16 and [x.shape for x in features] == [(2, 16, 16)] * 2
    assert len(out.states) == config.num_hidden_layers + 1
    for i in range(2):
        states, last = numpy_vit(float64(params), config, np.float64(images[i]))
        for ours, wanted in zip(out.states, states, strict=True):
            np.testing.assert_allclose(ours[i], wanted, **TOLERANCE)
        np.testing.assert_allclose(out.last[i], last, **TOLERANCE)
        pooled = last[0] if config.class_token else last.mean(axis=0)
        if config.projection_dim:
            pooled = pooled @ np.float64(params["visual_projection"]["kernel"])
        np.testing.assert_allclose(out.pooled[i], pooled, **TOLERANCE)
        prefix = int(config.class_token) + config.registers
        for ours, layer in zip(features, (0, -2), strict=True):
            np.testing.assert_allclose(ours[i], states[layer][prefix:], **TOLERANCE)


# ---------------------------------------------------------------- VAE


@pytest.fixture(scope="module")
def vae_case(micro_pipe):
    """Everything the VAE gives for two images, in one compiled program."""
    vae = micro_pipe.models.vae
    images = np.random.default_rng(0).uniform(-1, 1, size=(2, 16, 24, 3)).astype(np.float32)

    @jax.jit
    def run(params, images, key):
        def all_of_it(module):
            latents = module.encode(images)
            return {
                "moments": module.moments(images),
                "latents": latents,
                "sampled": module.encode(images, key),
                "decoded": module.decode(latents),
                "call": module(images),
            }

        return vae.apply({"params": params}, method=all_of_it)

    return micro_pipe, images, run(micro_pipe.params["vae"], images, jax.random.key(3))


def test_vae_shapes(vae_case):
    pipe, _, out = vae_case
    assert pipe.models.vae_config.downscale == 2
    assert out["latents"].shape == out["sampled"].shape == (2, 8, 12, 4)
    assert [m.shape for m in out["moments"]] == [(2, 8, 12, 4)] * 2
    assert out["decoded"].shape == (2, 16, 24, 3)
    assert out["decoded"].dtype == out["latents"].dtype == jnp.float32


def test_vae_latents_are_scaled_posterior_samples(vae_case):
    """latents = factor · mean, and factor · (mean + σ ε) with a key; float32 products: 1e-5."""
    pipe, _, out = vae_case
    mean, log_variance = out["moments"]
    factor = pipe.models.vae_config.scaling_factor
    assert factor == 0.5 and np.abs(mean).max() > 0.1
    np.testing.assert_allclose(out["latents"], factor * mean, atol=1e-6)
    noise = jax.random.normal(jax.random.key(3), mean.shape)
    np.testing.assert_allclose(out["sampled"], factor * (mean + jnp.exp(log_variance / 2) * noise), atol=1e-5)


def test_vae_decode_undoes_latent_scaling(vae_case):
    """The same image from latents of another factor, scaled alike; and the call is decode(encode(x))."""
    pipe, _, out = vae_case
    other = dataclasses.replace(
        pipe.models, vae_config=dataclasses.replace(pipe.models.vae_config, scaling_factor=2.0)
    )
    decode = jax.jit(lambda z: other.vae.apply({"params": pipe.params["vae"]}, z, method="decode"))
    np.testing.assert_allclose(decode(4.0 * out["latents"]), out["decoded"], atol=1e-5)
    assert np.abs(decode(out["latents"]) - out["decoded"]).max() > 1e-2
    np.testing.assert_allclose(out["call"][0], out["decoded"], atol=1e-5)
    np.testing.assert_array_equal(out["call"][1], out["moments"][0])


# ---------------------------------------------------------------- initial parameters

SHAPES = {
    "a": {
        "kernel": jax.ShapeDtypeStruct((3, 3, 16, 64), jnp.float32),
        "bias": jax.ShapeDtypeStruct((64,), jnp.float32),
    },
    "b": {
        "kernel": jax.ShapeDtypeStruct((400, 50), jnp.float32),
        "scale": jax.ShapeDtypeStruct((9,), jnp.float32),
    },
    "c": {"embedding": jax.ShapeDtypeStruct((500, 20), jnp.float32)},
}


def test_initial_parameters_depend_only_on_seed_and_path():
    whole = flatten(init_params(SHAPES, seed=1))
    part = flatten(init_params({"b": SHAPES["b"]}, seed=1))
    again = flatten(init_params(dict(reversed(SHAPES.items())), seed=1))
    other = flatten(init_params(SHAPES, seed=2))
    for path, value in whole.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, again[path])
        if path in part:
            np.testing.assert_array_equal(value, part[path])
    assert not np.array_equal(whole["a/kernel"], other["a/kernel"])


def test_initial_parameters_have_expected_standard_deviation():
    """Standard deviations 1/√fan_in and 0.02, within 5 % for some 10,000 draws (their error is below 1 %)."""
    flat = flatten(init_params(SHAPES, seed=0))
    assert flat["a/kernel"].std() == pytest.approx(144**-0.5, rel=0.05)
    assert flat["b/kernel"].std() == pytest.approx(400**-0.5, rel=0.05)
    assert flat["c/embedding"].std() == pytest.approx(0.02, rel=0.05)
    assert not flat["a/bias"].any() and (flat["b/scale"] == 1.0).all()


def test_zeros_regex_matches_whole_paths():
    flat = flatten(init_params(SHAPES, seed=0, zeros=r"^a/kernel$"))
    free = flatten(init_params(SHAPES, seed=0))
    assert not flat["a/kernel"].any()
    np.testing.assert_array_equal(flat["b/kernel"], free["b/kernel"])
