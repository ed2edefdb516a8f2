"""Programs on rows: new rows and results of programs run in the same compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.common.devices import Devices, run_rows


def times(static, params, rows):
    return rows * params["scale"] + static


@pytest.mark.parametrize("device", [0, 3])
def test_rows_from_anywhere_run_in_one_program_on_the_device_of_the_parameters(device):
    home, compiled = jax.devices()[device], []
    params = {"scale": jax.device_put(jnp.full((3,), 2.0), home)}

    def listen(name, seconds, **rest):
        if name.endswith("backend_compile_duration"):
            compiled.append(rest.get("fun_name"))

    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    result = run_rows(None, times, 1.0, params, rows)
    again = jnp.asarray(rows)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for more in (rows, again, jax.device_put(rows, home), result):
            out = run_rows(None, times, 1.0, params, more)
            np.testing.assert_array_equal(out, np.asarray(more) * 2 + 1)
            assert out.devices() == {home}
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []


def test_rows_find_their_device_after_the_parameters_are_freed():
    """As a preview of an offloaded pipeline frees them."""
    devices = Devices.choose(None, {"scale": jax.device_put(jnp.ones(3), jax.devices()[2])}, 2)
    freed = Devices(None, devices.count, home=devices.home)
    assert freed.place(np.zeros((2, 3))).devices() == {jax.devices()[2]}
