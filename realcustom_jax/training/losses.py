"""The loss of each training stage, as a pure function (parameters, batch, key) → (loss, metrics)."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.pixels import to_signed
from realcustom_jax.common.rules import option
from realcustom_jax.diffusion.schedule import ScheduleConfig, add_noise, training_target
from realcustom_jax.models.conditioning import encode_reference, encode_text, size_ids
from realcustom_jax.models.family import Models
from realcustom_jax.models.scoring import TokenSelection
from realcustom_jax.models.vae import VAE

Params = Mapping[str, Any]
Batch = Mapping[str, Array]
Metrics = dict[str, Array]
Loss = Callable[[Params, Batch, Array], tuple[Array, Metrics]]

STAGES = ("vae", "clip", "instance", "base", "customize")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The config's `loss` section. The brackets name the stages that read an option; the others ignore it."""

    kl_weight: float = option(1e-4, "weight of the VAE's KL divergence (vae)", low=0)
    edge_weight: float = option(0.5, "weight of differences between neighbouring pixels (vae)", low=0)
    temperature: float = option(
        0.07, "temperature of the similarities (clip, instance)", low=0,
        above_0="similarities are divided by it",
    )  # fmt: skip
    grey_share: float = option(
        0.0, "share of batches in grey, so that shapes are learned too (instance)", low=0, high=1
    )
    min_snr_gamma: float = option(
        0.0, "γ of min-SNR weighting; 0 gives plain eq. 1, which weights noisy steps more (base, customize)",
        low=0,
    )  # fmt: skip
    timestep_shift: float = option(
        1.0, "s: half of the timesteps are drawn above s / (1 + s) of the schedule (base, customize)", low=0,
        above_0="0 would leave no noise at all",
    )  # fmt: skip
    gamma_num_min: float = option(
        0.3, "smallest share of visual tokens to keep, eq. 10 (customize)", low=0, high=1
    )
    gamma_num_max: float = option(
        1.0, "largest share of visual tokens to keep (customize)", low=0, high=1,
        above_0="no visual token would be left",
    )  # fmt: skip
    subject_weight: float = option(
        1.0, "weight of the subject's pixels; values other than 1 need data.reference='subject' (customize)",
        low=0,
    )  # fmt: skip


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
    """VAE loss: L1 of the pixels, L1 of the differences between neighbours, and a small KL divergence."""

    def loss(params: Params, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        images = to_signed(batch["image"])
        made: Any = models.vae.apply({"params": params["vae"]}, images, key)
        reconstruction, mean, log_variance = made
        error = reconstruction - images
        l1 = jnp.abs(error).mean()
        # L1 alone lets the decoder blur edges: the error of the image gradients penalises that.
        edges = jnp.abs(jnp.diff(error, axis=1)).mean() + jnp.abs(jnp.diff(error, axis=2)).mean()
        kl = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance).mean()
        # `latent_std` shows whether the latents collapse; the export scales them to unit variance.
        metrics = {"l1": l1, "mse": jnp.square(error).mean(), "kl": kl, "latent_std": mean.std()}
        return l1 + edge_weight * edges + kl_weight * kl, metrics

    return loss


def _clip_loss(models: Models, temperature: float) -> Loss:
    """Symmetric contrastive loss between captions and images, over the global batch."""

    def loss(params: Params, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        del key
        ids = batch["ids"][:, 0]
        text: Any = models.text_encoders["text_encoder"].apply({"params": params["text_encoder"]}, ids)
        images = to_signed(batch["image"])
        image: Any = models.image_encoders["image_encoder"].apply({"params": params["image_encoder"]}, images)
        # A batch may repeat a caption, so equal captions count as a match: (B, 1, L) == (1, B, L).
        return _contrastive(text.pooled, image.pooled, (ids[:, None] == ids[None]).all(axis=-1), temperature)

    return loss


def _contrastive(first: Array, second: Array, same: Array, temperature: float) -> tuple[Array, Metrics]:
    """Symmetric InfoNCE loss: each row must find its match among all rows of the batch.

    Args:
      first, second: (B, C) features; they are normalised here.
      same: bool (B, B), symmetric: pairs of rows that count as a match. The diagonal is True.
      temperature: divides the cosine similarities.
    """
    first, second = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (first, second))
    logits = first @ second.T / temperature
    same = same.astype(jnp.float32)
    # `same` is symmetric, so one target serves both directions.
    target = same / same.sum(axis=-1, keepdims=True)

    there, back = (optax.softmax_cross_entropy(x, target).mean() for x in (logits, logits.T))
    hit = jnp.take_along_axis(same, jnp.argmax(logits, axis=-1)[:, None], axis=-1)
    return 0.5 * (there + back), {"accuracy": hit.mean()}


def _instance_loss(models: Models, temperature: float, grey_share: float) -> Loss:
    """Contrastive loss between two photos of each subject, over the global batch.

    It trains the last image tower. A tower without a class token is pooled by the mean of its patches, so the
    patches learn features that identify a subject.
    """
    if not models.image_encoders:
        raise UserError("the stage instance trains an image tower, but the model has none")
    name, tower = list(models.image_encoders.items())[-1]

    def loss(params: Params, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        k_grey, k_mix = jax.random.split(key)
        photos = to_signed(batch["views"])  # (B, 2, S, S, 3)
        # Colours alone nearly identify a subject. A share of the batches is grey, mixed with random channel
        # weights, so that patterns and proportions are learned too.
        mix = jax.random.dirichlet(k_mix, jnp.full(3, 2.0))
        grey = jnp.broadcast_to((photos @ mix)[..., None], photos.shape)
        photos = jnp.where(jax.random.bernoulli(k_grey, grey_share), grey, photos)
        count = photos.shape[0]
        # (B, 2, S, S, 3) → (2B, S, S, 3) → pooled (2B, C) → two arrays (B, C)
        seen: Any = tower.apply({"params": params[name]}, photos.reshape(2 * count, *photos.shape[2:]))
        first, second = jnp.moveaxis(seen.pooled.reshape(count, 2, -1), 1, 0)
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
    """Denoising loss (eq. 1): of the base model, or of the customization when a γ_num range is given.

    Args:
      models, schedule: the networks and the noise schedule.
      min_snr_gamma: γ of min-SNR weighting; 0 turns it off. With `timestep_shift` 1 too, this is eq. 1.
      timestep_shift: see `shift_timesteps`.
      gamma_num: range from which each step draws its γ_num; None trains without visual tokens.
      subject_weight: weight of the pixels in the batch's "region", see `_weighted_by_region`.
    """
    alphas = jnp.asarray(schedule.alphas_cumprod(), jnp.float32)

    def loss(params: Params, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        k_latent, k_t, k_noise, k_gamma = jax.random.split(key, 4)
        z0 = _latents(models, params, batch, k_latent)
        text, pooled = _text(models, params, batch)
        sizes = None if pooled is None else _sizes(models, z0)
        t = jax.random.randint(k_t, z0.shape[:1], 0, schedule.num_train_timesteps)
        t = shift_timesteps(t, timestep_shift, schedule.num_train_timesteps)
        # (B, 1, 1, 1), for latents (B, h, w, C)
        signal, sigma = (jnp.sqrt(x)[:, None, None, None] for x in (alphas[t], 1.0 - alphas[t]))
        noise = jax.random.normal(k_noise, z0.shape)
        z = add_noise(z0, noise, signal, sigma)  # eq. 2
        features = flags = token_selection = masks = None
        if gamma_num is not None:
            features = _references(models, params, batch["reference"])
            flags = batch["flag"]
            masks = batch["scope"].astype(jnp.float32) / 255.0 if "scope" in batch else None
            token_selection = _draw_selection(k_gamma, gamma_num, alphas[t])

        def predict(unet: Any) -> Array:
            context = unet.encode_context(text, features, flags, pooled=pooled, time_ids=sizes)
            return unet(z, t, context, masks=masks, token_selection=token_selection)[0]

        prediction: Any = models.unet.apply({"params": params["unet"]}, method=predict)
        target = training_target(schedule.prediction_type, z0, noise, signal, sigma)
        error = jnp.square(prediction - target).mean(axis=-1)
        mse = error.mean()
        if subject_weight != 1.0:
            # of the union of the subjects: (B, R, h, w) → (B, h, w)
            error = _weighted_by_region(error, batch["region"].max(axis=1), subject_weight)
        snr = alphas[t] / (1.0 - alphas[t])
        weight = _snr_weight(snr, min_snr_gamma, schedule.prediction_type)
        return (weight * error.mean(axis=(1, 2))).mean(), {"mse": mse}

    return loss


def _references(models: Models, params: Params, views: Array) -> tuple[Array, ...]:
    """`encode_reference` of several subjects: uint8 (B, R, V, S, S, 3) → each (B, R, N, C)."""
    batch, slots = views.shape[:2]
    features = encode_reference(models, params, views.reshape(batch * slots, *views.shape[2:]))
    return tuple(x.reshape(batch, slots, *x.shape[1:]) for x in features)


def _sizes(models: Models, latents: Array) -> Array:
    """SDXL's size conditioning of a batch of latents (B, h, w, C)."""
    # In pixels, but from the latents: a batch of stored latents has no image to measure.
    return size_ids(len(latents), *(side * models.vae_config.downscale for side in latents.shape[1:3]))


def _draw_selection(key: Array, gamma_num: tuple[float, float], alphas: Array) -> TokenSelection:
    """Influence quantity of a training step: a random γ_num (eq. 10) and the time weights of eq. 8.

    Args:
      key: for γ_num.
      gamma_num: range of γ_num.
      alphas: (B,) ᾱ_t.
    """
    # The paper draws one γ_num a step, for the whole batch.
    gamma = jax.random.uniform(key, (), minval=gamma_num[0], maxval=gamma_num[1])
    share = jnp.sqrt(alphas)
    return TokenSelection(jnp.broadcast_to(gamma, alphas.shape), 1.0 - share, share)


def _weighted_by_region(error: Array, region: Array, subject_weight: float) -> Array:
    """Weight the subject's latents by `subject_weight` and the rest by 1.

    Args:
      error: (B, h, w).
      region: uint8 (B, h, w), how much of each latent the subject covers; 255 is all of it.
      subject_weight: weight of a fully covered latent.
    """
    weight = 1.0 + (subject_weight - 1.0) * (region.astype(jnp.float32) / 255.0)
    # Normalised per image: otherwise images with a large subject would dominate the batch.
    return error * weight / weight.mean(axis=(1, 2), keepdims=True)


def shift_timesteps(t: Array, shift: float, count: int) -> Array:
    """Move timesteps of 0 … count − 1 towards noise: the share x becomes s·x / (1 + (s − 1)·x).

    Half of the uniformly drawn timesteps then lie above s / (1 + s) of the schedule. Source: "Scaling
    Rectified Flow Transformers for High-Resolution Image Synthesis", eq. 23.
    """
    # + 0.5: each timestep stands for the middle of its interval, so 0 and count − 1 are treated alike.
    x = (t.astype(jnp.float32) + 0.5) / count
    return jnp.floor(count * (shift * x / (1.0 + (shift - 1.0) * x))).astype(t.dtype)


def _latents(models: Models, params: Params, batch: Batch, key: Array) -> Array:
    """Latents drawn from the VAE's posterior, which is computed from images or read from stored moments."""
    if "mean" not in batch:
        variables, images = {"params": params["vae"]}, to_signed(batch["image"])
        drawn: Any = models.vae.apply(variables, images, key, method=VAE.encode)
        return drawn
    # data.encode stores the moments in float16.
    mean, log_variance = (batch[name].astype(jnp.float32) for name in ("mean", "log_variance"))
    drawn: Any = models.vae.apply({}, mean, log_variance, key, method=VAE.sample)
    return drawn


def _text(models: Models, params: Params, batch: Batch) -> tuple[Array, Array | None]:
    """Text features and pooled embedding of the captions, computed or read from the data set."""
    if "text" not in batch:
        # ids: (B, encoders, L) → one (B, L) for each text encoder
        return encode_text(models, params, list(jnp.moveaxis(batch["ids"], 1, 0)))
    pooled = batch["pooled"].astype(jnp.float32) if "pooled" in batch else None
    return batch["text"].astype(jnp.float32), pooled


def _snr_weight(snr: Array, gamma: float, prediction_type: str) -> Array:
    """Min-SNR-γ weight of a timestep (Hang et al., arXiv 2303.09556)."""
    if gamma == 0:
        return jnp.ones_like(snr)
    # The method weights the loss on z_0 by min(SNR, γ). The same loss on ε needs ÷ SNR, on v ÷ (SNR + 1).
    return jnp.minimum(snr, gamma) / (snr if prediction_type == "epsilon" else snr + 1.0)
