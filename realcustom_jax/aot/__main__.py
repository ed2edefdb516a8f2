"""TPU memory and time before paying for a TPU: `python -m realcustom_jax.aot --config F --topology v5e:4x4`.

Compiles the training step of a config with the real TPU compiler; no TPU is needed. With --what sample, it
compiles all programs of a request instead: text encoders, image towers, contexts, denoising loop, VAE
decoder. Prints memory, operations, collectives and the compiler's estimate of the time.

Needs the extra "tpu", but no weights: shapes come from the config's `model`, or from the configs in the
folder `init_from`. --config.x=y changes the config as in training. --effort=-1 compiles much faster, but the
programs are slower. --largest compiles a second batch size to compute the largest batch that fits. With
--json the last line of the output is a JSON object.
"""

import dataclasses
import json
import sys
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from realcustom_jax.aot.compiled import Figures, compile_program, largest_batch
from realcustom_jax.aot.programs import Program, train_program
from realcustom_jax.aot.report import as_json, as_table, programs_json
from realcustom_jax.aot.request import LOOP, request_programs
from realcustom_jax.aot.topology import Topology, devices, parse_topology, set_environment
from realcustom_jax.common.cli import parse_flags, run_command
from realcustom_jax.common.errors import UserError
from realcustom_jax.training.config import TrainConfig, read_config

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with :STAGE for the stage.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Generation and sides, such as v5e:4x4, v4:2x2x4, v5p:4x4x4, v6e:2x4."
)
_WHAT = flags.DEFINE_enum("what", "train", ["train", "sample"], "Program to compile.")
_BATCH = flags.DEFINE_integer(
    "batch", None, "Images per chip; default: the config's batch, 1 with --what sample.", 1
)
_EFFORT = flags.DEFINE_float(
    "effort", None, "Compiler effort from -1 to 1; default: the compiler's own.", -1.0, 1.0
)
_LARGEST = flags.DEFINE_bool("largest", False, "Also compute the largest batch that fits a chip.")
_JSON = flags.DEFINE_bool("json", False, "Print a JSON object as the last line.")


def main() -> None:
    parse_flags(__doc__)
    if _CONFIG.value is None or not _TOPOLOGY.value:
        raise UserError("aot needs --config FILE and --topology NAME, see --help")
    config, topology = _CONFIG.value, parse_topology(_TOPOLOGY.value)
    config = read_config(config)
    # Programs are only compiled, not run. Without this line, JAX would look for a TPU.
    jax.config.update("jax_platforms", "cpu")
    set_environment(topology)
    chips = devices(topology)

    print(f"compiling for {topology.chips} chips", file=sys.stderr, flush=True)
    values = (_train if _WHAT.value == "train" else _sample)(config, topology, chips)
    print(as_table(values))
    if _JSON.value:
        print(json.dumps(values))


def _train(config: TrainConfig, topology: Topology, chips: list[Any]) -> dict[str, Any]:
    """Figures of the training step; with --largest also the largest batch per chip."""
    program = train_program(config, chips, _BATCH.value)
    figures, largest = compile_program(program, topology, _EFFORT.value), None
    if _LARGEST.value:
        # Chips along the tensor axis work on the same images.
        per_chip = program.images // (topology.chips // config.mesh.tensor)
        twice = train_program(config, chips, 2 * per_chip)
        largest = _largest(per_chip, figures, twice, topology)
    return as_json(program, figures, topology, largest)


def _sample(config: TrainConfig, topology: Topology, chips: list[Any]) -> dict[str, Any]:
    """Figures of the denoising loop, and under "programs" those of each program of a request."""
    per_chip = _BATCH.value or 1
    request, figures = request_programs(config, chips, per_chip), {}
    for name, program in request.programs.items():
        print(f"compiling: {name}", file=sys.stderr, flush=True)
        figures[name] = compile_program(program, topology, _EFFORT.value)
    loop, largest = request.programs[LOOP], None
    if _LARGEST.value:
        twice = request_programs(config, chips, 2 * per_chip).programs[LOOP]
        # Only the memory of the loop is needed, so its parts, which give cost and time, are not compiled.
        largest = _largest(per_chip, figures[LOOP], dataclasses.replace(twice, parts=()), topology)
    return {
        **as_json(loop, figures[LOOP], topology, largest),
        "programs": programs_json(request, figures, topology),
    }


def _largest(per_chip: int, figures: Figures, twice: Program, topology: Topology) -> int | None:
    """Largest batch per chip, from the figures of a program and a program with twice as many images."""
    print("compiling twice the batch", file=sys.stderr, flush=True)
    other = compile_program(twice, topology, _EFFORT.value)
    return largest_batch([(per_chip, figures), (2 * per_chip, other)], topology)


if __name__ == "__main__":
    run_command(main)
