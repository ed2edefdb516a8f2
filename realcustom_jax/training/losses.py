"""What each stage minimises: pure functions of all parameters, a batch and a key."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.rules import option
from realcustom_jax.diffusion.schedule import ScheduleConfig, add_noise, training_target
from realcustom_jax.models.conditioning import encode_reference, encode_text, size_ids, to_signed
from realcustom_jax.models.family import Models
from realcustom_jax.models.scoring import InfluenceQuantity
from realcustom_jax.models.vae import VAE

Params = Mapping[str, Any]
Batch = Mapping[str, Array]
Metrics = dict[str, Array]
Loss = Callable[[Params, Batch, Array], tuple[Array, Metrics]]

# What can be trained, and the options in the config's `loss` that each stage reads.
STAGES = {
    "vae": ("kl_weight", "edge_weight"),
    "clip": ("temperature",),
    "instance": ("temperature", "grey_share"),
    "base": ("min_snr_gamma", "timestep_shift"),
    "customize": ("min_snr_gamma", "timestep_shift", "gamma_num_min", "gamma_num_max", "subject_weight"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The config's `loss`; each stage reads the options that `STAGES` names."""

    kl_weight: float = option(1e-4, "of the VAE's KL divergence (vae)", low=0)
    edge_weight: float = option(0.5, "of differences between neighbouring pixels (vae)", low=0)
    temperature: float = option(
        0.07, "of similarities (clip, instance)", low=0, above_0="similarities are divided by it"
    )
    grey_share: float = option(
        0.0, "of batches without colours, so that shapes tell subjects apart too (instance)", low=0, high=1
    )
    min_snr_gamma: float = option(
        0.0, "γ of min-SNR weighting; 0 is eq. 1 itself, which weighs noisy steps more (base, customize)",
        low=0,
    )  # fmt: skip
    timestep_shift: float = option(
        1.0, "s: half of all drawn timesteps lie above s / (1 + s) of the way (base, customize)", low=0,
        above_0="0 would leave no noise at all",
    )  # fmt: skip
    gamma_num_min: float = option(
        0.3, "least share of visual tokens that are kept, eq. 10 (customize)", low=0, high=1
    )
    gamma_num_max: float = option(
        1.0, "greatest share of visual tokens that are kept (customize)", low=0, high=1,
        above_0="no visual token would be left",
    )  # fmt: skip
    subject_weight: float = option(
        1.0, "of the subject's pixels; other than 1 needs data.reference='subject' (customize)", low=0
    )


def make_loss(stage: str, models: Models, schedule: ScheduleConfig, options: LossConfig) -> Loss:
    """The loss of a stage.

    Raises:
      UserError: for an unknown stage.
    """
    if stage == "vae":
        return _vae_loss(models, options.kl_weight, options.edge_weight)
    if stage == "clip":
        return _clip_loss(models, options.temperature)
    if stage == "instance":
        return _instance_loss(models, options.temperature, options.grey_share)
    if stage == "base":
        return _diffusion_loss(models, schedule, options.min_snr_gamma, options.timestep_shift)
    if stage == "customize":
        gamma_num = (options.gamma_num_min, options.gamma_num_max)
        return _diffusion_loss(
            models,
            schedule,
            options.min_snr_gamma,
            options.timestep_shift,
            gamma_num,
            options.subject_weight,
        )
    raise UserError(f"stage {stage!r} is unknown; known: {', '.join(STAGES)}")


def _vae_loss(models: Models, kl_weight: float, edge_weight: float) -> Loss:
    """Reconstruction (L1 of pixels and of their differences, which keeps edges sharp) and a small KL."""

    def loss(params: Params, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        images = to_signed(batch["image"])
        reconstruction, mean, log_variance = models.vae.apply({"params": params["vae"]}, images, key)
        error = reconstruction - images
        l1 = jnp.abs(error).mean()
        edges = jnp.abs(jnp.diff(error, axis=1)).mean() + jnp.abs(jnp.diff(error, axis=2)).mean()
        kl = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance).mean()
        metrics = {"l1": l1, "mse": jnp.square(error).mean(), "kl": kl, "latent_std": mean.std()}
        return l1 + edge_weight * edges + kl_weight * kl, metrics

    return loss


def _clip_loss(models: Models, temperature: float) -> Loss:
    """Symmetric contrastive loss over the global batch.

    Small worlds repeat captions within a batch: every image with the same caption counts as a match.
    """

    def loss(params: Params, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        del key
        ids = batch["ids"][:, 0]
        text = models.text_encoders["text_encoder"].apply({"params": params["text_encoder"]}, ids).pooled
        images = to_signed(batch["image"])
        image = (
            models.image_encoders["image_encoder"].apply({"params": params["image_encoder"]}, images).pooled
        )
        return _contrastive(text, image, (ids[:, None] == ids[None]).all(axis=-1), temperature)

    return loss


def _contrastive(first: Array, second: Array, same: Array, temperature: float) -> tuple[Array, Metrics]:
    """Symmetric cross-entropy of finding each row's counterpart among those of the whole batch (InfoNCE).

    Args:
      first, second: (B, C), of any length.
      same: bool (B, B), symmetric: which rows count as a match, beside their own counterparts.
      temperature: of the cosine similarities.
    """
    first, second = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (first, second))
    logits = first @ second.T / temperature
    same = same.astype(jnp.float32)
    target = same / same.sum(axis=-1, keepdims=True)  # symmetric, so the same for both directions

    def cross_entropy(logits: Array) -> Array:
        return -(target * jax.nn.log_softmax(logits, axis=-1)).sum(axis=-1).mean()

    hit = jnp.take_along_axis(same, jnp.argmax(logits, axis=-1)[:, None], axis=-1)
    return 0.5 * (cross_entropy(logits) + cross_entropy(logits.T)), {"accuracy": hit.mean()}


def _instance_loss(models: Models, temperature: float, grey_share: float) -> Loss:
    """Contrastive loss between two photos of each subject, over the global batch; the same subject matches.

    It trains the last image tower. One without a class token is pooled by the mean of its patches, so these
    learn to tell which one of many subjects they show. Colours alone would nearly do; in `grey_share` of the
    batches there are none, so that patterns and proportions must be told apart too.
    """
    if not models.image_encoders:
        raise UserError("the stage instance trains an image tower, but the model has none")
    name, tower = list(models.image_encoders.items())[-1]

    def loss(params: Params, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        k_grey, k_mix = jax.random.split(key)
        photos = to_signed(batch["views"])  # (B, 2, S, S, 3)
        mix = jax.random.dirichlet(k_mix, jnp.full(3, 2.0))
        grey = jnp.broadcast_to((photos @ mix)[..., None], photos.shape)
        photos = jnp.where(jax.random.bernoulli(k_grey, grey_share), grey, photos)
        count = photos.shape[0]
        pooled = tower.apply({"params": params[name]}, photos.reshape(2 * count, *photos.shape[2:])).pooled
        first, second = jnp.moveaxis(pooled.reshape(count, 2, -1), 1, 0)
        subject = batch["subject"]
        return _contrastive(first, second, subject[:, None] == subject[None], temperature)

    return loss


def _diffusion_loss(
    models: Models,
    schedule: ScheduleConfig,
    min_snr_gamma: float,
    timestep_shift: float,
    gamma_num: tuple[float, float] | None = None,
    subject_weight: float = 1.0,
) -> Loss:
    """Denoising loss (eq. 1), of the base or, with a range for γ_num, of the customization.

    Every SNR is weighted by min(SNR, γ) as in min-SNR weighting, divided as the prediction type asks;
    `min_snr_gamma` 0 turns that off, and with `timestep_shift` 1 gives eq. 1 itself. With a `subject_weight`
    other than 1, the batch's "region" (B, h, w), the share of each latent that its subject covers, weighs so
    much more than the rest, and examples weigh alike.
    """
    alphas = jnp.asarray(schedule.alphas_cumprod(), jnp.float32)

    def loss(params: Params, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        k_latent, k_t, k_noise, k_gamma = jax.random.split(key, 4)
        z0 = _latents(models, params, batch, k_latent)
        text, pooled = _text(models, params, batch)
        count = z0.shape[0]
        sizes = None
        if pooled is not None:  # latents know the image's size too, where it is not there
            sizes = size_ids(count, *(side * models.vae_config.downscale for side in z0.shape[1:3]))
        t = jax.random.randint(k_t, (count,), 0, schedule.num_train_timesteps)
        t = shift_timesteps(t, timestep_shift, schedule.num_train_timesteps)
        signal, sigma = (jnp.sqrt(x)[:, None, None, None] for x in (alphas[t], 1.0 - alphas[t]))
        noise = jax.random.normal(k_noise, z0.shape)
        z = add_noise(z0, noise, signal, sigma)
        features = flags = quantity = None
        if gamma_num is not None:
            # one subject
            features = tuple(x[:, None] for x in encode_reference(models, params, batch["reference"]))
            flags = batch["flag"][:, None]
            # one γ_num a step for the whole batch (eq. 10)
            gamma = jnp.broadcast_to(
                jax.random.uniform(k_gamma, (), minval=gamma_num[0], maxval=gamma_num[1]), (count,)
            )
            share = jnp.sqrt(alphas[t])
            quantity = InfluenceQuantity(gamma, 1.0 - share, share)

        def predict(unet: Any) -> Array:
            context = unet.encode_context(text, features, flags, pooled=pooled, time_ids=sizes)
            return unet(z, t, context, quantity=quantity)[0]

        prediction = models.unet.apply({"params": params["unet"]}, method=predict)
        target = training_target(schedule.prediction_type, z0, noise, signal, sigma)
        error = jnp.square(prediction - target).mean(axis=-1)
        mse = error.mean()
        if subject_weight != 1.0:
            region = batch["region"].astype(jnp.float32) / 255.0
            weight = 1.0 + (subject_weight - 1.0) * region
            error = error * weight / weight.mean(axis=(1, 2), keepdims=True)
        snr = alphas[t] / (1.0 - alphas[t])
        weight = _snr_weight(snr, min_snr_gamma, schedule.prediction_type)
        return (weight * error.mean(axis=(1, 2))).mean(), {"mse": mse}

    return loss


def shift_timesteps(t: Array, shift: float, count: int) -> Array:
    """Timesteps of 0 … count − 1, moved towards noise: the share x of the way becomes s·x / (1 + (s − 1)·x).

    Half of uniform ones then lie above s / (1 + s) of the way. The shift of resolution-dependent schedules in
    "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", eq. 23.
    """
    x = (t.astype(jnp.float32) + 0.5) / count
    return jnp.floor(count * (shift * x / (1.0 + (shift - 1.0) * x))).astype(t.dtype)


def _latents(models: Models, params: Params, batch: Batch, key: Array) -> Array:
    """A draw from the VAE's posterior of the batch's images, which may have been stored in their place."""
    if "mean" not in batch:
        variables, images = {"params": params["vae"]}, to_signed(batch["image"])
        return models.vae.apply(variables, images, key, method=VAE.encode)
    mean, log_variance = (batch[name].astype(jnp.float32) for name in ("mean", "log_variance"))
    return models.vae.apply({}, mean, log_variance, key, method=VAE.sample)


def _text(models: Models, params: Params, batch: Batch) -> tuple[Array, Array | None]:
    """`encode_text` of the batch's captions, which may have been stored in their place."""
    if "text" not in batch:
        return encode_text(models, params, list(jnp.moveaxis(batch["ids"], 1, 0)))
    pooled = batch["pooled"].astype(jnp.float32) if "pooled" in batch else None
    return batch["text"].astype(jnp.float32), pooled


def _snr_weight(snr: Array, gamma: float, prediction_type: str) -> Array:
    """Min-SNR-γ weight of a loss on ε (÷ SNR) or on v (÷ SNR + 1)."""
    if gamma == 0:
        return jnp.ones_like(snr)
    return jnp.minimum(snr, gamma) / (snr if prediction_type == "epsilon" else snr + 1.0)
