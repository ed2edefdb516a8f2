"""Checks of output folders: usable ones are created, unusable ones raise."""

from pathlib import Path

import pytest

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import make_folder
from realcustom_jax.data.image_text import open_split, write


@pytest.mark.parametrize(
    ("path", "reason"), [("file", "is a file, it must be a folder"), ("file/folder", "Not a directory")]
)
def test_unusable_folder_error_names_path(tmp_path, path, reason):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        make_folder(tmp_path / path, "workdir")
    assert str(error.value).startswith(f"the workdir '{tmp_path / path}' ") and reason in str(error.value)


def test_bucket_address_as_folder_raises(tmp_path, monkeypatch):
    """As a path it would create a local folder called "gs:" on every host."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"the workdir 'gs:/b/run' is an address, not a folder: mount"):
        make_folder(Path("gs://b/run"), "workdir")
    for use in (lambda: open_split("gs://b/data", "train"), lambda: write("gs://b/data", {"train": []})):
        with pytest.raises(UserError, match=r"the data folder 'gs://b/data' is an address"):
            use()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("~", "begins with a ~ that the shell did not replace: write $HOME"),
        ("~/run", "begins with a ~ that the shell did not replace: write $HOME"),
        ("a\0b", "is not valid text for the name of a file"),
        ("a\udcffb", "is not valid text for the name of a file"),
    ],
)
def test_invalid_folder_names_raise(tmp_path, monkeypatch, path, reason):
    """A folder called "~" is dangerous: `rm -r ~` removes the home folder instead."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        make_folder(Path(path), "workdir")
    assert str(error.value) == f"the workdir {path!a} {reason}" + " in its place" * ("~" in path)
    assert not list(tmp_path.iterdir())
    make_folder(Path("a~/~b é"), "workdir")
    assert (tmp_path / "a~" / "~b é").is_dir()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="/proc is Linux's")
def test_folder_without_write_access_raises():
    """/proc also refuses root, whom permissions do not stop."""
    with pytest.raises(UserError, match="the workdir '/proc' cannot be written to: "):
        make_folder(Path("/proc"), "workdir")
