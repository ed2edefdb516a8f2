"""Speed metrics of a run, with a fake clock, and the window of a profile."""

import types

import jax
import jax.numpy as jnp
import pytest

from realcustom_jax.common.errors import UserError
from realcustom_jax.training import logs
from realcustom_jax.training.logs import Profile, parse_window


@pytest.fixture
def clock(monkeypatch):
    now = types.SimpleNamespace(time=100.0)
    monkeypatch.setattr(logs.time, "perf_counter", lambda: now.time)
    return now


def test_rates_cover_steps_since_last_read(clock):
    made = logs.Meter(batch_size=8)
    for seconds in (1.0, 3.0):
        for _ in range(4):
            with made.waiting():
                clock.time += 0.25 * seconds
            clock.time += 0.75 * seconds
            made.step()
        values = made.read()
        assert values["step_seconds"] == pytest.approx(seconds)
        assert values["images_per_second"] == pytest.approx(8 / seconds)
        assert values["input_wait"] == pytest.approx(0.25)


def test_time_outside_training_is_excluded(clock):
    made = logs.Meter(batch_size=8)
    made.step()
    clock.time += 2.0
    with made.aside(jnp.zeros(())):
        clock.time += 7.0
    assert made.read()["step_seconds"] == pytest.approx(2.0)


def test_utilisation_and_memory_are_reported_for_known_devices(clock, monkeypatch):
    """Two v5e chips of 197 TFLOP/s, on which a step of 98.5 TFLOP takes a second: a quarter of the peak."""
    chip = types.SimpleNamespace(device_kind="TPU v5 lite", memory_stats=lambda: {"peak_bytes_in_use": 2**31})
    monkeypatch.setattr(logs.jax, "local_devices", lambda: [chip])
    monkeypatch.setattr(logs.jax, "device_count", lambda: 2)
    made = logs.Meter(batch_size=8)
    made.count(lambda: 98.5e12)
    for _ in range(3):
        clock.time += 1.0
        made.step()
    values = made.read()
    assert values["utilisation"] == pytest.approx(0.25) and values["memory_gib"] == pytest.approx(2.0)


def test_cpu_does_not_count_flops(clock):
    made = logs.Meter(batch_size=8)
    made.count(lambda: pytest.fail("the step was traced for nothing"))
    assert "utilisation" not in made.read()


def test_profile_covers_steps_of_its_window(tmp_path):
    profile = Profile(parse_window("2:3"), tmp_path / "profile")
    for step in range(1, 5):
        profile.before(step)
        assert profile._running == (step in (2, 3))
        profile.after(step, jax.jit(lambda x: x + 1)(jnp.ones(2)))
    profile.close()
    assert list(tmp_path.glob("profile/**/*.xplane.pb"))


@pytest.mark.parametrize("text", ["", "5", "5:", "0:3", "7:5", "a:b", "-1:2"])
def test_invalid_profile_window_raises(text):
    with pytest.raises(UserError, match="is not FIRST:LAST"):
        parse_window(text)
