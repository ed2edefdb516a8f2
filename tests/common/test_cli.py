"""A user's mistake on the command line: exit status 2, one line that names it, no traceback.

Two cases start the real command; the others call the same main in this process, which saves seconds each.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

from realcustom_jax import train
from realcustom_jax.common import cli
from realcustom_jax.common.cli import run_command

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "configs" / "tiny.py")
CONFIG = f"--config={TINY}:customize"


def command(*args: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "realcustom_jax.train", *args],
        capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120,
    )  # fmt: skip


@pytest.fixture
def in_process(monkeypatch, capsys):
    """Runs `train`'s main with these arguments; returns (exit status, stdout, stderr)."""

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train", *args])
        before = set(flags.FLAGS)
        with flagsaver.flagsaver():
            flags.FLAGS.unparse_flags()
            with pytest.raises(SystemExit) as stop:
                run_command(train.main)
            for name in set(flags.FLAGS) - before:  # --config.x.y, which a config file adds
                delattr(flags.FLAGS, name)
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return run


def assert_one_line_error(status: int, err: str, *parts: str) -> None:
    assert status == 2
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    assert "Traceback" not in err
    for part in parts:
        assert part in lines[0]


def test_unknown_config_key_error_lists_known_keys():
    result = command(CONFIG, "--config.data.bogus=1", "--workdir=nowhere")
    assert_one_line_error(result.returncode, result.stderr, "'data.bogus'", "config.data has: bucket")
    assert not (ROOT / "nowhere").exists()


def test_help_describes_command_and_flags():
    result = command("--help")
    assert result.returncode == 0
    for part in (
        "Train one stage",
        "--config configs/tiny.py:STAGE",
        "metrics.jsonl",
        "--config.steps=100",
        "--workdir",
    ):
        assert part in result.stdout
    assert "Traceback" not in result.stderr and "error" not in result.stderr


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ([CONFIG, "--config.bogus=1", "--workdir=w"], ["no key 'bogus'", "config has: accumulate"]),
        ([CONFIG, "--config.bogus.deep=1", "--workdir=w"], ["no key 'bogus.deep'", "config has: accumulate"]),
        (["--config=nowhere.py", "--workdir=w"], ["nowhere.py"]),
        ([f"--config={TINY}:bogus", "--workdir=w"], ["'bogus'", "vae, clip, instance, base, customize"]),
        ([CONFIG, "--config.steps=many", "--workdir=w"], ["steps", "many"]),
        ([CONFIG, "--config.optimizer.learning_rate=fast", "--workdir=w"], ["learning_rate", "fast"]),
        ([CONFIG, "--bogus=1", "--workdir=w"], ["unknown option --bogus"]),
        ([CONFIG, "--workdir=w", "stray"], ["unexpected argument 'stray'"]),
        ([CONFIG], ["--workdir"]),
        (["--workdir=w"], ["--config"]),
        ([CONFIG, "--workdir=/dev/null/w"], ["/dev/null/w"]),
        ([CONFIG, f"--workdir={TINY}"], ["tiny.py' is a file, it must be a folder"]),
        (["--config=nowhere.py", "--config.steps=3", "--workdir=w"], ["nowhere.py"]),
        ([CONFIG, "--config.seed=-1", "--workdir=w"], ["config.seed must be 0 or more, not -1"]),
        ([CONFIG, "--config.steps=0", "--workdir=w"], ["config.steps must be 1 or more"]),
        ([CONFIG, "--config.log_every=0", "--workdir=w"], ["config.log_every must be 1 or more"]),
        ([CONFIG, "--config.checkpoint_every=0", "--workdir=w"], ["checkpoint_every must be 1 or more"]),
        ([CONFIG, "--config.export_dtype=int7", "--workdir=w"], ["export_dtype 'int7'", "float32, float16"]),
    ],
    ids=[
        "key", "nested key", "config file", "stage", "integer", "number", "option", "argument", "no workdir",
        "no config", "unusable workdir", "workdir is a file", "config file and a key", "seed", "steps",
        "log_every", "checkpoint_every", "export_dtype",
    ],
)  # fmt: skip
def test_user_mistake_gives_one_line_error(in_process, args, parts):
    status, _, err = in_process(*args)
    assert_one_line_error(status, err, *parts)
    assert not Path("w").exists()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("def get_config(:\n    pass\n", ["has an error in line 1"]),
        ("x = 1\n", ["has no function get_config"]),
        ("def get_config():\n    return None\n", ["must return a ConfigDict, not NoneType"]),
        ("def get_config():\n    return {}\n", ["must return a ConfigDict, not dict"]),
        (
            "\ndef get_config():\n    return stpes\n",
            ["fails in line 3: NameError: name 'stpes' is not defined"],
        ),
        ("import bogus_module\n", ["fails in line 1: ModuleNotFoundError", "bogus_module"]),
        ("def get_config():\n    return open('bogus.txt')\n", ["fails in line 2: FileNotFoundError"]),
        (
            "import ml_collections as m\ndef get_config():\n    return m.ConfigDict()\n",
            ["the config lacks model.image_encoder, model.scheduler"],
        ),
        (
            "import ml_collections as m\nget_config = lambda: m.ConfigDict({'stage': 'vae', 'sed': 1})\n",
            ["the config lacks model.image_encoder", "unknown keys: sed"],
        ),
    ],
    ids=["syntax", "no get_config", "none", "dict", "name", "import", "file", "empty", "keys"],
)
@pytest.mark.parametrize("override", [(), ("--config.steps=3",)], ids=["", "with a flag"])
def test_broken_config_file_gives_one_line_error(in_process, tmp_path, text, parts, override):
    """Also with a flag that changes the config: ml_collections then loads the file in another way."""
    path = tmp_path / "broken.py"
    path.write_text(text)
    status, _, err = in_process(f"--config={path}", *override, "--workdir=w")
    if override and "m.ConfigDict" in text:
        parts = ["no key 'steps'"]
    assert_one_line_error(status, err, *parts, *([str(path)] if "m.ConfigDict" not in text else []))
    assert not Path("w").exists()


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_flags_print_help_in_process(in_process, flag):
    status, out, _ = in_process(flag)
    assert status == 0 and "Train one stage" in out and "--workdir" in out


@pytest.mark.parametrize(
    ("platforms", "installed", "files", "absent"),
    [
        ("", ("libtpu",), (), True),
        ("", (), (), False),
        ("tpu", ("libtpu",), (), False),
        ("", ("libtpu",), ("accel0",), False),
        ("", ("libtpu",), ("vfio/0",), False),
        ("", ("libtpu", "jax_cuda13_plugin"), (), False),
    ],
)
def test_libtpu_without_device_files_means_no_tpu(tmp_path, monkeypatch, platforms, installed, files, absent):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: name in installed or None)
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert cli.tpu_is_absent({"JAX_PLATFORMS": platforms}, tmp_path) == absent
