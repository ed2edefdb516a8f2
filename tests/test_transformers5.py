"""The package gives the same results on transformers 4 and 5; version 5 runs in another process."""

import logging
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers

from realcustom_jax.inputs.tokenize import load_tokenizer, tokenize

WORK = Path(__file__).with_name("transformers_work.py")
ROOT = WORK.parents[1]
FOLDER = Path(sys.prefix) / "transformers5"  # `make test-slow` installs it there


def on_transformers5(*arguments: Path) -> None:
    """Run the work in a process that finds `FOLDER` before the environment's own packages."""
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(FOLDER), str(ROOT)]),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    command = [sys.executable, str(WORK), *map(str, arguments)]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
@pytest.mark.skipif(not (FOLDER / "transformers").is_dir(), reason="`make test-slow` installs transformers 5")
@pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) >= 5, reason="needs transformers 4 to compare with"
)
def test_results_are_equal_on_transformers_5(tmp_path):
    """Token ids, target words and images are equal bit for bit.

    Each version also reads what the other saved, in version 4 by the slow CLIPTokenizer too, diffusers' own.
    """
    four, five = tmp_path / "four", tmp_path / "five"
    four.mkdir(), five.mkdir()
    module = runpy.run_path(str(WORK))
    ours = module["work"](four)
    on_transformers5(five, four / "tokenizer")
    theirs = dict(np.load(five / "results.npz"))
    assert str(ours.pop("version"))[0] == "4" and str(theirs.pop("version"))[0] == "5"

    np.testing.assert_array_equal(theirs.pop("ids_other"), ours["ids"])
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(theirs[name], value, err_msg=name)
    assert ours["words"].any(axis=1).all() and ours["images"].std() > 10

    saved = five / "tokenizer"
    for tokenizer in load_tokenizer(saved), transformers.CLIPTokenizer.from_pretrained(saved):
        np.testing.assert_array_equal(tokenize(tokenizer, module["PROMPTS"]), ours["ids"])


def test_missing_pytorch_message_is_suppressed():
    """transformers 5 logs it on import, with the logger "transformers"; other messages stay."""

    def passes(message: str) -> bool:
        record = logging.LogRecord("transformers", logging.WARNING, "", 0, message, None, None)
        return bool(logging.getLogger("transformers").filter(record))

    assert not passes("PyTorch was not found. Models won't be available and only tokenizers …")
    assert passes("anything else")
