"""Topology names, and the environment variables that the compiler needs."""

import pytest

from realcustom_jax.aot.topology import description_options, parse_topology, set_environment
from realcustom_jax.common.chips import CHIPS, GIB, chip_of
from realcustom_jax.common.errors import UserError


@pytest.mark.parametrize(
    ("name", "chips", "accelerator", "options"),
    [
        ("v5e:4x4", 16, "v5litepod-16", {}),
        ("v5e:2x4", 8, "v5litepod-8", {}),
        ("v4:2x2x4", 16, "v4-32", {"chip_config_name": "megacore"}),  # counts cores, two a chip
        ("v5p:4x4x4", 64, "v5p-128", {}),
        ("v6e:1x1", 1, "v6e-1", {"chips_per_host_bounds": (1, 1, 1)}),
    ],
)
def test_topology_name_gives_chips_accelerator_and_environment(name, chips, accelerator, options):
    topology = parse_topology(name)
    assert (topology.chips, topology.accelerator) == (chips, accelerator)
    assert description_options(topology) == options
    environment = {}
    set_environment(topology, environment)
    assert environment == {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": accelerator,
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "generations: v4, v5e, v5p, v6e"),
        ("v5e", "is not GENERATION:SIDES"),
        ("v5e:2x2x2", "has 2 sides, such as v5e:2x2"),
        ("v4:2x2", "has 3 sides, such as v4:2x2x2"),
        ("v5e:0x2", "has 2 sides"),
    ],
)
def test_invalid_topology_raises(name, message):
    with pytest.raises(UserError, match=message):
        parse_topology(name)


def test_chips_have_expected_memory_and_peak_order():
    assert CHIPS["v5e"].hbm == 16 * GIB
    assert chip_of("TPU v5 lite") is CHIPS["v5e"] and chip_of("cpu") is None
    assert CHIPS["v4"].peak < CHIPS["v5p"].peak < CHIPS["v6e"].peak
