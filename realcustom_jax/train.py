"""Train one stage: `python -m realcustom_jax.train --config configs/tiny.py:STAGE --workdir DIR`.

Writes DIR/checkpoints (state, position in the data, config), DIR/metrics.jsonl and, at the end, DIR/model, a
model folder for `realcustom_jax.load` and for the next stage. The same command with the same DIR resumes from
the newest complete checkpoint. SIGTERM saves a checkpoint and ends the run with status 0. Every option of the
config is a flag, such as --config.steps=100 or --config.optimizer.learning_rate=1e-3; --options lists them
all. The last line of a finished run's output is `sha256` and the hash of the trained parameters.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from realcustom_jax.common.cli import parse_flags, run_command
from realcustom_jax.common.compile_cache import cache_dir
from realcustom_jax.common.errors import UserError
from realcustom_jax.common.hosts import connect
from realcustom_jax.training.config import describe_options
from realcustom_jax.training.logs import parse_window
from realcustom_jax.training.run import train

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with :STAGE for the stage. Required.")
_MULTIHOST = flags.DEFINE_bool("multihost", False, "Train together with the other hosts of the TPU pod.")
_OPTIONS = flags.DEFINE_bool("options", False, "Print all options of a config, and exit.")
_PROFILE = flags.DEFINE_string("profile", None, "FIRST:LAST steps to profile, into WORKDIR/profile.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for checkpoints, metrics and the trained model. Required."
)


def main() -> None:
    """Run the command line."""
    parse_flags(__doc__)
    if _OPTIONS.value:
        print(describe_options())
        return
    if not _WORKDIR.value or _CONFIG.value is None:
        raise UserError("train needs --config FILE and --workdir DIR, see --help")
    window = parse_window(_PROFILE.value) if _PROFILE.value else None
    connect(_MULTIHOST.value)  # must come before anything uses JAX's devices
    digest = train(_CONFIG.value, Path(_WORKDIR.value), cache_dir(), window)
    if digest:  # None if SIGTERM stopped the run early
        print(f"sha256 {digest}", flush=True)


if __name__ == "__main__":
    run_command(main)
