"""Folders that can be written to, and those that cannot."""

from pathlib import Path

import pytest

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import make_folder
from realcustom_jax.data.image_text import open_split, write


@pytest.mark.parametrize(
    ("path", "reason"), [("file", "is a file, it must be a folder"), ("file/folder", "Not a directory")]
)
def test_a_folder_that_cannot_be_used_is_named(tmp_path, path, reason):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        make_folder(tmp_path / path, "workdir")
    assert str(error.value).startswith(f"the workdir '{tmp_path / path}' ") and reason in str(error.value)


def test_the_address_of_a_bucket_is_no_folder(tmp_path, monkeypatch):
    """As a path it would be a folder called "gs:", another one on every host."""
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
def test_names_that_no_folder_should_have_are_refused(tmp_path, monkeypatch, path, reason):
    """Of "~" a folder would be made; `rm -r ~` then removes another one."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        make_folder(Path(path), "workdir")
    assert str(error.value) == f"the workdir {path!a} {reason}" + " in its place" * ("~" in path)
    assert not list(tmp_path.iterdir())
    make_folder(Path("a~/~b é"), "workdir")
    assert (tmp_path / "a~" / "~b é").is_dir()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="/proc is Linux's")
def test_a_folder_that_takes_no_files_is_named():
    """/proc also refuses the superuser, whom permissions do not stop."""
    with pytest.raises(UserError, match="the workdir '/proc' cannot be written to: "):
        make_folder(Path("/proc"), "workdir")
