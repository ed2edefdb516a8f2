"""Our noise schedule and solver tables against diffusers' schedulers, on a network known in closed form."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'parity'")
diffusers = pytest.importorskip("diffusers", reason="needs the extra 'parity'")

import torch  # noqa: E402

from realcustom_jax.diffusion.schedule import ScheduleConfig, predicted_z0_and_noise  # noqa: E402
from realcustom_jax.diffusion.solvers import make_table  # noqa: E402

# Relative, on x after all steps. Theirs keep ᾱ as a float32 product of 1000 factors, and σ and the steps in
# float32; ours are float64 until the table is rounded. Measured: at most 7e-7.
TOLERANCE = 1e-5
BASE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
MIXING = np.array([[0.5, -0.2, 0.1], [0.3, 0.4, -0.3], [-0.1, 0.2, 0.6]])


def network(x, t):
    """A fake network: linear in x, changing with t."""
    return x @ MIXING + np.array([0.3, -0.5, 0.1]) * (t / 1000.0)


def run_ours(solver, schedule, spacing, steps, x):
    table = make_table(solver, steps, schedule, spacing)
    saved = previous = np.zeros_like(x)
    for i, t in enumerate(table.t):
        z0, _ = predicted_z0_and_noise(
            schedule.prediction_type, network(x, t), x, table.alpha[i], table.sigma[i]
        )
        saved = x if table.save[i] else saved
        x = table.a[i] * x + table.b[i] * z0 + table.c[i] * previous + table.d[i] * saved
        previous = z0
    return table, x


def run_theirs(scheduler, steps, x, first_alpha):
    """In diffusers, Euler's x is x/α; `scale_model_input` converts it to ours."""
    scheduler.set_timesteps(steps)
    euler = isinstance(scheduler, diffusers.EulerDiscreteScheduler)
    x = torch.from_numpy(x / first_alpha if euler else x)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t).numpy()
        x = scheduler.step(torch.from_numpy(network(scaled, float(t))), t, x).prev_sample
    return scheduler.timesteps.numpy(), x.numpy()


@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "linear"])
def test_noise_schedule_equals_diffusers(beta_schedule):
    """ᾱ of all 1000 timesteps; theirs is a product in float32, off by up to 1000 roundings of 6e-8."""
    values = BASE | {"beta_schedule": beta_schedule}
    ours = ScheduleConfig(**values).alphas_cumprod()
    theirs = diffusers.DDIMScheduler(**values).alphas_cumprod.numpy()
    np.testing.assert_allclose(ours, theirs, rtol=6e-5)


# Spacings and step counts at which both have the same timesteps. Elsewhere they differ, and ours follow the
# papers and the published inference:
# - Their DDIM steps to t − ⌊1000/steps⌋, ours to the next timestep of the list; these are equal where 1000 is
#   a multiple of the steps, and never with "linspace";
# - their "linspace" of Euler has fractional timesteps, with interpolated noise, unless steps − 1 divides 999;
# - their "leading" and "linspace" of DPM-Solver++ make steps + 1 timesteps and drop the last;
# - their "trailing" rounds before it subtracts 1, so halves round the other way (16 steps).
CASES = [
    ("ddim", "trailing", 10),
    ("ddim", "leading", 50),
    ("euler", "trailing", 7),
    ("euler", "leading", 12),
    ("euler", "linspace", 28),
    ("dpmpp_2m", "trailing", 7),
    ("dpmpp_2m", "trailing", 25),
]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("solver", "spacing", "steps"), CASES)
def test_solver_equals_diffusers(solver, spacing, steps, prediction_type):
    values = BASE | {"prediction_type": prediction_type, "timestep_spacing": spacing, "steps_offset": 1}
    scheduler = {
        "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True, **values),
        "euler": lambda: diffusers.EulerDiscreteScheduler(**values),
        "dpmpp_2m": lambda: diffusers.DPMSolverMultistepScheduler(**values),
    }[solver]()
    x = np.random.default_rng(10).standard_normal((2, 3))
    table, ours = run_ours(solver, ScheduleConfig(**values), spacing, steps, x)
    timesteps, theirs = run_theirs(scheduler, steps, x, table.alpha[0])
    np.testing.assert_array_equal(table.t, timesteps)
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    print(f"relative error {error:.1e}")
    assert error < TOLERANCE
