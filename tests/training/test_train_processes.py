"""Training as a process: the command, one loader process, two processes, SIGTERM."""

import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from realcustom_jax import pipeline
from realcustom_jax.training import run
from realcustom_jax.weights.keys import flatten

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("run_helpers.py"))))
ROOT, command, train, losses = common.ROOT, common.command, common.train, common.losses


def test_command_prints_parameter_hash_last(runs, tmp_path):
    """The same hash as from `train` with the same config."""
    config, _, digest = runs["vae"]
    assert command(config, tmp_path).splitlines()[-1] == f"sha256 {digest}"
    assert (tmp_path / "run" / "model" / "model_index.json").is_file()


def test_batch_size_one_trains(runs, tmp_path):
    """On one device, with one loader process."""
    config = runs["vae"][0].copy_and_resolve_references()
    config.batch_size, config.data.workers = 1, 1
    assert re.match("sha256 [0-9a-f]{64}$", command(config, tmp_path, devices=1).splitlines()[-1])
    assert all(map(np.isfinite, losses(tmp_path / "run").values()))


PROCESS = """
import json, sys
from pathlib import Path
import jax
from ml_collections import ConfigDict
from realcustom_jax.training.run import train

address, index, config, workdir = sys.argv[1:]
jax.distributed.initialize(address, num_processes=2, process_id=int(index))
assert (jax.device_count(), jax.local_device_count()) == (2, 1)
print(train(ConfigDict(json.loads(config)), Path(workdir), Path(workdir) / "cache"))
"""


@pytest.mark.slow
def test_two_processes_equal_one(runs, tmp_path):
    """One device each, parameters sharded over both: the losses of one process, one model folder.

    Tolerance 1e-4, as between numbers of devices.
    """
    config, workdir, _ = runs["vae"]
    config = config.copy_and_resolve_references()
    config.mesh.update({"data": 1, "fsdp": 2})
    config.sharding = (("kernel$", ("fsdp",)), (".*", ()))
    config.export_dtype = "float16"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    flags += " --xla_cpu_collective_timeout_seconds=600"  # on a busy machine one may wait long
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": flags,
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(i), config.to_json(), str(tmp_path / "run")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    (ours, _), (theirs, _) = outputs
    assert ours.splitlines()[-1] == theirs.splitlines()[-1]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 2]  # of the first process alone
    assert records[-1]["sha256"] == ours.splitlines()[-1]
    one, two = losses(workdir), losses(tmp_path / "run")
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-4)
    one, two = (flatten(pipeline.load(folder / "model").params) for folder in (workdir, tmp_path / "run"))
    assert one.keys() == two.keys()


def test_sigterm_saves_and_resume_is_bit_identical(runs, tmp_path, monkeypatch, capsys):
    """The signal comes while the loader makes the first batch; the run saves every second step."""
    config, workdir, digest = runs["vae"]
    load = run.Loader.__next__

    def load_and_signal(loader):
        if loader.get_state()["step"] == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return load(loader)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(run.Loader, "__next__", load_and_signal)
    assert train(config, tmp_path) is None
    assert signal.getsignal(signal.SIGTERM) is before
    assert "stopped by SIGTERM after step 1, which is saved" in capsys.readouterr().out
    monkeypatch.undo()
    assert train(config, tmp_path) == digest
    assert "resuming from step 1" in capsys.readouterr().out
    assert losses(tmp_path) == losses(workdir)
