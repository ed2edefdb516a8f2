"""Collectives that the TPU compiler uses for a sharded kernel: `python benchmarks/fsdp_collectives.py`.

Compiles matrix products whose kernel is sharded over eight v5e chips (FSDP) and counts the collectives. The
compiler runs once with its defaults and once without "windowed einsum", which splits a gather into a ring of
permutes. Needs the extra "tpu". Takes seconds. docs/tpus.md uses the counts to explain those of whole steps.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from realcustom_jax.aot.collectives import by_part, total
from realcustom_jax.aot.topology import devices, parse_topology, set_environment
from realcustom_jax.common.cli import run_command

TOPOLOGY = "v5e:2x4"
# (pixels, inputs, outputs) of SDXL's projections and feed-forward layers.
PRODUCTS = ((1024, 1280, 1280), (1024, 1280, 10240), (1024, 5120, 1280), (4096, 640, 5120))
NO_WINDOWED_EINSUM = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "100000"}


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    topology = parse_topology(TOPOLOGY)
    set_environment(topology)
    mesh = Mesh(np.asarray(devices(topology)), ("fsdp",))
    images, rows = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("fsdp",), ("fsdp", None)))
    print("| pixels | kernel | kernel MiB | default | no windowed einsum |\n|---|---|---|---|---|")
    for pixels, inputs, outputs in PRODUCTS:
        x = jax.ShapeDtypeStruct((2 * mesh.size, pixels, inputs), jnp.bfloat16, sharding=images)
        kernel = jax.ShapeDtypeStruct((inputs, outputs), jnp.bfloat16, sharding=rows)
        lowered = jax.jit(lambda x, kernel: jnp.tanh(x @ kernel), out_shardings=images).lower(x, kernel)
        cells = [f"{pixels}", f"{inputs} x {outputs}", f"{2 * inputs * outputs / 2**20:.2f}"]
        for options in ({}, NO_WINDOWED_EINSUM):
            compiled = lowered.compile(compiler_options={"exec_time_optimization_effort": -1.0, **options})
            counts = total(by_part(compiled.as_text()))
            cells.append(
                ", ".join(f"{n} {kind}, {size / 2**20:.2f} MiB" for kind, (n, size) in counts.items())
            )
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    run_command(main)
