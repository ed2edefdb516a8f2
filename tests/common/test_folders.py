"""Folders written beside their place: by several at once, by killed processes, from files that fail."""

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
    with replacing_folder(path, "--out") as half:
        (half / "part").mkdir()
        (half / "part" / "file").write_text(text)


@pytest.mark.parametrize("there", [False, True], ids=["absent", "empty"])
def test_a_folder_takes_its_place_with_the_usual_permissions(tmp_path, there):
    (tmp_path / "usual").mkdir()
    out = tmp_path / "new parent" / "out [1]"
    if there:
        out.mkdir(parents=True)
    write(out)
    assert tree(tmp_path) == {"new parent/out [1]/part/file": "x"}
    assert out.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_link_is_followed(tmp_path):
    """Its folder may lie on a larger disk; also where it is not there yet."""
    (tmp_path / "disk").mkdir()
    for name in ("there", "absent"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    (tmp_path / "disk" / "there").mkdir()
    write(tmp_path / "there")
    write(tmp_path / "absent")
    assert tree(tmp_path / "disk") == {"there/part/file": "x", "absent/part/file": "x"}
    assert (tmp_path / "there").is_symlink()


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing_folder(tmp_path / "out", "--out") as half:
        (half / "file").write_text("x")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_two_writers_at_once_do_not_mix(tmp_path):
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

with replacing_folder(Path(sys.argv[1]), "--out") as half:
    (half / "file").write_text("half")
    print("begun", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def start_writer():
    """A function that starts a process which writes a folder and does not end."""
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


def test_what_a_killed_writer_left_goes_and_that_of_a_living_one_stays(tmp_path, start_writer):
    out = tmp_path / "out"
    killed, living, other = start_writer(out), start_writer(out), start_writer(tmp_path / "out2")
    halves = {path for path in tmp_path.iterdir() if path.is_dir()}
    assert len(halves) == 3 and not out.exists()
    for writer in (killed, other):
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    write(out)
    assert tree(out) == {"part/file": "x"}
    left = {path for path in halves if path.exists()}
    assert len(left) == 2 and {path.name.split(".")[1] for path in left} == {"out", "out2"}
    assert all(tree(path) == {"file": "half"} for path in left)
    living.kill()
    living.wait()
    (out / "part" / "file").unlink()
    (out / "part").rmdir()
    write(out)
    write(tmp_path / "out2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out2"]


def test_what_cannot_be_read_is_told_from_what_cannot_be_written(tmp_path, small_disk):
    out = tmp_path / "out"

    def refuse(half: Path) -> None:
        raise UserError(f"{half}/a is not right")

    cases = {
        f"{tmp_path}/model cannot be read: No such file or directory": lambda _: (
            tmp_path / "model"
        ).read_text(),
        f"--out '{out}' cannot be written: File too large": lambda half: (half / "a").write_text("x" * 2000),
        f"--out '{out}' cannot be written: No such file or directory": lambda half: (
            half / "a" / "b"
        ).touch(),
        f"{out}/a is not right": refuse,
    }
    for sentence, action in cases.items():
        with pytest.raises(UserError) as error, replacing_folder(out, "--out") as half:
            action(half)
        assert str(error.value) == sentence
        assert not list(tmp_path.iterdir())


def test_places_where_no_folder_can_be_are_named(tmp_path, monkeypatch):
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
