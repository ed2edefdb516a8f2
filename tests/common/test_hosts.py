"""How a process learns of the others of its run; the joining itself is JAX's, and tested in test_train."""

import jax
import pytest

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.hosts import connect

ALL = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}


@pytest.fixture
def calls(monkeypatch):
    made = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments: made.append(arguments))
    return made


def test_one_process_alone_joins_nobody(calls):
    connect(False, {"PATH": "/bin", "JAX_PROCESS_ID": ""})
    assert calls == []


def test_the_variables_say_where(calls):
    connect(False, ALL)
    connect(True, ALL)
    assert calls == [("127.0.0.1:1234", 2, 1)] * 2


def test_a_cluster_names_its_hosts_itself(calls):
    connect(True, {})
    assert calls == [()]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"JAX_NUM_PROCESSES": "2"},
            "is set, but JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID is not",
        ),
        (ALL | {"JAX_PROCESS_ID": "two"}, "the hosts cannot be connected: invalid literal"),
    ],
)
def test_half_an_address_is_an_error(calls, environment, message):
    with pytest.raises(UserError, match=message):
        connect(False, environment)
