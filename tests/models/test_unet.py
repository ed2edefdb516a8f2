"""The UNet against golden values of the published PyTorch inference, and its two-call interface."""

import json
from pathlib import Path

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.common.errors import UserError
from realcustom_jax.models.config import RealCustomConfig, UNetConfig, from_mapping
from realcustom_jax.models.init import param_shapes
from realcustom_jax.models.resize import resize_mask
from realcustom_jax.models.scoring import TokenSelection
from realcustom_jax.models.unet import UNet
from realcustom_jax.weights.keys import flatten, from_torch, torch_key, torch_shape, unflatten

PROJECTOR = "encoder_hidden_states_vision_projection"
# Relative L2, by file. The passes are the same float32 sums in another order: 1e-6. The weights of reduced
# files are rounded to 13 bits, which changes a pass by 9e-5.
TOLERANCE = {golden_files.WHOLE: 1e-5, golden_files.HERE: 1e-4}


def relative_error(value, wanted) -> float:
    return float(np.linalg.norm(np.asarray(value) - wanted) / np.linalg.norm(wanted))


def channels_last(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 3, 1)


class Golden:
    """One golden file, and what our UNet gives for its inputs."""

    def __init__(self, path: Path):
        self.values, self.tolerance = dict(golden_files.read(path)), TOLERANCE[path.parent]
        config = from_mapping(UNetConfig, json.loads(str(self.values["config"])))
        token_dim = self.values["vision_tokens"].shape[-1]
        self.unet = UNet(config, RealCustomConfig(token_dim=token_dim, scoring=False))
        g = self.values
        self.inputs = {
            "latents": channels_last(g["in_x"]),
            "t": np.broadcast_to(g["in_t"], (2,)).astype(np.float32),
            "text": g["in_txt"],
            "pooled": g["in_pool"],
            "time_ids": g["in_ids"],
        }
        self.words = np.broadcast_to(g["in_target"], (2, 1, 77)).astype(np.float32)
        self.tokens = g["vision_tokens"][:, None]  # (2, R=1, N, C)
        self.shapes = self._shapes()
        flat = {
            path: from_torch(path, g[f"w/{torch_key(path)}"])
            for path in flatten(self.shapes)
            if not path.startswith(PROJECTOR)
        }
        self.params = unflatten(flat)

    def _shapes(self):
        def run(module, latents, t, text, pooled, time_ids, features):
            context = module.encode_context(text, (features,), pooled=pooled, time_ids=time_ids)
            return module(latents, t, context)

        features = np.zeros((2, 1, 9, 40), np.float32)
        return param_shapes(self.unet, *self.inputs.values(), features, method=run)

    def text_only(self):
        """The guidance branch, and its word maps."""

        @jax.jit
        def apply(params, latents, t, text, pooled, time_ids, words):
            def run(module):
                context = module.encode_context(text, pooled=pooled, time_ids=time_ids)
                return module(latents, t, context, words=words)

            return self.unet.apply({"params": params}, method=run)

        return apply(self.params, **self.inputs, words=self.words)

    def with_subject(self, masks: list[np.ndarray]) -> list[jax.Array]:
        """The generation branch with the published projector's tokens in place of ours, for each mask."""

        @jax.jit
        def apply(params, latents, t, text, pooled, time_ids, tokens, mask):
            def run(module):
                context = module.encode_context(text, pooled=pooled, time_ids=time_ids)
                layers = tuple(layer for stage in module._stages for layer in stage.encode(text, tokens))
                ones = jnp.ones(tokens.shape[:2])
                context = context.replace(layers=layers, visual=tokens, flags=ones, strengths=ones)
                return module(latents, t, context, masks=mask)[0]

            return self.unet.apply({"params": params}, method=run)

        return [apply(self.params, **self.inputs, tokens=self.tokens, mask=mask) for mask in masks]


FILES = [golden_files.HERE / "reference_b.npz"]
if golden_files.WHOLE.is_dir():
    FILES = [golden_files.WHOLE / name for name in ("reference_a.npz", "reference_b.npz")]


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def golden(request) -> Golden:
    return Golden(request.param)


def test_parameter_names_and_shapes_match_published_state_dict(golden):
    """Every key of the state dict but the projector's, and no other."""
    wanted = {
        key.removeprefix("w/"): value.shape
        for key, value in golden.values.items()
        if key.startswith("w/") and PROJECTOR not in key
    }
    found = {
        torch_key(path): torch_shape(path, leaf.shape)
        for path, leaf in flatten(golden.shapes).items()
        if PROJECTOR not in path
    }
    assert found == wanted


def test_guidance_branch_equals_golden_prediction_and_word_maps(golden):
    out, aux = golden.text_only()
    assert relative_error(out, channels_last(golden.values["t2i_out"])) < golden.tolerance
    assert len(aux.word_maps) == int(golden.values["n_maps"])
    for i, maps in enumerate(aux.word_maps):
        assert relative_error(maps[:, 0], golden.values[f"map_{i:02d}"]) < golden.tolerance, f"map {i}"


def test_generation_branch_equals_golden_predictions(golden):
    """With the golden mask (8×8, resized to 8 and 4) and with a mask of ones for the pass without one."""
    mask = golden.values["mask_max_norm"]
    masked, unmasked = golden.with_subject([mask, np.ones_like(mask)])
    assert relative_error(masked, channels_last(golden.values["ti2i_out"])) < golden.tolerance
    assert relative_error(unmasked, channels_last(golden.values["ti2i_nomask_out"])) < golden.tolerance


def test_context_encoded_once_is_reusable(micro_models, micro_params, micro_denoise):
    """Context from its own call, used at two timesteps, against encoding within each pass (float32, two
    compiled programs: 1e-5)."""
    unet, variables = micro_models.unet, {"params": micro_params["unet"]}
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    latents, text, features = draw(2, 8, 8, 4), draw(2, 77, 16), (draw(2, 1, 16, 16),)
    masks = jnp.asarray(rng.uniform(size=(2, 1, 4, 4)), jnp.float32)
    context = jax.jit(lambda: unet.apply(variables, text, features, method="encode_context"))()
    step = jax.jit(lambda t: unet.apply(variables, latents, t, context, masks=masks)[0])
    outs = []
    for t in (jnp.asarray([999.0, 3.0]), jnp.asarray([20.0, 500.0])):
        outs.append(step(t))
        wanted, _ = micro_denoise(micro_params["unet"], latents, t, text, features, masks=masks)
        np.testing.assert_allclose(outs[-1], wanted, atol=1e-5)
    assert np.abs(outs[0] - outs[1]).max() > 1e-2

    alone = jax.eval_shape(lambda: unet.apply(variables, text, method="encode_context"))
    assert jax.tree.structure(context.text_only()) == jax.tree.structure(alone)
    np.testing.assert_array_equal(context.text_only().layers[0][0].text_k, context.layers[0][0].text_k)


def test_strength_scales_mask_but_not_scores(micro_params, micro_denoise):
    """Without scoring it is the mask times the strength, with it the scores stay the same; 1e-5, float32."""
    rng = np.random.default_rng(1)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    inputs = (micro_params["unet"], draw(2, 8, 8, 4), jnp.asarray([900.0, 90.0]), draw(2, 77, 16))
    features, ones = (draw(2, 2, 16, 16),), jnp.ones((2, 2))
    masks = jnp.asarray(rng.uniform(size=(2, 2, 4, 4)), jnp.float32)
    strengths = jnp.asarray([[0.3, 1.0], [0.0, 2.5]])
    scaled = masks * strengths[..., None, None]
    given, _ = micro_denoise(*inputs, features, masks=masks, strengths=strengths)
    wanted, _ = micro_denoise(*inputs, features, masks=scaled, strengths=ones)
    plain, _ = micro_denoise(*inputs, features, masks=masks, strengths=ones)
    np.testing.assert_allclose(given, wanted, atol=1e-5)
    assert np.abs(given - plain).max() > 1e-2
    token_selection = TokenSelection(jnp.full(2, 0.5), jnp.full(2, 0.5), jnp.full(2, 0.5))
    weak, weak_aux = micro_denoise(
        *inputs, features, masks=masks, strengths=strengths, token_selection=token_selection
    )
    full, full_aux = micro_denoise(
        *inputs, features, masks=masks, strengths=ones, token_selection=token_selection
    )
    np.testing.assert_array_equal(weak_aux.scores, full_aux.scores)
    assert np.abs(weak - full).max() > 1e-2


def test_latents_that_cannot_be_halved_raise(micro_denoise, micro_params):
    text, t = jnp.zeros((1, 77, 16)), jnp.zeros(1)
    with pytest.raises(UserError, match=r"latents of 8x7 cannot be halved 1 times.*multiples of 2"):
        micro_denoise(micro_params["unet"], jnp.zeros((1, 8, 7, 4)), t, text)


def test_subjects_for_base_unet_raise(micro_models):
    unet = UNet(micro_models.unet_config)
    features = (np.zeros((1, 1, 16, 16), np.float32),)
    with pytest.raises(UserError, match="can take no subjects"):
        param_shapes(unet, np.zeros((1, 77, 16), np.float32), features, method="encode_context")


def numpy_resize(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear with half-pixel centres and edges repeated: output y reads the input at (y + ½)·h'/h − ½."""

    def line(values: np.ndarray, size: int) -> np.ndarray:
        count = values.shape[-1]
        place = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, count - 1)
        return values[..., low] * (1 - (place - low)) + values[..., high] * (place - low)

    return line(line(mask, width).swapaxes(-1, -2), height).swapaxes(-1, -2)


@pytest.mark.parametrize("size", [(16, 16), (4, 4), (2, 2), (8, 8), (3, 5), (12, 20)])
def test_masks_are_resized_bilinearly_without_antialiasing(size):
    """Up, down and to odd sizes; values in [0, 1] in float32: 1e-6."""
    mask = np.random.default_rng(0).uniform(size=(2, 1, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(resize_mask(jnp.asarray(mask), *size), numpy_resize(mask, *size), atol=1e-6)


def test_one_pixel_mask_fills_larger_size():
    np.testing.assert_array_equal(
        resize_mask(jnp.full((1, 2, 1, 1), 0.3), 3, 2), np.full((1, 2, 3, 2), np.float32(0.3))
    )
