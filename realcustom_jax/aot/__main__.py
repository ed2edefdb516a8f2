"""What a TPU would need, before paying for it: `python -m realcustom_jax.aot --config F --topology v5e:4x4`.

Compiles the training step of a config (or, with --what sample, the sampler of its model) with the real TPU
compiler, for chips that need not be there, and prints memory, operations, collectives and the compiler's
estimate of the time. Needs the extra "tpu" and no weights: shapes come from the config's `model`, or from the
configs in the folder `init_from`. --config.x=y changes the config as in training. --effort=-1 compiles in a
fraction of the time and makes slower programs; --largest compiles a second batch to work out the largest that
fits. With --json the last line of the output is one JSON object.
"""

import json
import os
import sys

from absl import flags
from ml_collections import config_flags

from realcustom_jax.aot.topology import parse_topology, set_environment

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with :STAGE for the stage.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Generation and sides, as v5e:4x4, v4:2x2x4, v5p:4x4x4, v6e:2x4."
)
_WHAT = flags.DEFINE_enum("what", "train", ["train", "sample"], "Which program.")
_BATCH = flags.DEFINE_integer(
    "batch", None, "Images a chip; default the config's batch, or 1 for the sampler.", 1
)
_EFFORT = flags.DEFINE_float("effort", None, "From -1 to 1; default the compiler's own.", -1.0, 1.0)
_LARGEST = flags.DEFINE_bool("largest", False, "Also work out the largest batch a chip can hold.")
_JSON = flags.DEFINE_bool("json", False, "End with one JSON object.")


def main() -> None:
    from realcustom_jax.cli import parse_flags
    from realcustom_jax.errors import UserError

    parse_flags(__doc__)
    if _CONFIG.value is None or not _TOPOLOGY.value:
        raise UserError("aot needs --config FILE and --topology NAME, see --help")
    from realcustom_jax.aot import compiled, programs, report
    from realcustom_jax.aot.topology import devices
    from realcustom_jax.training.config import check_config

    config, topology = _CONFIG.value, parse_topology(_TOPOLOGY.value)
    check_config(config)
    found = devices(topology)

    def make(per_chip: int | None) -> programs.Program:
        if _WHAT.value == "train":
            return programs.train_program(config, found, per_chip)
        return programs.sample_program(config, found, per_chip or 1)

    program = make(_BATCH.value)
    print(f"compiling for {topology.chips} chips", file=sys.stderr, flush=True)
    figures = compiled.compile_program(program, topology, _EFFORT.value)
    largest = None
    if _LARGEST.value:
        # Chips of the tensor axis share their images.
        groups = topology.chips // (config.mesh.tensor if _WHAT.value == "train" else 1)
        per_chip = program.images // groups
        more = 2 * per_chip
        print("compiling another batch", file=sys.stderr, flush=True)
        other = compiled.compile_program(make(more), topology, _EFFORT.value)
        largest = compiled.largest_batch([(per_chip, figures), (more, other)], topology)
    values = report.as_json(program, figures, topology, largest)
    print(report.as_table(values))
    if _JSON.value:
        print(json.dumps(values))


if __name__ == "__main__":
    # Before anything imports JAX: which platforms it looks for cannot be changed later.
    for i, argument in enumerate(sys.argv):
        name, equals, value = argument.partition("=")
        if name in ("--topology", "-topology"):
            value = value if equals else next(iter(sys.argv[i + 1 :]), "")
            from realcustom_jax.errors import exit_on_user_error

            with exit_on_user_error():
                set_environment(parse_topology(value), os.environ)
    from realcustom_jax.cli import run_command

    run_command(main)
