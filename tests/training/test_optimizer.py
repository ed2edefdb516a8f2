"""Muon: its update of each kind of parameter, compared with a numpy transcription and with AdamW."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from realcustom_jax.training.optimizer import make_optimizer
from realcustom_jax.weights.keys import flatten, unflatten

RATE, DECAY, B2, NORM = 0.01, 0.1, 0.99, 0.5
KERNELS = {"unet/proj/kernel": (24, 40), "unet/conv/kernel": (3, 3, 8, 12), "unet/tall/kernel": (64, 16)}
# Kernels of input and output layers, and parameters that are not kernels.
OTHERS = {"unet/conv_in/kernel": (3, 3, 4, 8), "tower/patch_embedding/kernel": (2, 2, 3, 8)}
OTHERS |= {"unet/proj/bias": (40,), "text/token_embedding/embedding": (10, 8), "unet/norm/scale": (8,)}


@pytest.fixture(scope="module")
def drawn() -> tuple[dict, dict]:
    """Parameters and a gradient, whose singular values spread over a factor of some 20."""
    rng = np.random.default_rng(0)

    def draw(shape):
        return jnp.asarray(rng.normal(size=shape) * np.geomspace(1, 0.05, shape[-1]), jnp.float32)

    return tuple({name: draw(shape) for name, shape in (KERNELS | OTHERS).items()} for _ in range(2))


def step(name: str, params: dict, *gradients: dict) -> dict:
    """The last update, {path: array}."""
    optimizer = make_optimizer(optax.constant_schedule(RATE), DECAY, B2, NORM, name)
    return flatten(last_update(optimizer, unflatten(params), *map(unflatten, gradients)))


def last_update(optimizer: optax.GradientTransformation, params: dict, *gradients: dict) -> dict:
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in gradients:
        with jax.numpy_dtype_promotion("standard"):  # as in `make_train_step`
            updates, state = update(gradient, state, params)
    return updates


def orthogonalised(matrix: np.ndarray) -> np.ndarray:
    """Four steps of the quintic Newton-Schulz iteration, after dividing by the Schatten 4-norm."""
    x = matrix.astype(np.float64)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    wide = wide / (np.linalg.svd(wide, compute_uv=False) ** 4).sum() ** 0.25
    for _ in range(4):
        square = wide @ wide.T
        wide = 3.4445 * wide + (-4.775 * square + 2.0315 * square @ square) @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.T


def test_muon_updates_kernels_by_scaled_orthogonal_matrix(drawn):
    """1e-4 of the largest value: float32 in eight successive products.

    The first step's momentum is the gradient up to a factor, which does not matter.
    """
    params, gradient = drawn
    made = step("muon", params, gradient)
    for path, shape in KERNELS.items():
        matrix = np.asarray(gradient[path]).reshape(-1, shape[-1])
        expected = orthogonalised(matrix) * 0.2 * np.sqrt(max(matrix.shape)) + DECAY * np.asarray(
            params[path]
        ).reshape(matrix.shape)
        update = -np.asarray(made[path]).reshape(matrix.shape) / RATE
        np.testing.assert_allclose(update, expected, atol=1e-4 * np.abs(expected).max())
        spread = np.linalg.svd(orthogonalised(matrix), compute_uv=False)
        assert spread.min() > 0.5 and spread.max() < 1.25  # the gradient's differ by a factor above 10
        assert np.linalg.cond(matrix) > 10


def test_muon_updates_other_parameters_by_adam_without_decay(drawn):
    """Two steps of Nesterov's Adam, since the first step of any Adam is the sign; 1e-5: same arithmetic."""
    params, gradient = drawn
    gradients = gradient, jax.tree.map(jnp.square, gradient)
    made = step("muon", params, *gradients)
    norms = [float(np.sqrt(sum(np.square(g).sum() for g in tree.values()))) for tree in gradients]
    clipped = [
        {path: g * min(1.0, NORM / norm) for path, g in tree.items()}
        for tree, norm in zip(gradients, norms, strict=True)
    ]
    expected = last_update(optax.nadamw(RATE, b2=B2, weight_decay=0.0), params, *clipped)
    for path in OTHERS:
        np.testing.assert_allclose(made[path], expected[path], atol=1e-6 * RATE, rtol=1e-5)


def test_muon_on_sharded_kernels_equals_unsharded(drawn):
    """Each kernel's first dimension over the devices that divide it; 1e-5: float32 sums in another order."""
    params, gradient = drawn
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("fsdp",))
    over = {path: P("fsdp") if params[path].shape[0] % 4 == 0 else P() for path in params}
    shardings = {path: NamedSharding(mesh, spec) for path, spec in over.items()}
    assert over["unet/proj/kernel"] == over["unet/tall/kernel"] == P("fsdp")
    made = step("muon", *(jax.device_put(tree, shardings) for tree in (params, gradient)))
    for path, update in step("muon", params, gradient).items():
        np.testing.assert_allclose(made[path], update, rtol=1e-5, atol=1e-5 * np.abs(update).max())


def test_adamw_decays_only_parameters_with_several_dimensions(drawn):
    params, gradient = drawn
    still = jax.tree.map(jnp.zeros_like, gradient)
    for path, update in step("adamw", params, still).items():
        decays = params[path].ndim > 1
        np.testing.assert_allclose(update, -RATE * DECAY * params[path] * float(decays), rtol=1e-6)
