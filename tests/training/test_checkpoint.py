"""Checkpoints on disk: what is torn is not taken."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.errors import UserError
from realcustom_jax.training.checkpoint import Checkpoints

DEVICE = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
LIKE = {"a": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=DEVICE)}


def save(workdir: Path, *steps: int) -> None:
    checkpoints = Checkpoints(workdir, keep=10)
    for step in steps:
        checkpoints.save(step, {"a": jnp.full(3, float(step))}, {"step": step}, {"x": (1, 2), "step": step})
    checkpoints.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("run")
    save(workdir, 1, 2)
    return workdir


@pytest.fixture
def workdir(whole, tmp_path) -> Path:
    """Two whole checkpoints, that a test may add to."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def assert_at(workdir: Path, step: int) -> None:
    checkpoints = Checkpoints(workdir, keep=10)
    assert checkpoints.latest_step() == step
    state, data = checkpoints.restore(step, LIKE)
    np.testing.assert_array_equal(state["a"], np.full(3, float(step)))
    assert data == {"step": step} and checkpoints.config(step) == {"x": [1, 2], "step": step}
    checkpoints.close()


def test_a_new_process_reads_the_newest(workdir):
    assert_at(workdir, 2)


def test_a_save_that_was_interrupted_is_not_taken(workdir):
    """Orbax's temporary folder, with all in it but the rename."""
    steps = workdir / "checkpoints"
    shutil.copytree(steps / "2", steps / "3.orbax-checkpoint-tmp-123")
    assert_at(workdir, 2)


def forget_commit(folder: Path) -> None:
    path = folder / "_CHECKPOINT_METADATA"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit_timestamp_nsecs": None}))


@pytest.mark.parametrize(
    "tear",
    [
        lambda folder: (folder / "_CHECKPOINT_METADATA").unlink(),
        forget_commit,
        lambda folder: shutil.rmtree(folder / "config"),
        lambda folder: shutil.rmtree(folder / "data"),
        lambda folder: shutil.rmtree(folder / "state"),
        lambda folder: [shutil.rmtree(folder / item) for item in ("config", "data", "state")],
    ],
    ids=["no metadata", "no commit", "no config", "no data", "no state", "no item"],
)
def test_a_torn_checkpoint_is_not_taken_and_not_in_the_way(workdir, capsys, tear):
    """The run goes on from the one before, and saves at the torn one's step and before it."""
    torn = Path(shutil.copytree(workdir / "checkpoints" / "2", workdir / "checkpoints" / "9"))
    tear(torn)
    assert_at(workdir, 2)
    assert f"removing the torn checkpoint {torn}" in capsys.readouterr().out
    save(workdir, 5, 9)
    assert_at(workdir, 9)
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"1", "2", "5", "9"}


def test_a_checkpoint_of_another_model_is_refused_by_name(workdir):
    checkpoints = Checkpoints(workdir, keep=10)
    wider = {"a": jax.ShapeDtypeStruct((5,), jnp.float32, sharding=DEVICE)}
    with pytest.raises(UserError, match=r"checkpoint 2 in .* mis-shaped: a \(model \(5,\), file \(3,\)\)"):
        checkpoints.restore(2, wider)
    with pytest.raises(UserError, match="1 missing: b; 1 unexpected: a"):
        checkpoints.restore(2, {"b": LIKE["a"]})
    checkpoints.close()
