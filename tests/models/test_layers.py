"""The layers of UNet and VAE against float64 numpy, and against known values."""

import runpy
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.models.layers import (
    Conv,
    Dense,
    Downsample,
    Embed,
    GroupNorm,
    LayerNorm,
    ResnetBlock,
    Upsample,
    gelu,
    sinusoidal_embedding,
)
from realcustom_jax.weights.keys import flatten, to_torch, torch_key, unflatten

reference = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_unet.py"))))
# Relative L2. Sums of at most 300 float32 products; measured below 1e-6.
TOLERANCE = 1e-5


def relative_error(value, expected) -> float:
    value = np.moveaxis(np.asarray(value, np.float64), -1, 1)
    assert value.shape == expected.shape
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def planes(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x.astype(np.float64), -1, 1)


def run(module, *inputs):
    """Runs a module with random, non-neutral parameters: its output, and its weights for the reference."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))["params"]
    flat = {path: draw(*leaf.shape, seed=len(path)) for path, leaf in flatten(shapes).items()}
    output = jax.jit(lambda params: module.apply({"params": params}, *inputs))(unflatten(flat))
    return output, reference.Weights({torch_key(path): to_torch(path, v) for path, v in flat.items()})


@pytest.mark.parametrize("groups", [1, 3, 12])
def test_group_norm_equals_numpy(groups):
    x = draw(2, 5, 4, 12) * np.linspace(0.1, 3, 12, dtype=np.float32)
    output, weights = run(GroupNorm(groups, 1e-5), x)
    assert relative_error(output, reference.group_norm(weights, planes(x), groups, 1e-5)) < TOLERANCE


@pytest.mark.parametrize("mean", [100.0, -100.0])
def test_group_norm_is_accurate_for_large_mean(mean):
    """Mean 100 and deviation 1: float32 keeps 5 digits without the mean, where E[x²] − E[x]² would keep 2.

    The input is tokens (B, N, C), which are normalised over all tokens too.
    """
    x = draw(2, 32, 8) + np.float32(mean)
    output, weights = run(GroupNorm(2), x)
    expected = reference.group_norm(weights, planes(x)[..., None], 2, 1e-5)[..., 0]
    assert relative_error(output, expected) < 1e-4


# Absolute: float32 keeps 7 digits of 1 + erf, and bfloat16 3 of results of at most 1.
@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 2e-6), (jnp.bfloat16, 3e-3)])
def test_gelu_is_exact(dtype, error):
    """The tanh approximation is 5e-4 away in float32, and 1 + erf taken in bfloat16 4e-3."""
    x = jnp.linspace(-6.0, 1.0, 701).astype(dtype)
    values = np.asarray(x, np.float64)
    expected = [value * NormalDist().cdf(value) for value in values]
    assert gelu(x).dtype == dtype
    np.testing.assert_allclose(np.asarray(gelu(x), np.float64), expected, rtol=0, atol=error)


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_group_norm_applies_epsilon_to_small_inputs(eps):
    x = 1e-3 * draw(2, 4, 4, 8)
    output, weights = run(GroupNorm(4, eps), x)
    assert relative_error(output, reference.group_norm(weights, planes(x), 4, eps)) < TOLERANCE


@pytest.mark.parametrize("time", [False, True])
@pytest.mark.parametrize("features", [8, 12])
def test_resnet_block_equals_numpy(features, time):
    """With and without a time embedding; with equal channels, and with more, which needs the shortcut."""
    x, emb = draw(2, 5, 4, 8), draw(2, 6) if time else None
    output, weights = run(ResnetBlock(features, 4, 1e-3), x, emb)
    assert ("conv_shortcut.weight" in weights) == (features != 8)
    assert relative_error(output, reference.resnet(weights, planes(x), 4, 1e-3, emb)) < TOLERANCE


@pytest.mark.parametrize("shape", [(2, 6, 4, 3), (1, 5, 7, 3)])
@pytest.mark.parametrize("padding", [(1, 1), (0, 1)], ids=["UNet", "VAE"])
def test_downsample_equals_numpy(padding, shape):
    x = draw(*shape)
    output, weights = run(Downsample(4, (padding, padding)), x)
    expected = reference.conv(weights / "conv", planes(x), stride=2, padding=padding)
    assert relative_error(output, expected) < TOLERANCE


def test_downsample_reads_expected_pixels():
    """A kernel of one 1, in its last corner: of 6 pixels the UNet reads 1, 3, 5, the VAE 2, 4 and padding."""
    x, kernel = draw(1, 6, 6, 1), np.zeros((3, 3, 1, 1), np.float32)
    kernel[2, 2] = 1
    variables = {"params": {"conv": {"kernel": kernel, "bias": np.zeros(1, np.float32)}}}
    np.testing.assert_array_equal(Downsample(1).apply(variables, x), x[:, 1::2, 1::2])
    vae = Downsample(1, ((0, 1), (0, 1))).apply(variables, x)
    np.testing.assert_array_equal(vae, np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 2::2, 2::2])


def test_upsample_equals_numpy():
    x = draw(2, 3, 4, 5)
    output, weights = run(Upsample(6), x)
    assert output.shape == (2, 6, 8, 6)
    assert relative_error(output, reference.upsample(weights, planes(x))) < TOLERANCE


@pytest.mark.parametrize("freq_shift", [0.0, 1.0])
@pytest.mark.parametrize("flip", [True, False])
def test_sinusoidal_embedding_equals_numpy(flip, freq_shift):
    """Timesteps up to 999: an angle of 1000 in float32 is off by 6e-5 rad at most, so values by 1e-4."""
    t = np.asarray([[0.0, 1.0, 20.0], [500.0, 981.0, 999.0]], np.float32)
    ours = sinusoidal_embedding(t, 10, flip, freq_shift)
    assert ours.shape == (2, 3, 10) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, reference.timestep_embedding(t, 10, flip, freq_shift), atol=1e-4)


def test_sinusoidal_embedding_has_known_values():
    """At 0 all sines are 0 and cosines 1; the first frequency is 1, the last 1/10000 with a shift of 1."""
    np.testing.assert_array_equal(sinusoidal_embedding(np.zeros(1), 4), [[1, 1, 0, 0]])
    np.testing.assert_array_equal(sinusoidal_embedding(np.zeros(1), 4, flip_sin_to_cos=False), [[0, 0, 1, 1]])
    shifted = sinusoidal_embedding(np.ones(1), 4, flip_sin_to_cos=False, freq_shift=1.0)[0]
    np.testing.assert_allclose(shifted[:2], [np.sin(1.0), np.sin(1e-4)], rtol=1e-5)
    np.testing.assert_allclose(sinusoidal_embedding(np.ones(1), 4)[0, 3], np.sin(1e-2), rtol=1e-5)


@pytest.mark.parametrize(
    ("layer", "flax_layer"),
    [
        (Dense(3), nn.Dense(3)),
        (Conv(3, (3, 3)), nn.Conv(3, (3, 3))),
        (LayerNorm(), nn.LayerNorm()),
        (Embed(7, 3), nn.Embed(7, 3)),
    ],
)
def test_stored_parameters_are_taken_without_their_initialisers(layer, flax_layer):
    """Flax would trace them at each call. Values as of Flax's own layer, to the bit."""
    x = np.random.default_rng(0).integers(0, 7, (2, 5, 5, 4))
    x = jnp.asarray(x, jnp.int32 if isinstance(layer, nn.Embed) else jnp.float32)
    variables = layer.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, variables, flax_layer.init(jax.random.key(0), x))

    def fail(*_):
        raise AssertionError("the initialiser ran")

    names = [name for name in layer.__dataclass_fields__ if name.endswith("_init")]
    assert names
    found = layer.clone(**dict.fromkeys(names, fail)).apply(variables, x)
    np.testing.assert_array_equal(found, flax_layer.apply(variables, x))
