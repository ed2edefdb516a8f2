"""How a process finds the other hosts of its run; test_train_processes.py covers `jax.distributed` itself."""

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


def test_single_process_does_not_initialize_distributed(calls):
    connect(False, {"PATH": "/bin", "JAX_PROCESS_ID": ""})
    assert calls == []


def test_environment_variables_give_address_and_process_index(calls):
    connect(False, ALL)
    connect(True, ALL)
    assert calls == [("127.0.0.1:1234", 2, 1)] * 2


def test_multihost_without_variables_uses_cluster_detection(calls):
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
def test_incomplete_or_invalid_address_raises(calls, environment, message):
    with pytest.raises(UserError, match=message):
        connect(False, environment)
