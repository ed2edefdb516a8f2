"""Checkpoints on disk: a damaged one is reported and skipped."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.common.errors import UserError
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
    """A copy of two complete checkpoints, to which a test may add."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def assert_at(workdir: Path, step: int) -> None:
    checkpoints = Checkpoints(workdir, keep=10)
    restored = checkpoints.restore_newest(LIKE)
    assert restored.step == step == checkpoints.latest_step()
    np.testing.assert_array_equal(restored.state["a"], np.full(3, float(step)))
    assert restored.loader == {"step": step} and checkpoints.config(step) == {"x": [1, 2], "step": step}
    checkpoints.close()


def test_newest_checkpoint_is_restored(workdir):
    assert_at(workdir, 2)


def test_interrupted_save_is_ignored(workdir):
    """Orbax's temporary folder, complete but not yet renamed."""
    steps = workdir / "checkpoints"
    shutil.copytree(steps / "2", steps / "3.orbax-checkpoint-tmp-123")
    assert_at(workdir, 2)


def remove_commit_time(folder: Path) -> None:
    path = folder / "_CHECKPOINT_METADATA"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit_timestamp_nsecs": None}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "_CHECKPOINT_METADATA").unlink(),
        remove_commit_time,
        lambda folder: shutil.rmtree(folder / "config"),
        lambda folder: shutil.rmtree(folder / "data"),
        lambda folder: shutil.rmtree(folder / "state"),
        lambda folder: [shutil.rmtree(folder / item) for item in ("config", "data", "state")],
        *(
            lambda folder, item=item, text=text: (folder / item / "metadata").write_text(text)
            for item in ("config", "data")
            for text in ("", "{", "[" * 100_000)
        ),
        *(
            lambda folder, text=text: (folder / "data" / "metadata").write_text(text)
            for text in ("5", "[]", "{}", '{"loader": 5}', '{"loader": {}, "checksum": null}')
        ),
    ],
    ids=[
        "no metadata",
        "no commit",
        "no config",
        "no data",
        "no state",
        "no item",
        *(f"{item} {kind}" for item in ("config", "data") for kind in ("empty", "cut off", "deep")),
        *(f"data {kind}" for kind in ("a number", "a list", "nothing", "no loader", "no checksum")),
    ],
)
def test_damaged_checkpoint_is_skipped_and_set_aside(workdir, capsys, damage):
    """The run resumes from the previous one, and can save at the damaged one's step and before it."""
    damaged = Path(shutil.copytree(workdir / "checkpoints" / "2", workdir / "checkpoints" / "9"))
    damage(damaged)
    assert_at(workdir, 2)
    assert f"the checkpoint {damaged} is corrupt (" in capsys.readouterr().out
    save(workdir, 5, 9)
    assert_at(workdir, 9)
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"1", "2", "5", "9", "9.corrupt"}


def data_files(workdir: Path, step: int) -> list[Path]:
    """The files in which Orbax stores array data."""
    return [path for path in (workdir / "checkpoints" / str(step) / "state").glob("**/d/*") if path.is_file()]


def test_truncated_checkpoint_is_reported_and_previous_restored(workdir, capsys):
    """A second time the name `2.corrupt` is in use already."""
    for aside in ("2.corrupt", "2.corrupt2"):
        for path in data_files(workdir, 2):
            path.write_bytes(path.read_bytes()[:-20])
        assert_at(workdir, 1)
        assert f"set aside as {aside}" in capsys.readouterr().out
        save(workdir, 2)


def test_changed_bit_fails_checksum(workdir, monkeypatch, capsys):
    """What is read differs from what was saved in the lowest bit of one of the numbers."""
    restore = Checkpoints.__init__.__globals__["ocp"].CheckpointManager.restore

    def flipped(manager, step, args):
        restored = restore(manager, step, args=args)
        if step == 2 and "state" in restored:
            bits = restored["state"]["a"].view(jnp.uint32)
            restored["state"]["a"] = bits.at[1].set(bits[1] ^ 1).view(jnp.float32)
        return restored

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.restore", flipped)
    assert_at(workdir, 1)
    assert "the checksum of its parameters is wrong" in capsys.readouterr().out


def test_swapped_values_change_checksum():
    """Within an array, and between two of one shape; the checksum does not depend on sharding."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((4, 16)).astype(np.float32)
    checksum = Checkpoints.save.__globals__["_checksum"]
    swapped = values[[1, 0, 2, 3]]
    moved = np.roll(values, 1, axis=1)
    sums = [checksum({"a": jnp.asarray(x), "b": jnp.int32(3)}) for x in (values, swapped, moved)]
    other = rng.standard_normal((4, 16)).astype(np.float32)
    sums += [checksum({"a": x, "b": y}) for x, y in ((values, other), (other, values))]
    assert len(set(sums)) == 5
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    assert checksum({"a": jax.device_put(values, sharding), "b": jnp.int32(3)}) == sums[0]


def test_checksum_is_stable_across_versions():
    """Its value for these arrays at revision 7d79a0f."""
    checksum = Checkpoints.save.__globals__["_checksum"]
    a, b = jnp.arange(24.0).reshape(2, 3, 4), jnp.arange(5, dtype=jnp.bfloat16)
    assert checksum({"a": a, "b": b, "c": jnp.int32(3)}) == 3429477071


@pytest.mark.parametrize(
    "error", [MemoryError("no room"), PermissionError("no"), ValueError("UNAVAILABLE: try")]
)
def test_transient_failure_leaves_checkpoints_unchanged(workdir, monkeypatch, error):
    checkpoints = Checkpoints(workdir, keep=10)

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.restore", fail)
    with pytest.raises(type(error)):
        checkpoints.restore_newest(LIKE)
    monkeypatch.undo()
    checkpoints.close()
    assert_at(workdir, 2)


@pytest.mark.parametrize("steps", [(1,), (1, 2)])
def test_no_readable_checkpoint_of_several_raises(tmp_path, steps):
    """With a single checkpoint there is no error: the run starts again."""
    save(tmp_path, *steps)
    for step in steps:
        for path in data_files(tmp_path, step):
            path.write_bytes(b"")
    checkpoints = Checkpoints(tmp_path, keep=10)
    if len(steps) == 1:
        assert checkpoints.restore_newest(LIKE) is None
    else:
        with pytest.raises(UserError, match=r"none of the 2 checkpoints in .* can be read"):
            checkpoints.restore_newest(LIKE)
    checkpoints.close()


def test_retention_keeps_newest_and_every_nth(tmp_path):
    """The newest two, and every fourth step."""
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=4)
    for step in range(1, 11):
        checkpoints.save(step, {"a": jnp.zeros(3)}, {}, {})
    checkpoints.close()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"4", "8", "9", "10"}


FULL = """
import resource, sys
from pathlib import Path
import jax.numpy as jnp
from realcustom_jax.common.errors import exit_on_user_error
from realcustom_jax.training.checkpoint import Checkpoints

with exit_on_user_error():
    checkpoints = Checkpoints(Path(sys.argv[1]), keep=10)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    checkpoints.save(3, {"a": jnp.arange(1e6)}, {}, {})
    checkpoints.close()
"""


def test_full_disk_gives_one_line_error_and_keeps_checkpoints(workdir):
    """Files are limited to 100 kB, as if the disk were full; the state has 4 MB."""
    result = subprocess.run(
        [sys.executable, "-c", FULL, str(workdir)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 2
    message = result.stderr.splitlines()[-1]
    assert message.startswith(f"error: a checkpoint cannot be written to {workdir}/checkpoints: ")
    assert message.endswith("; the newest finished one is step 2")
    assert_at(workdir, 2)


def test_checkpoint_of_other_model_raises(workdir):
    checkpoints = Checkpoints(workdir, keep=10)
    wider = {"a": jax.ShapeDtypeStruct((5,), jnp.float32, sharding=DEVICE)}
    with pytest.raises(UserError, match=r"checkpoint 2 in .* mis-shaped: a \(model \(5,\), file \(3,\)\)"):
        checkpoints.restore_newest(wider)
    with pytest.raises(UserError, match="1 missing: b; 1 unexpected: a"):
        checkpoints.restore_newest({"b": LIKE["a"]})
    checkpoints.close()
