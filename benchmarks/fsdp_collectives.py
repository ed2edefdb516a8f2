"""How the TPU compiler gathers a divided kernel: `python benchmarks/fsdp_collectives.py`.

Compiles products of images with one kernel that eight v5e chips divide among them (FSDP), first as the
compiler does by itself, then with its ring of pieces ("windowed einsum") turned off, and counts the
collectives of each. Needs the extra "tpu"; takes seconds. docs/tpus.md reads those of whole steps by it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from realcustom_jax.aot.collectives import by_part, total
from realcustom_jax.aot.topology import devices, parse_topology, set_environment
from realcustom_jax.common.cli import run_command

TOPOLOGY = "v5e:2x4"
# Pixels of an image, inputs and outputs of a kernel: projections and feed-forwards of SDXL.
PRODUCTS = ((1024, 1280, 1280), (1024, 1280, 10240), (1024, 5120, 1280), (4096, 640, 5120))
WHOLE = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "100000"}


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    topology = parse_topology(TOPOLOGY)
    set_environment(topology)
    mesh = Mesh(np.asarray(devices(topology)), ("fsdp",))
    images, rows = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("fsdp",), ("fsdp", None)))
    print("| pixels | kernel | its MiB | as the compiler does it | without pieces |\n|---|---|---|---|---|")
    for pixels, inputs, outputs in PRODUCTS:
        x = jax.ShapeDtypeStruct((2 * mesh.size, pixels, inputs), jnp.bfloat16, sharding=images)
        kernel = jax.ShapeDtypeStruct((inputs, outputs), jnp.bfloat16, sharding=rows)
        lowered = jax.jit(lambda x, kernel: jnp.tanh(x @ kernel), out_shardings=images).lower(x, kernel)
        cells = [f"{pixels}", f"{inputs} x {outputs}", f"{2 * inputs * outputs / 2**20:.2f}"]
        for options in ({}, WHOLE):
            compiled = lowered.compile(compiler_options={"exec_time_optimization_effort": -1.0, **options})
            found = total(by_part(compiled.as_text()))
            cells.append(
                ", ".join(f"{n} {kind}, {size / 2**20:.2f} MiB" for kind, (n, size) in found.items())
            )
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    run_command(main)
