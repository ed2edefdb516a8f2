"""Atomic folder writes: concurrent writers, killed writers, failing reads and writes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.folders import replacing_folder

ROOT = Path(__file__).resolve().parents[2]


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(path: Path, text: str = "x") -> None:
    with replacing_folder(path, "--out") as partial:
        (partial / "part").mkdir()
        (partial / "part" / "file").write_text(text)


@pytest.mark.parametrize("exists", [False, True], ids=["absent", "empty"])
def test_folder_is_created_with_default_permissions(tmp_path, exists):
    (tmp_path / "usual").mkdir()
    out = tmp_path / "new parent" / "out [1]"
    if exists:
        out.mkdir(parents=True)
    write(out)
    assert tree(tmp_path) == {"new parent/out [1]/part/file": "x"}
    assert out.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_symbolic_link_is_followed(tmp_path):
    """The target may be on another disk, and need not exist yet."""
    (tmp_path / "disk").mkdir()
    for name in ("there", "absent"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    (tmp_path / "disk" / "there").mkdir()
    write(tmp_path / "there")
    write(tmp_path / "absent")
    assert tree(tmp_path / "disk") == {"there/part/file": "x", "absent/part/file": "x"}
    assert (tmp_path / "there").is_symlink()


def test_failed_write_leaves_no_files(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing_folder(tmp_path / "out", "--out") as partial:
        (partial / "file").write_text("x")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_concurrent_writers_do_not_mix_files(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError) as error, replacing_folder(out, "--out") as slow:
        (slow / "slow").write_text("slow")
        write(out, "fast")
        assert tree(slow) == {"slow": "slow"}
    assert str(error.value).startswith(
        f"another run has meanwhile written --out {str(out)!r}: its folder is kept"
    )
    assert tree(tmp_path) == {"out/part/file": "fast"}


WRITER = """
import sys, time
from pathlib import Path
from realcustom_jax.common.folders import replacing_folder

with replacing_folder(Path(sys.argv[1]), "--out") as partial:
    (partial / "file").write_text("partial")
    print("begun", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def start_writer():
    """A function that starts a process which writes a folder and never finishes."""
    writers = []

    def start(path: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", WRITER, str(path)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        writers.append(writer)
        assert writer.stdout.readline() == "begun\n"
        return writer

    yield start
    for writer in writers:
        writer.kill()
        writer.communicate()


def test_only_partial_folders_of_killed_writers_are_removed(tmp_path, start_writer):
    out = tmp_path / "out"
    killed, living, other = start_writer(out), start_writer(out), start_writer(tmp_path / "out2")
    partial_folders = {path for path in tmp_path.iterdir() if path.is_dir()}
    assert len(partial_folders) == 3 and not out.exists()
    for writer in (killed, other):
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    write(out)
    assert tree(out) == {"part/file": "x"}
    left = {path for path in partial_folders if path.exists()}
    assert len(left) == 2 and {path.name.split(".")[1] for path in left} == {"out", "out2"}
    assert all(tree(path) == {"file": "partial"} for path in left)
    living.kill()
    living.wait()
    (out / "part" / "file").unlink()
    (out / "part").rmdir()
    write(out)
    write(tmp_path / "out2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out2"]


def test_read_errors_and_write_errors_are_distinguished(tmp_path, small_disk):
    out = tmp_path / "out"

    def raise_user_error(partial: Path) -> None:
        raise UserError(f"{partial}/a is not right")

    cases = {
        f"{tmp_path}/model cannot be read: No such file or directory": lambda _: (
            tmp_path / "model"
        ).read_text(),
        f"--out '{out}' cannot be written: File too large": lambda partial: (partial / "a").write_text(
            "x" * 2000
        ),
        f"--out '{out}' cannot be written: No such file or directory": lambda partial: (
            partial / "a" / "b"
        ).touch(),
        f"{out}/a is not right": raise_user_error,
    }
    for sentence, action in cases.items():
        with pytest.raises(UserError) as error, replacing_folder(out, "--out") as partial:
            action(partial)
        assert str(error.value) == sentence
        assert not list(tmp_path.iterdir())


def test_invalid_output_locations_raise(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path / "empty")
    cases = {
        "/": "is the mount point of a disk, which cannot be replaced",
        ".": "is the current folder, which cannot be replaced",
        str(tmp_path / "empty"): "is the current folder",
        str(tmp_path / "file" / "out"): "cannot be written: ",
        str(tmp_path / "loop"): "cannot be written: ",
        str(tmp_path / ("x" * 250)): "cannot be written: File name too long",
    }
    for path, reason in cases.items():
        with pytest.raises(UserError, match=reason) as error:
            write(Path(path))
        assert str(error.value).startswith(f"--out {path!r} ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "loop"]
    (tmp_path / "empty").rmdir()
    with pytest.raises(UserError, match="--out 'out' cannot be written: No such file or directory"):
        write(Path("out"))
