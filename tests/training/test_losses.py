"""Each stage's loss against numpy, with stand-ins for the networks whose outputs the test chooses."""

import types
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.pixels import to_signed
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.models.config import RealCustomConfig, UNetConfig
from realcustom_jax.training.losses import LossConfig, make_loss, shift_timesteps

COUNT = 64
OPTIONS = LossConfig(kl_weight=0.1, temperature=0.2, min_snr_gamma=5.0)
KEY = jax.random.key(7)
# How much of each latent a subject covers: in the first example none, in the second all of it.
REGION = np.random.default_rng(2).integers(0, 256, size=(COUNT, 4, 4), dtype=np.uint8)
REGION[0], REGION[1] = 0, 255
PARAMS = dict.fromkeys(("unet", "vae", "text_encoder", "image_encoder"))


class Network:
    """Fake Flax module: `apply` returns a fixed value for any input."""

    def __init__(self, output, features=None):
        self.output, self.features = output, features

    def apply(self, variables, *args, method=None):
        return self.output if method is None or self.features is None else self.features


class UNetStandIn:
    """Records the calls of the loss to the UNet and predicts `predict(z, t)`."""

    def __init__(self, predict: Callable):
        self.predict, self.calls = predict, []

    def apply(self, variables, *, method):
        return method(self)

    def encode_context(self, text, features=None, flags=None, pooled=None, time_ids=None):
        assert pooled is None and time_ids is None  # SD1.5 has neither
        return text, features, flags

    def __call__(self, z, t, context, masks=None, token_selection=None):
        self.calls.append((np.asarray(z), np.asarray(t), context, token_selection))
        self.masks = masks
        return self.predict(z, t), None


def diffusion(stage: str, prediction_type: str, gamma: float, predict=None, subject_weight=1.0) -> tuple:
    """(loss, metrics, z, t, z0, context, token_selection, features) of one call.

    The UNet predicts `predict(z, t)` or 0.
    """
    z0 = jnp.asarray(np.random.default_rng(0).standard_normal((COUNT, 4, 4, 3)), jnp.float32)
    features = jnp.asarray(np.random.default_rng(1).standard_normal((COUNT, 5, 2)), jnp.float32)
    unet = UNetStandIn(predict or (lambda z, t: jnp.zeros_like(z)))
    text = types.SimpleNamespace(last=jnp.ones((COUNT, 2, 3)))
    models = types.SimpleNamespace(
        vae=Network(z0),
        text_encoders={"text_encoder": Network(text)},
        image_encoders={"image_encoder": Network(None, (features,))},
        unet=unet,
        unet_config=UNetConfig(),
        realcustom=RealCustomConfig(),
        high_res=False,
    )
    image = jnp.zeros((COUNT, 8, 8, 3), jnp.uint8)
    ids, flag = jnp.zeros((COUNT, 1, 2), jnp.int32), jnp.arange(COUNT, dtype=jnp.float32) % 2.0
    batch = {"image": image, "reference": image[:, None, None], "ids": ids, "flag": flag[:, None]}
    if subject_weight != 1.0:
        batch["region"] = jnp.asarray(REGION)[:, None]
    schedule = ScheduleConfig(prediction_type=prediction_type)
    loss = make_loss(
        stage, models, schedule, replace(OPTIONS, min_snr_gamma=gamma, subject_weight=subject_weight)
    )
    value, metrics = loss(PARAMS, batch, KEY)
    ((z, t, context, token_selection),) = unet.calls
    assert unet.masks is None  # one subject acts everywhere
    return float(value), metrics, z, t, np.float64(z0), context, token_selection, features


def numpy_target(prediction_type: str, z, t, z0) -> tuple[np.ndarray, np.ndarray]:
    """What should have been predicted, and the SNR: eq. 2 solved for ε in float64."""
    alpha = ScheduleConfig().alphas_cumprod()[t]
    signal, sigma = (np.sqrt(a)[:, None, None, None] for a in (alpha, 1.0 - alpha))
    noise = (z - signal * z0) / sigma
    return (noise if prediction_type == "epsilon" else signal * noise - sigma * z0), alpha / (1.0 - alpha)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [0.0, 5.0])
def test_diffusion_loss_equals_numpy(prediction_type, gamma):
    """The loss of a prediction of 0 is the target's mean square, each sample times its min-SNR weight.

    1e-4: ε is recovered from float32 z_t, where σ_t may be 0.03.
    """
    loss, metrics, z, t, z0, *_ = diffusion("base", prediction_type, gamma)
    target, snr = numpy_target(prediction_type, z, t, z0)
    weight = np.ones(COUNT)
    if gamma:
        weight = np.minimum(snr, gamma) / (snr if prediction_type == "epsilon" else snr + 1.0)
        assert (snr < gamma).any() and (snr > gamma).any()
    error = (target**2).mean(axis=(1, 2, 3))
    assert loss == pytest.approx((weight * error).mean(), rel=1e-4)
    assert float(metrics["mse"]) == pytest.approx(error.mean(), rel=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_exact_prediction_has_zero_loss(prediction_type):
    """The prediction is the target computed by numpy: the loss is at most the square of its rounding."""
    _, metrics, z, t, z0, *_ = diffusion("base", prediction_type, 5.0)
    target, _ = numpy_target(prediction_type, z, t, z0)
    loss, *_ = diffusion("base", prediction_type, 5.0, lambda z, t: jnp.asarray(target, jnp.float32))
    assert 0.0 <= loss < 1e-8 < 0.5 < metrics["mse"]


def test_noise_and_timesteps_have_expected_distribution():
    """64 timesteps over all of 0…999, and z_t whose noise is standard normal (3072 draws: 4 σ is 0.07)."""
    _, _, z, t, z0, *_ = diffusion("base", "epsilon", 0.0)
    noise, _ = numpy_target("epsilon", z, t, z0)
    assert t.min() < 100 and t.max() >= 900 and t.max() <= 999 and len(np.unique(t)) > 50
    assert abs(noise.mean()) < 0.075 and noise.std() == pytest.approx(1.0, abs=0.06)


def test_base_stage_trains_without_subjects():
    *_, context, token_selection, _ = diffusion("base", "v_prediction", 5.0)
    assert context[1] is None and context[2] is None and token_selection is None


def test_customize_passes_reference_and_token_selection():
    """One subject, absent where the flag is 0; one γ_num in [0.3, 1) for the batch; weights 1 − √ᾱ_t and
    √ᾱ_t (float32: 1e-6)."""
    _, _, _, t, _, (_, (visual,), flags), token_selection, features = diffusion(
        "customize", "v_prediction", 5.0
    )
    np.testing.assert_array_equal(flags[:, 0], np.arange(COUNT) % 2)
    np.testing.assert_array_equal(visual[:, 0], features)
    assert visual.shape == (COUNT, 1, 5, 2)
    gamma = np.asarray(token_selection.gamma_num)
    assert gamma.shape == (COUNT,) and np.ptp(gamma) == 0.0 and 0.3 <= gamma[0] < 1.0
    share = np.sqrt(ScheduleConfig().alphas_cumprod()[t])
    np.testing.assert_allclose(token_selection.visual_weight, share, atol=1e-6)
    np.testing.assert_allclose(token_selection.text_weight, 1.0 - share, atol=1e-6)


def test_subject_weight_loss_equals_numpy_loop():
    """Against a float64 loop; the first example shows no subject, the second nothing else. 1e-4 as above.

    Every example has the same total weight.
    """
    loss, metrics, z, t, z0, *_ = diffusion("customize", "v_prediction", 5.0, subject_weight=4.0)
    target, snr = numpy_target("v_prediction", z, t, z0)
    total = 0.0
    for i in range(COUNT):
        error, share = (target[i] ** 2).mean(axis=-1), REGION[i] / 255
        weight = 4.0 * share + (1.0 - share)
        total += min(snr[i], 5.0) / (snr[i] + 1.0) * (weight * error).sum() / weight.sum()
    assert loss == pytest.approx(total / COUNT, rel=1e-4)
    assert float(metrics["mse"]) == pytest.approx((target**2).mean(), rel=1e-4)


def test_two_subjects_have_their_own_references_scopes_and_weights():
    """Slot r sees reference r and acts in scope r; the loss weighs the union of the regions."""
    rng = np.random.default_rng(4)
    views = rng.integers(0, 256, (COUNT, 2, 1, 8, 8, 3), np.uint8)
    region, scope = rng.integers(0, 256, (2, COUNT, 2, 4, 4), np.uint8)
    z0 = jnp.asarray(rng.standard_normal((COUNT, 4, 4, 3)), jnp.float32)

    class Eye:
        def apply(self, variables, images, layers, method):
            # one token with the mean of the image
            return [images.mean(axis=(1, 2, 3))[:, None, None]] * len(layers)

    unet = UNetStandIn(lambda z, t: jnp.zeros_like(z))
    models = types.SimpleNamespace(
        vae=Network(z0),
        text_encoders={"text_encoder": Network(types.SimpleNamespace(last=jnp.ones((COUNT, 2, 3))))},
        image_encoders={"image_encoder": Eye()}, unet=unet, unet_config=UNetConfig(), high_res=False,
        realcustom=RealCustomConfig(feature_layers=((-2,),)),
    )  # fmt: skip
    flag = rng.integers(0, 2, (COUNT, 2)).astype(np.float32)
    batch = {
        "image": jnp.zeros((COUNT, 8, 8, 3), jnp.uint8), "ids": jnp.zeros((COUNT, 1, 2), jnp.int32),
        "reference": views, "flag": flag, "region": region, "scope": scope,
    }  # fmt: skip
    options = replace(OPTIONS, min_snr_gamma=0.0, subject_weight=4.0)
    schedule = ScheduleConfig(prediction_type="v_prediction")
    batch = jax.tree.map(jnp.asarray, batch)
    loss, _ = make_loss("customize", models, schedule, options)(PARAMS, batch, KEY)
    ((z, t, (_, (features,), flags), _),) = unet.calls
    seen = (views / 127.5 - 1).mean(axis=(2, 3, 4, 5))
    np.testing.assert_allclose(np.asarray(features)[..., 0, 0], seen, atol=1e-5)
    np.testing.assert_array_equal(flags, flag)
    np.testing.assert_allclose(unet.masks, scope / 255, atol=1e-6)
    target, _ = numpy_target("v_prediction", z, t, np.float64(z0))
    weight = 1 + 3 * (region.max(axis=1) / 255)
    error = (target**2).mean(axis=-1)
    expected = ((error * weight).sum(axis=(1, 2)) / weight.sum(axis=(1, 2))).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_contrastive_loss_counts_repeated_captions_as_matches():
    """Six pairs, three with one caption and two with another: symmetric cross-entropy in float64 (1e-5)."""
    rng = np.random.default_rng(0)
    text, image = rng.standard_normal((2, 6, 4))
    captions = np.asarray([0, 1, 0, 2, 0, 1])
    models = types.SimpleNamespace(
        text_encoders={"text_encoder": Network(types.SimpleNamespace(pooled=jnp.asarray(text, jnp.float32)))},
        image_encoders={
            "image_encoder": Network(types.SimpleNamespace(pooled=jnp.asarray(image, jnp.float32)))
        },
    )
    ids = jnp.stack([jnp.zeros(6, jnp.int32), jnp.asarray(captions, jnp.int32)], axis=1)[:, None]
    batch = {"ids": ids, "image": jnp.zeros((6, 2, 2, 3), jnp.uint8)}
    value, metrics = make_loss("clip", models, ScheduleConfig(), OPTIONS)(PARAMS, batch, KEY)

    def unit(x):
        return x / np.sqrt((x**2).sum(axis=1, keepdims=True))

    logits = unit(text) @ unit(image).T / OPTIONS.temperature
    total = 0.0
    for matrix in (logits, logits.T):
        for i in range(6):
            matches = np.flatnonzero(captions == captions[i])
            log_share = matrix[i] - np.log(np.exp(matrix[i]).sum())
            total -= log_share[matches].mean()
    assert float(value) == pytest.approx(total / 12, rel=1e-5)
    hits = captions[logits.argmax(axis=1)] == captions
    assert float(metrics["accuracy"]) == pytest.approx(hits.mean())


class Tower:
    """Fake tower: pools photos to their red channel, and records its inputs."""

    def apply(self, variables, photos):
        self.photos = np.asarray(photos)
        return types.SimpleNamespace(pooled=photos[..., 0].reshape(len(photos), -1))


@pytest.mark.parametrize("grey", [0.0, 1.0])
def test_instance_loss_equals_numpy_loop(grey):
    """Against loops in float64 (1e-5: the colours are float32). The third of five subjects equals the first;
    a grey batch has no colours."""
    views = np.random.default_rng(1).integers(0, 256, size=(5, 2, 2, 2, 3), dtype=np.uint8)
    subject = np.array([7, 3, 7, 4, 5])
    tower = Tower()
    models = types.SimpleNamespace(image_encoders={"image_encoder": None, "image_encoder_2": tower})
    loss = make_loss("instance", models, ScheduleConfig(), replace(OPTIONS, grey_share=grey))
    batch = {"views": jnp.asarray(views), "subject": jnp.asarray(subject, jnp.int32)}
    value, metrics = loss({"image_encoder_2": None}, batch, KEY)
    assert tower.photos.shape == (10, 2, 2, 3)
    if grey:
        np.testing.assert_array_equal(tower.photos, tower.photos[..., :1].repeat(3, axis=-1))
        assert tower.photos.std() > 0.1
    else:
        np.testing.assert_allclose(tower.photos, views.reshape(10, 2, 2, 3) / 127.5 - 1.0, atol=1e-6)
    pooled = np.float64(tower.photos[..., 0].reshape(10, 4))
    first, second = (x / np.sqrt((x**2).sum(axis=1, keepdims=True)) for x in (pooled[::2], pooled[1::2]))
    logits = first @ second.T / OPTIONS.temperature
    total = 0.0
    for matrix in (logits, logits.T):
        for i in range(5):
            log_share = matrix[i] - np.log(np.exp(matrix[i]).sum())
            total -= log_share[subject == subject[i]].mean()
    assert float(value) == pytest.approx(total / 10, rel=1e-5)
    hits = subject[logits.argmax(axis=1)] == subject
    assert 0 < hits.mean() < 1 and float(metrics["accuracy"]) == pytest.approx(hits.mean())


def test_share_of_grey_batches_matches_option():
    """100 keys at 0.3: 4 standard deviations are 0.18."""
    tower = Tower()
    models = types.SimpleNamespace(image_encoders={"image_encoder": tower})
    loss = make_loss("instance", models, ScheduleConfig(), replace(OPTIONS, grey_share=0.3))
    views = jnp.asarray(np.random.default_rng(0).integers(0, 256, size=(2, 2, 1, 1, 3), dtype=np.uint8))
    grey = 0
    for seed in range(100):
        loss({"image_encoder": None}, {"views": views, "subject": jnp.arange(2)}, jax.random.key(seed))
        grey += np.ptp(tower.photos, axis=-1).max() < 1e-6
    assert grey / 100 == pytest.approx(0.3, abs=0.18)


def test_instance_stage_without_image_tower_raises():
    models = types.SimpleNamespace(image_encoders={})
    with pytest.raises(UserError, match="the stage instance trains an image tower, but the model has none"):
        make_loss("instance", models, ScheduleConfig(), OPTIONS)


def test_vae_loss_equals_numpy():
    """L1 of pixels and of neighbour differences, and the Gaussian KL, in float64 (1e-5)."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(2, 6, 5, 3), dtype=np.uint8)
    reconstruction = rng.uniform(-1, 1, size=images.shape)
    mean, log_variance = rng.standard_normal((2, 2, 3, 3, 4))
    output = tuple(jnp.asarray(x, jnp.float32) for x in (reconstruction, mean, log_variance))
    models = types.SimpleNamespace(vae=Network(output))
    value, metrics = make_loss("vae", models, ScheduleConfig(), OPTIONS)(
        PARAMS, {"image": jnp.asarray(images)}, KEY
    )
    error = reconstruction - (images / 127.5 - 1.0)
    l1 = np.abs(error).mean()
    edges = np.abs(error[:, 1:] - error[:, :-1]).mean() + np.abs(error[:, :, 1:] - error[:, :, :-1]).mean()
    kl = 0.5 * (mean**2 + np.exp(log_variance) - 1.0 - log_variance).mean()
    assert float(value) == pytest.approx(l1 + 0.5 * edges + 0.1 * kl, rel=1e-5)
    assert float(metrics["kl"]) == pytest.approx(kl, rel=1e-5)


def test_to_signed_maps_bytes_to_signed_range():
    np.testing.assert_allclose(to_signed(jnp.asarray([0, 51, 255], jnp.uint8)), [-1.0, -0.6, 1.0], atol=1e-6)


def test_unknown_stage_raises(micro_models):
    with pytest.raises(
        UserError, match="stage 'bogus' is unknown; known: vae, clip, instance, base, customize"
    ):
        make_loss("bogus", micro_models, ScheduleConfig(), OPTIONS)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_shifted_timesteps_equal_formula(shift):
    """Against the formula in float64; without a shift every timestep stays. Half lie above s / (1 + s)."""
    t = np.arange(1000)
    found = np.asarray(shift_timesteps(jnp.asarray(t), shift, 1000))
    x = (t + 0.5) / 1000
    np.testing.assert_allclose(found, np.floor(1000 * shift * x / (1 + (shift - 1) * x)), atol=1)
    assert found.min() >= 0 and found.max() <= 999 and found.dtype == np.int32
    assert np.mean(found >= 1000 * shift / (1 + shift)) == pytest.approx(0.5, abs=2e-3)
    if shift == 1.0:
        np.testing.assert_array_equal(found, t)
