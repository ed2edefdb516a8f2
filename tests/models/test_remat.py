"""Rematerialisation changes how much is computed, not the results."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.models.family import Models
from realcustom_jax.models.init import init_params
from realcustom_jax.models.remat import POLICIES
from realcustom_jax.weights.keys import flatten


@pytest.fixture(scope="module")
def gradients(micro_configs):
    """{policy: (loss, gradient, floating-point operations)} of a pass with a subject.

    One level with two transformer blocks, to compile fast.
    """
    unet = {"block_out_channels": (16,), "attention_head_dim": 2, "transformer_layers_per_block": 2}
    for kind in ("down", "up"):
        unet[f"{kind}_block_types"] = (f"CrossAttn{kind.title()}Block2D",)
    micro_models = Models.from_configs(micro_configs | {"unet": micro_configs["unet"] | unet})
    params = init_params(micro_models.component_shapes("unet"), seed=0)
    rng = np.random.default_rng(0)
    z, text = rng.standard_normal((1, 8, 8, 4)), rng.standard_normal((1, 77, 16))
    features = rng.standard_normal((1, 1, 16, 16))
    z, text, features = (jnp.asarray(x, jnp.float32) for x in (z, text, features))

    def measure(policy):
        unet = dataclasses.replace(micro_models, remat=policy).unet

        def loss(params):
            def run(module):
                return module(z, jnp.full(1, 300.0), module.encode_context(text, (features,)))[0]

            return jnp.square(unet.apply({"params": params}, method=run)).mean()

        compiled = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
        return *compiled(params), compiled.cost_analysis()["flops"]

    return {policy: measure(policy) for policy in POLICIES}


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "none"])
def test_remat_gradients_equal_plain_ones(gradients, policy):
    """1e-4 of each array's largest value: fusions add in another order; measured about 1e-6."""
    loss, ours, _ = gradients[policy]
    expected_loss, theirs, _ = gradients["none"]
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    ours, theirs = flatten(ours), flatten(theirs)
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        np.testing.assert_allclose(ours[path], value, atol=1e-4 * np.abs(value).max(), err_msg=path)


def test_stricter_remat_computes_more(gradients):
    """Keeping only block inputs costs nearly a second forward pass; keeping products costs less."""
    flops = {policy: cost for policy, (_, _, cost) in gradients.items()}
    assert flops["none"] < flops["dots"] < flops["blocks"]
    assert 1.2 * flops["none"] < flops["blocks"] < 1.5 * flops["none"]
