"""What a TPU would need, before paying for it: `python -m realcustom_jax.aot --config F --topology v5e:4x4`.

Compiles the training step of a config (or, with --what sample, the sampler of its model) with the real TPU
compiler, for chips that need not be there, and prints memory, operations, collectives and the compiler's
estimate of the time. Needs the extra "tpu" and no weights: shapes come from the config's `model`, or from the
configs in the folder `init_from`. --config.x=y changes the config as in training. --effort=-1 compiles in a
fraction of the time and makes slower programs; --largest compiles a second batch to work out the largest that
fits. With --json the last line of the output is one JSON object.
"""

import dataclasses
import json
import sys

import jax
from absl import flags
from ml_collections import config_flags

from realcustom_jax.aot.compiled import compile_program, largest_batch
from realcustom_jax.aot.programs import Program, sample_program, train_program
from realcustom_jax.aot.report import as_json, as_table
from realcustom_jax.aot.topology import devices, parse_topology, set_environment
from realcustom_jax.cli import parse_flags, run_command
from realcustom_jax.errors import UserError
from realcustom_jax.training.config import check_config

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with :STAGE for the stage.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Generation and sides, as v5e:4x4, v4:2x2x4, v5p:4x4x4, v6e:2x4."
)
_WHAT = flags.DEFINE_enum("what", "train", ["train", "sample"], "Which program.")
_BATCH = flags.DEFINE_integer("batch", None, "Images a chip; default the config's batch, 1 to sample.", 1)
_EFFORT = flags.DEFINE_float("effort", None, "From -1 to 1; default the compiler's own.", -1.0, 1.0)
_LARGEST = flags.DEFINE_bool("largest", False, "Also work out the largest batch a chip can hold.")
_JSON = flags.DEFINE_bool("json", False, "End with one JSON object.")


def main() -> None:
    parse_flags(__doc__)
    if _CONFIG.value is None or not _TOPOLOGY.value:
        raise UserError("aot needs --config FILE and --topology NAME, see --help")
    config, topology = _CONFIG.value, parse_topology(_TOPOLOGY.value)
    check_config(config)
    jax.config.update("jax_platforms", "cpu")  # nothing runs on the chips
    set_environment(topology)
    chips = devices(topology)

    def make(per_chip: int | None) -> Program:
        if _WHAT.value == "train":
            return train_program(config, chips, per_chip)
        return sample_program(config, chips, per_chip or 1)

    program = make(_BATCH.value)
    print(f"compiling for {topology.chips} chips", file=sys.stderr, flush=True)
    figures = compile_program(program, topology, _EFFORT.value)
    largest = None
    if _LARGEST.value:
        # Chips of the tensor axis share their images.
        groups = topology.chips // (config.mesh.tensor if _WHAT.value == "train" else 1)
        per_chip = program.images // groups
        print("compiling twice the batch", file=sys.stderr, flush=True)
        twice = dataclasses.replace(make(2 * per_chip), parts=())  # memory alone is of interest
        other = compile_program(twice, topology, _EFFORT.value)
        largest = largest_batch([(per_chip, figures), (2 * per_chip, other)], topology)
    values = as_json(program, figures, topology, largest)
    print(as_table(values))
    if _JSON.value:
        print(json.dumps(values))


if __name__ == "__main__":
    run_command(main)
