"""The launch scripts: dry runs, error messages, and local processes."""

import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
SCRIPTS = ("local", "tpu_vm", "tpu_pod", "gke_xpk", "cpu", "gpu_bundle")
TRAIN = ("--", "--config", "configs/sd15.py", "--workdir", "bucket/a run")
TPU = ("--name", "n", "--zone", "z", "--type", "v5litepod-16", "--bucket", "gs://b")
GKE = ("--cluster", "c", "--zone", "z", "--type", "v5litepod-16", "--image", "i", "--bucket", "b")


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(LAUNCH / f"{script}.sh"), *arguments], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )  # fmt: skip


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_scripts_pass_shellcheck():
    result = subprocess.run(
        ["shellcheck", "-x", *map(str, LAUNCH.glob("*.sh"))],
        capture_output=True,
        text=True,
        cwd=LAUNCH.parent,
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "wanted"),
    [
        (
            "local",
            ("--processes", "3"),
            ["+ JAX_PROCESS_ID=2 ", "--workdir 'bucket/a run'", "3 processes with"],
        ),
        (
            "tpu_vm",
            TPU,
            ["tpu-vm create n --zone z --accelerator-type v5lite", "v2-alpha-tpuv5-lite", "gcsfuse"],
        ),
        ("tpu_pod", TPU, ["queued-resources create n --node-id n", "--worker=all", "train --multihost"]),
        ("tpu_pod", (*TPU, "--spot", "--project", "p"), ["--project p --zone z", "--spot"]),
        ("gke_xpk", GKE, ["xpk workload create --cluster c", "--tpu-type v5litepod-16", "train --multihost"]),
    ],
)
def test_dry_run_only_prints_commands(tmp_path, script, arguments, wanted):
    """The commands go to stderr, and the work directory is not created."""
    result = run(script, "--dry-run", *arguments, *TRAIN)
    assert result.returncode == 0, result.stderr
    for text in wanted:
        assert text in result.stderr
    assert not (LAUNCH.parent / "bucket").exists()


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (
            "local",
            ("--processes", "two", *TRAIN),
            "--processes must be a whole number of at least 1, not two",
        ),
        ("local", ("--processes",), "--processes needs a value"),
        ("local", ("--cores", "2", *TRAIN), "unknown option --cores"),
        ("local", (), "there are no arguments for the training after --"),
        ("local", ("--", "--config", "x"), "the training's arguments have no --workdir"),
        ("local", ("--", "--workdir", "gs://b/run"), "the workdir gs://b/run is an address, not a folder"),
        ("tpu_vm", ("--name", "n", *TRAIN), "--zone is needed"),
        ("tpu_vm", ("--dry-run", *TPU), "there are no arguments for the training after --"),
        ("tpu_pod", ("--dry-run", *TPU[:6], *TRAIN), "a pod's hosts share no disk: --bucket"),
        ("gke_xpk", ("--cluster", "c", *TRAIN), "--zone is needed"),
        ("cpu", (), "there is no command to run"),
        ("cpu", ("--quick", "python"), "unknown option --quick"),
        ("cpu", ("no-such-program",), "no-such-program is not installed"),
    ],
)
def test_user_mistake_gives_error_line_and_status_2(script, arguments, message):
    result = run(script, *arguments)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: ") and message in result.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_describes_the_script(script):
    result = run(script, "--help")
    assert result.returncode == 0 and f"launch/{script}.sh" in result.stdout and "set -" not in result.stdout


def test_failing_process_stops_the_others(tmp_path):
    """A fake Python: the first process waits forever, the second one fails with status 7."""
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\n[ "$1" = -c ] && exec ' + sys.executable + ' "$@"\n'
        '[ "$JAX_PROCESS_ID" = 1 ] && { echo broken; exit 7; }\nexec sleep 100\n'
    )
    python.chmod(0o755)
    result = run("local", "--", "--workdir", str(tmp_path / "run"), PYTHON=str(python))
    assert result.returncode == 7
    assert "a process ended with status 7, the others are stopped" in result.stderr
    assert (tmp_path / "run" / "process_1.log").read_text() == "broken\n"


def test_processes_get_their_index_and_arguments(tmp_path):
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\n[ "$1" = -c ] && exec ' + sys.executable + ' "$@"\n'
        'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES: $*" > "$4/$JAX_PROCESS_ID"\n'
    )
    python.chmod(0o755)
    workdir = tmp_path / "a run"
    result = run("local", "--processes", "3", "--", "--workdir", str(workdir), PYTHON=str(python))
    assert result.returncode == 0, result.stderr
    printed = [(workdir / str(i)).read_text() for i in range(3)]
    assert printed == [f"{i} of 3: -m realcustom_jax.train --workdir {workdir}\n" for i in range(3)]


# Allocates and frees four blocks of 40 MB six times, in a thread as XLA does, and prints the page faults of
# the last five times.
FAULTS = """
import ctypes, resource, threading
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def take():
    blocks = [libc.malloc(40_000_000) for _ in range(4)]
    for block in blocks:
        ctypes.memset(block, 1, 40_000_000)
        libc.free(block)
def work():
    take()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        take()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are for glibc")
def test_malloc_settings_keep_freed_memory():
    """Without the settings, each allocation causes one page fault per page."""
    plain = subprocess.run(
        ["env", "-u", "GLIBC_TUNABLES", sys.executable, "-c", FAULTS],
        capture_output=True,
        text=True,
        check=True,
    )
    kept = run("cpu", sys.executable, "-c", FAULTS)
    assert kept.returncode == 0, kept.stderr
    assert int(plain.stdout) > 5 * 4 * 40_000_000 / resource.getpagesize() * 0.9
    assert int(kept.stdout) < 100


def test_cpu_script_keeps_arguments_settings_and_status():
    code = "import os, sys; print(sys.argv[1:], os.environ['GLIBC_TUNABLES']); sys.exit(7)"
    result = run(
        "cpu", sys.executable, "-c", code, "a b", "--help", GLIBC_TUNABLES="glibc.malloc.tcache_count=3"
    )
    assert result.returncode == 7
    assert result.stdout.startswith("['a b', '--help'] glibc.malloc.tcache_count=3:glibc.malloc.")


def test_bundle_holds_what_the_machine_lacks(tmp_path):
    """All that the package needs, in the versions of the lock file, but not what is installed there."""
    installed = tmp_path / "installed.txt"
    installed.write_text("jax==0.11.2\njaxlib==0.11.2\nNumPy==2.5.2\norbax_checkpoint==0.12.0\n")
    out = tmp_path / "bundle"
    result = run("gpu_bundle", "--installed", str(installed), "--out", str(out), "--dry-run")
    assert result.returncode == 0, result.stderr
    lock = (LAUNCH.parent / "requirements-py312.lock").read_text().splitlines()
    wanted = result.stderr.splitlines()[0].removeprefix("missing there: ").split()
    locked = [line.split(" ")[0].split("==") for line in lock if "==" in line]
    assert set(wanted) <= {f"{re.sub('[._]', '-', name).lower()}=={version}" for name, version in locked}
    names = {part.split("==")[0] for part in wanted}
    # tensorflow-datasets needs promise, flax needs msgpack
    assert {"flax", "msgpack", "optax", "grain", "tensorflow-datasets", "promise"} <= names
    assert not names & {"jax", "jaxlib", "numpy", "orbax-checkpoint", "pytest", "gradio"}
    assert (
        "pip download" in result.stderr
        and "toybox.train --size large --out runs/large --minutes 8" in result.stdout
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "b"), "--installed is needed"),
        (("--installed", "none.txt", "--out", "b"), "none.txt does not exist"),
        (("--installed", str(Path(__file__)), "--out", "b"), "has no line jax==VERSION"),
        (
            ("--installed", str(Path(__file__)), "--out", "b", "--minutes", "0"),
            "--minutes must be a whole number",
        ),
    ],
)
def test_bundle_says_what_is_wrong(arguments, message):
    result = run("gpu_bundle", *arguments)
    assert result.returncode == 2 and message in result.stderr and not result.stdout
