"""SD1.5's UNet at its real size: how much memory loading takes, and one pass of what was loaded."""

import json
import subprocess
import sys

import pytest

# Each part runs in its own process, so that its memory is measured alone.
WRITE = """
import dataclasses, sys
from pathlib import Path
import jax, numpy as np
from realcustom_jax.models.config import UNetConfig
from realcustom_jax.models.family import unet_shapes
from realcustom_jax.models.unet import UNet
from realcustom_jax.common.files import write_json
from realcustom_jax.weights.components import write_params
from realcustom_jax.weights.layouts import DIFFUSERS

rng = np.random.default_rng(0)
shapes = unet_shapes(UNet(UNetConfig()), 77, 1, 0)
params = jax.tree.map(
    lambda x: (0.02 * rng.standard_normal(x.shape, np.float32)).astype(np.float16), shapes
)
folder = Path(sys.argv[1])
write_json(folder / "config.json", dataclasses.asdict(UNetConfig()))
write_params(folder / "diffusion_pytorch_model.safetensors", DIFFUSERS, params, "float16")
"""
LOAD = """
import json, resource, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from realcustom_jax.models.unet import UNet
from realcustom_jax.models.family import unet_shapes
from realcustom_jax.weights.components import load_params, on_device, read_config
from realcustom_jax.weights.configs import read_unet

peak = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
folder, dtype, run = Path(sys.argv[1]), jnp.dtype(sys.argv[2]), sys.argv[3] == "run"
unet = UNet(read_unet(read_config(folder), "it"))
shapes = unet_shapes(unet, 77, 1, 0)
jax.block_until_ready(jnp.zeros(1))
before = peak()
params = load_params(folder, "unet", shapes, on_device(dtype))
out = {"model": sum(x.nbytes for x in jax.tree.leaves(params)), "grown": peak() - before}
if run:
    def call(module, z, t, text):
        return module(z, t, module.encode_context(text))[0]

    apply = jax.jit(lambda p, *inputs: unet.apply({"params": p}, *inputs, method=call))
    result = apply(params, jnp.ones((1, 16, 16, 4)), jnp.ones(1), jnp.ones((1, 77, 768)))
    out |= {"shape": result.shape, "finite": bool(jnp.isfinite(result).all()), "std": float(result.std())}
print(json.dumps(out))
"""


def run(script: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_loading_memory_is_close_to_model_size(tmp_path):
    """At most 1.3 times the parameters in their final dtype; then one pass with 16×16 latents."""
    run(WRITE, str(tmp_path))
    half = json.loads(run(LOAD, str(tmp_path), "bfloat16", "load"))
    whole = json.loads(run(LOAD, str(tmp_path), "float32", "run"))
    for result, size in ((half, 2), (whole, 4)):
        assert result["model"] == 859_520_964 * size
        assert result["grown"] <= 1.3 * result["model"]
    assert whole["shape"] == [1, 16, 16, 4] and whole["finite"] and whole["std"] > 1e-3
