"""Solver tables against textbook formulas and against the exact solution of a known diffusion."""

import math

import numpy as np
import pytest

from realcustom_jax.common.errors import UserError
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.diffusion.solvers import make_table, timesteps

SCHEDULE = ScheduleConfig()
SOLVERS = ("ddim", "euler", "dpmpp_2m", "dpmpp_2s")


def test_timesteps_equal_hand_computed_values():
    """The three spacings for 4 of 1000 steps, counted by hand."""
    assert timesteps("trailing", 4, 1000).tolist() == [999, 749, 499, 249]
    assert timesteps("leading", 4, 1000, 1).tolist() == [751, 501, 251, 1]
    assert timesteps("linspace", 4, 1000).tolist() == [999, 666, 333, 0]


def test_trailing_rounds_half_to_even_as_published():
    """`round(arange(999, −1, −1000/n))` at n = 16, where steps of 62.5 fall on halves."""
    expected = np.round(np.arange(999, -1, -62.5)).astype(int)
    assert timesteps("trailing", 16, 1000).tolist() == expected.tolist()


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_timesteps_decrease_and_stay_in_range(spacing):
    for steps in (1, 7, 50, 999, 1000):
        t = timesteps(spacing, steps, 1000, 0)
        assert len(t) == steps and (np.diff(t) < 0).all()
        assert t.min() >= 0 and t.max() <= 999


def run(table, x, denoise, rng=None):
    """Run a solver table as a plain loop in float64; returns x and the last step's predicted z_0."""
    saved = previous = np.zeros_like(x)
    for i in range(len(table.t)):
        z0 = denoise(x, float(table.alpha[i]), float(table.sigma[i]))
        saved = x if table.save[i] else saved
        x_next = table.a[i] * x + table.b[i] * z0 + table.c[i] * previous + table.d[i] * saved
        x = x_next + (0.0 if rng is None else table.e[i] * rng.standard_normal(x.shape))
        previous = z0
    return x, previous


def gaussian_denoiser(std):
    """E[z_0 | x] for z_0 ~ N(0, std²): the exact denoiser of a Gaussian."""
    return lambda x, alpha, sigma: alpha * std**2 / (alpha**2 * std**2 + sigma**2) * x


@pytest.mark.parametrize("solver", SOLVERS)
def test_solver_converges_to_exact_gaussian_flow(solver):
    """The probability flow of a Gaussian has the closed form x_0 = x_T·std/√(ᾱ_T std² + 1 − ᾱ_T).

    Every solver converges: within 0.6 % at 1000 steps, and at least three times closer than at 200. At 20
    steps, where the first and the last step (of first order) dominate, second order beats DDIM by a third.
    """
    std, x = 0.5, np.array([1.0, -2.0])
    bars = SCHEDULE.alphas_cumprod()

    def error(name, steps):
        result = run(make_table(name, steps, SCHEDULE, "trailing"), x, gaussian_denoiser(std))[0]
        end = bars[0] if name == "dpmpp_2s" else 1.0  # where the solver stops

        def scale(bar):
            return math.sqrt(bar * std**2 + 1.0 - bar)

        exact = x * scale(end) / scale(bars[-1])
        return np.abs(result / exact - 1.0).max()

    assert error(solver, 1000) < min(0.006, error(solver, 200) / 3)
    if solver.startswith("dpmpp"):
        assert error(solver, 20) < error("ddim", 20) * 2 / 3


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_constant_prediction_is_reached(solver, steps):
    """When every step predicts the same z_0, x stays on α z_0 + σ ε: the coefficients are consistent.

    float32 tables, so 1e-5.
    """
    z0, noise = np.array([0.3, -1.2]), np.array([1.0, 0.5])
    table = make_table(solver, steps, SCHEDULE, "trailing")
    x = table.alpha[0] * z0 + table.sigma[0] * noise
    result, _ = run(table, x, lambda x, alpha, sigma: z0)
    bar = SCHEDULE.alphas_cumprod()[0] if solver == "dpmpp_2s" else 1.0
    expected = math.sqrt(bar) * z0 + math.sqrt(1.0 - bar) * noise
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_ddim_with_noise_preserves_variance():
    """η = 1 on a unit Gaussian keeps the marginal N(0, 1) as steps get small; 20,000 samples, so 1 %."""
    rng = np.random.default_rng(0)
    table = make_table("ddim", 1000, SCHEDULE, "trailing", eta=1.0)
    x, _ = run(table, rng.standard_normal(20_000), gaussian_denoiser(1.0), rng)
    assert abs(x.std() - 1.0) < 0.01
    assert (table.e[:-1] > 0).all()


def test_dpmpp_2s_alternates_orders_1_and_2():
    """As published: order 1, then pairs of 1 and 2, the last of order 1; order 2 begins at x_saved."""
    for steps, second_order in ((5, [2]), (8, [2, 4, 6])):
        table = make_table("dpmpp_2s", steps, SCHEDULE, "trailing")
        assert np.flatnonzero(table.d).tolist() == second_order
        assert np.flatnonzero(table.save == 0).tolist() == second_order


def test_invalid_solver_arguments_raise():
    with pytest.raises(UserError, match="solver 'heun' is unknown; known: ddim"):
        make_table("heun", 5, SCHEDULE, "trailing")
    with pytest.raises(UserError, match="eta is an option of ddim"):
        make_table("euler", 5, SCHEDULE, "trailing", eta=0.5)
    with pytest.raises(UserError, match="from 1 to 1000, not 0"):
        make_table("ddim", 0, SCHEDULE, "trailing")
    with pytest.raises(UserError, match="1000 steps with leading spacing and offset 1 exceed timestep 999"):
        make_table("dpmpp_2m", 1000, SCHEDULE, "leading")
    with pytest.raises(UserError, match="spacing 'even' is unknown"):
        make_table("ddim", 5, SCHEDULE, "even")


def test_only_solvers_with_noise_have_a_noise_column():
    """The loop adds noise exactly where there is a column, whatever the solver's name."""
    for solver in SOLVERS:
        assert make_table(solver, 5, ScheduleConfig(), "trailing").e is None
    assert make_table("ddim", 5, ScheduleConfig(), "trailing", eta=0.5).e.max() > 0


def test_eta_is_refused_for_solvers_without_it():
    with pytest.raises(UserError, match="eta is an option of ddim, not of euler"):
        make_table("euler", 5, ScheduleConfig(), "trailing", eta=0.5)
