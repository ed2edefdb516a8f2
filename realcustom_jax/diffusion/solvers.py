"""Solvers as tables: each step is a linear combination with coefficients that are known before the loop.

    x' = a·x + b·m₀ + c·m₁ + d·x_saved + e·noise

m₀ is the z_0 predicted in this step, m₁ the z_0 predicted in the step before, x_saved the x of an earlier
step. The loop does not know which solver it runs. Tables are computed on the host in float64.

Notation: α = √ᾱ_t, σ = √(1−ᾱ_t), λ = log(α/σ); primes for the next timestep.
"""

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from realcustom_jax.common.errors import UserError
from realcustom_jax.diffusion.schedule import ScheduleConfig

_Column = TypeVar("_Column")


class SolverTable(NamedTuple, Generic[_Column]):
    """Table with one row per step; each column is (steps,) float32.

    Columns are numpy arrays from `make_table`, and JAX arrays inside a program. A single row has scalars.

    Attributes:
      t: timesteps, for the network.
      alpha, sigma: √ᾱ_t and √(1−ᾱ_t), to turn the network's prediction into z_0.
      a, b, c, d, e: coefficients of x, m₀, m₁, x_saved and the noise. `e` is None if no step adds noise, so
        the loop then has no random numbers.
      save: 1 if the x before this step becomes x_saved, else 0.
    """

    t: _Column
    alpha: _Column
    sigma: _Column
    a: _Column
    b: _Column
    c: _Column
    d: _Column
    e: _Column | None
    save: _Column


SPACINGS = ("trailing", "leading", "linspace")


def timesteps(spacing: str, steps: int, total: int, offset: int = 0) -> np.ndarray:
    """Decreasing timesteps (steps,) int64 in 0 … total − 1, with diffusers' spacings (arXiv 2305.08891).

    Args:
      spacing: "trailing" begins at the last timestep, "leading" ends at `offset`, "linspace" spans both ends.
      steps: number of timesteps, 1 … total.
      total: number of training timesteps.
      offset: last timestep of "leading"; the other spacings ignore it.

    Raises:
      UserError: for an unknown spacing, or a number of steps that does not fit.
    """
    if not 1 <= steps <= total:
        raise UserError(f"the number of steps must be from 1 to {total}, not {steps}")
    index = np.arange(steps)
    if spacing == "trailing":
        # The noisiest timestep comes first, so the model sees pure noise as it does in training.
        return np.round(total - 1 - index * total / steps).astype(np.int64)
    if spacing == "leading":
        t = index[::-1] * (total // steps) + offset
        if t[0] >= total:
            raise UserError(
                f"{steps} steps with leading spacing and offset {offset} exceed timestep {total - 1}"
            )
        return t
    if spacing == "linspace":
        return np.round(np.linspace(0, total - 1, steps))[::-1].astype(np.int64)
    raise UserError(f"timestep spacing {spacing!r} is unknown; known: {', '.join(SPACINGS)}")


def make_table(
    solver: str, steps: int, schedule: ScheduleConfig, spacing: str, eta: float = 0.0
) -> SolverTable[np.ndarray]:
    """Table of a solver.

    Args:
      solver: "ddim" (with η), "euler", "dpmpp_2m", or "dpmpp_2s" (DPM-Solver++, single step, order 2).
      steps: number of network evaluations.
      schedule: noise schedule of the base model.
      spacing: see `timesteps`.
      eta: η of DDIM, from 0 (deterministic) to 1 (as noisy as DDPM).

    Raises:
      UserError: for an unknown solver or spacing, or η with a solver that adds no noise.
    """
    if solver not in _SOLVERS:
        raise UserError(f"solver {solver!r} is unknown; known: {', '.join(_SOLVERS)}")
    if eta and not takes_eta(solver):
        known = ", ".join(filter(takes_eta, _SOLVERS))
        raise UserError(f"eta is an option of {known}, not of {solver}")
    fill, stops_at_0 = _SOLVERS[solver].fill, _SOLVERS[solver].stops_at_0
    # float64 on the host: differences of log-SNRs of neighbouring steps lose digits in float32.
    alphas_cumprod = schedule.alphas_cumprod()
    t = timesteps(spacing, steps, schedule.num_train_timesteps, schedule.steps_offset)
    end = alphas_cumprod[0] if stops_at_0 else 1.0  # ᾱ of timestep 0, or of the clean image
    bars = np.append(alphas_cumprod[t], end)  # (steps + 1,): ᾱ at the start of each step, and at the end
    alpha, sigma = np.sqrt(bars), np.sqrt(1.0 - bars)
    rows = np.zeros((steps, 6))
    fill(rows, alpha, sigma, **({"eta": eta} if takes_eta(solver) else {}))
    columns = (np.ascontiguousarray(x, dtype=np.float32) for x in (t, alpha[:-1], sigma[:-1], *rows.T))
    table = SolverTable(*columns)
    return table if rows[:, _E].any() else table._replace(e=None)


_A, _B, _C, _D, _E, _SAVE = range(6)


def _ddim(rows: np.ndarray, alpha: np.ndarray, sigma: np.ndarray, eta: float) -> None:
    """DDIM, eq. 12 and 16 of arXiv 2010.02502: x' = α' z_0 + √(σ'² − s²) ε + s·noise."""
    a, s, a_next, s_next = alpha[:-1], sigma[:-1], alpha[1:], sigma[1:]
    noise = eta * s_next / s * np.sqrt(np.maximum(1.0 - np.square(a / a_next), 0.0))
    direction = np.sqrt(np.maximum(np.square(s_next) - np.square(noise), 0.0))
    # With ε = (x − α z_0) / σ the step is linear in x and z_0.
    rows[:, _A] = direction / s
    rows[:, _B] = a_next - direction * a / s
    rows[:, _E] = noise


def _euler(rows: np.ndarray, alpha: np.ndarray, sigma: np.ndarray) -> None:
    """Euler's method on dx̂/dσ̂ = (x̂ − z_0)/σ̂ with x̂ = x/α, σ̂ = σ/α (arXiv 2206.00364, Algorithm 1)."""
    # x̂' = x̂ + (σ̂' − σ̂)(x̂ − z_0)/σ̂ = r x̂ + (1 − r) z_0 with r = σ̂'/σ̂
    ratio = (sigma[1:] / alpha[1:]) / (sigma[:-1] / alpha[:-1])
    rows[:, _A] = ratio * alpha[1:] / alpha[:-1]
    rows[:, _B] = (1.0 - ratio) * alpha[1:]


def _first_order(alpha: np.ndarray, sigma: np.ndarray, i: int, start: int) -> tuple[float, float]:
    """First-order DPM-Solver++ from step `start` to i + 1: the factor of x, and A = α'(e^{−h} − 1).

    h = λ' − λ is the step in log-SNR.
    """
    decay = (sigma[i + 1] / alpha[i + 1]) / (sigma[start] / alpha[start])  # e^{−h}, 0 at the clean image
    return sigma[i + 1] / sigma[start], alpha[i + 1] * (decay - 1.0)


def _log_snr(alpha: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # σ = 0 at the clean image gives λ = ∞
        return np.log(alpha) - np.log(sigma)


def _dpmpp_2m(rows: np.ndarray, alpha: np.ndarray, sigma: np.ndarray) -> None:
    """DPM-Solver++(2M), Algorithm 2 of arXiv 2211.01095. The first and the last step are first-order."""
    lam, last = _log_snr(alpha, sigma), len(rows) - 1
    for i in range(len(rows)):
        rows[i, _A], growth = _first_order(alpha, sigma, i, i)
        extrapolation = 0.0  # 1/(2r) with r = h_{i−1}/h_i
        # The first step has no m₁. The last has h = ∞, where only first order is defined.
        if 0 < i < last:
            extrapolation = 0.5 * (lam[i + 1] - lam[i]) / (lam[i] - lam[i - 1])
        rows[i, _B] = -growth * (1.0 + extrapolation)
        rows[i, _C] = growth * extrapolation


def _dpmpp_2s(rows: np.ndarray, alpha: np.ndarray, sigma: np.ndarray) -> None:
    """DPM-Solver++ single step (Algorithm 1 of arXiv 2211.01095, midpoint) with the published orders.

    The orders are 1, 1, 2, 1, 2, …, 1. A second-order step starts at the x before the preceding first-order
    step, and uses the predictions of both.
    """
    lam, count = _log_snr(alpha, sigma), len(rows)
    for i in range(count):
        if i % 2 == 0 and 0 < i < count - 1:
            # x_saved is the x before step i − 1; r is that step's share of the double step in λ.
            rows[i, _D], growth = _first_order(alpha, sigma, i, i - 1)
            r = (lam[i] - lam[i - 1]) / (lam[i + 1] - lam[i - 1])
            rows[i, _B] = -0.5 * growth / r
            rows[i, _C] = -growth + 0.5 * growth / r
        else:
            rows[i, _A], growth = _first_order(alpha, sigma, i, i)
            rows[i, _B] = -growth
            rows[i, _SAVE] = 1.0


class _Solver(NamedTuple):
    """A solver.

    Attributes:
      fill: fills the columns a to save of the rows; takes (rows, α, σ) and, with `takes_eta`, η.
      takes_eta: whether η is an option of it.
      stops_at_0: whether it stops at timestep 0 instead of the clean image (ᾱ = 1).
    """

    fill: Callable[..., None]
    takes_eta: bool = False
    stops_at_0: bool = False


_SOLVERS = {
    "ddim": _Solver(_ddim, takes_eta=True),
    "euler": _Solver(_euler),
    "dpmpp_2m": _Solver(_dpmpp_2m),
    "dpmpp_2s": _Solver(_dpmpp_2s, stops_at_0=True),  # as published
}
SOLVERS = tuple(_SOLVERS)


def takes_eta(solver: str) -> bool:
    """Whether η is an option of a solver of `SOLVERS`."""
    return _SOLVERS[solver].takes_eta
