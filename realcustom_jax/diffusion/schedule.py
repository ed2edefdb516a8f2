"""The noise schedule of the base model (eq. 2) and the prediction type of its network."""

import dataclasses

import numpy as np
from jax import Array

from realcustom_jax.common.errors import UserError

_PREDICTIONS = ("epsilon", "v_prediction")
_BETAS = ("scaled_linear", "linear")


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Noise schedule, with the field names of diffusers' `scheduler_config.json`; defaults are SD1.5's.

    Raises:
      UserError: for an unknown prediction type.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 1

    def __post_init__(self):
        if self.prediction_type not in _PREDICTIONS:
            raise UserError(f"prediction_type {self.prediction_type!r} is unknown; known: {_PREDICTIONS}")
        if self.beta_schedule not in _BETAS:
            raise UserError(f"beta_schedule {self.beta_schedule!r} is unknown; known: {', '.join(_BETAS)}")

    def alphas_cumprod(self) -> np.ndarray:
        """ᾱ_t for t = 0 … num_train_timesteps − 1, float64.

        `scaled_linear` spaces √β evenly, `linear` spaces β evenly.

        Raises:
          UserError: for an unknown `beta_schedule`.
        """
        if self.beta_schedule == "scaled_linear":
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_train_timesteps) ** 2
        else:
            betas = np.linspace(self.beta_start, self.beta_end, self.num_train_timesteps)
        return np.cumprod(1.0 - betas)


def add_noise(z0: Array, noise: Array, signal: Array, sigma: Array) -> Array:
    """z_t = √ᾱ_t z_0 + √(1−ᾱ_t) ε (eq. 2); `signal` is √ᾱ_t and `sigma` √(1−ᾱ_t), broadcast to z_0."""
    return signal * z0 + sigma * noise


def training_target(prediction_type: str, z0: Array, noise: Array, signal: Array, sigma: Array) -> Array:
    """Training target of the network: ε, or v = √ᾱ_t ε − √(1−ᾱ_t) z_0 (arXiv 2202.00512).

    Arguments as in `add_noise`.
    """
    return noise if prediction_type == "epsilon" else signal * noise - sigma * z0


def predicted_z0_and_noise(
    prediction_type: str, prediction: Array, z: Array, signal: Array, sigma: Array
) -> tuple[Array, Array]:
    """z_0 and ε from the network's prediction at z_t; `signal` is √ᾱ_t and `sigma` √(1−ᾱ_t)."""
    # The inverse of `add_noise` and `training_target`: two linear equations in z_0 and ε.
    if prediction_type == "epsilon":
        return (z - sigma * prediction) / signal, prediction
    return signal * z - sigma * prediction, sigma * z + signal * prediction
