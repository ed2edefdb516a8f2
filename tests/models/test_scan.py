"""A scan over a transformer's blocks equals the unrolled blocks."""

import jax
import jax.numpy as jnp
import numpy as np

from realcustom_jax.models.config import RealCustomConfig, UNetConfig
from realcustom_jax.models.family import unet_shapes
from realcustom_jax.models.init import init_params
from realcustom_jax.models.unet import UNet

CONFIG = UNetConfig(
    sample_size=8,
    block_out_channels=(16,),
    layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",),
    cross_attention_dim=16,
    attention_head_dim=2,
    norm_num_groups=4,
    transformer_layers_per_block=3,
)
ADDED = RealCustomConfig(token_dim=16, scoring=False)


def test_scan_values_maps_and_gradients_equal_unrolled():
    """With a subject; the scan also uses rematerialisation.

    Tolerance 1e-5 relative: the same sums, compiled in another program.
    """
    rng = np.random.default_rng(0)
    latents, text = rng.standard_normal((1, 8, 8, 4)), rng.standard_normal((1, 7, 16))
    features = (rng.standard_normal((1, 1, 4, 16)),)
    words = np.zeros((1, 1, 7))
    words[..., 2] = 1.0
    params = init_params(unet_shapes(UNet(CONFIG, ADDED), 7, 4, 16), seed=0)

    def measure(unet: UNet):

        def loss(params):
            def run(unet):
                context = unet.encode_context(text, features)
                return unet(latents, jnp.asarray([500.0]), context, words=words, self_attention_level=0)

            prediction, aux = unet.apply({"params": params}, method=run)
            return jnp.square(prediction).mean(), (prediction, aux.word_maps, aux.self_attention)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    scanned = measure(UNet(CONFIG, ADDED, remat="blocks", scan=True))
    unrolled = measure(UNet(CONFIG, ADDED))
    (_, (_, maps, attention)), _ = scanned
    # 1 + 1 + 2 transformers (down, middle, up) of three blocks.
    assert len(maps) == 12 and attention.shape == (1, 64, 64)
    for ours, theirs in zip(jax.tree.leaves(scanned), jax.tree.leaves(unrolled), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_scan_keeps_parameters_and_shortens_program():
    shapes, lines = [], []
    for scan in (True, False):
        unet = UNet(CONFIG, ADDED, scan=scan)
        shapes.append(unet_shapes(unet, 7, 4, 16))

        def run(params, unet=unet):
            def run(unet):
                context = unet.encode_context(jnp.zeros((1, 7, 16)))
                return unet(jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), context)[0]

            return unet.apply({"params": params}, method=run)

        lines.append(jax.jit(run).lower(shapes[-1]).as_text().count("\n"))
    assert jax.tree.map(lambda x: x.shape, shapes[0]) == jax.tree.map(lambda x: x.shape, shapes[1])
    assert lines[0] < 0.7 * lines[1]
