"""Programs of real configs, traced from shapes without allocating parameters."""

import importlib.util
import math
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from realcustom_jax.aot import programs
from realcustom_jax.aot.collectives import by_part
from realcustom_jax.options import SamplingOptions
from realcustom_jax.training import partition
from realcustom_jax.training.config import read_config
from realcustom_jax.training.step import make_plan

MODULES = ("CLIPText", "UNet", "UNet, backward", "VAE")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def config_of(name: str, *stage: str):
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](*stage)


@pytest.fixture(scope="module")
def sdxl():
    """(config, plan) of SDXL's customization, with parameters sharded over 8 devices."""
    config = config_of("sdxl")
    models, schedule = programs.find_models(read_config(config))
    params = programs.with_dtypes(models.param_shapes(), read_config(config))
    return config, make_plan(
        read_config(config), models, schedule, params, partition.make_mesh(**config.mesh)
    )


def test_large_sdxl_parameters_are_sharded(sdxl):
    """Only biases, scales and a few kernels of less than 100,000 numbers are replicated."""
    _, plan = sdxl
    for path, leaf in jax.tree_util.tree_leaves_with_path((plan.state, plan.frozen)):
        if leaf.size > 100_000:
            share = math.prod(leaf.sharding.shard_shape(leaf.shape))
            assert 8 * share == leaf.size, jax.tree_util.keystr(path, simple=True, separator="/")


def test_frozen_parameters_are_bfloat16_without_optimizer_state(sdxl):
    _, plan = sdxl
    assert {leaf.dtype.name for leaf in jax.tree.leaves(plan.frozen)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(plan.state.params)} == {"float32"}
    trained = sum(leaf.size for leaf in jax.tree.leaves(plan.state.params))
    moments = sum(leaf.size for leaf in jax.tree.leaves(plan.state.opt_state) if leaf.size > 1)
    assert moments == 2 * trained  # Adam's two, and nothing else
    assert trained < 0.2 * sum(leaf.size for leaf in jax.tree.leaves(plan.frozen))


def test_toybox_step_and_sampler_lower_for_eight_chips():
    """The step with one image per chip, the sampler with two; a looped sampler reports its steps as parts."""
    program = programs.train_program(read_config(config_of("tiny", "customize")), jax.devices(), per_chip=1)
    assert program.images == 8
    # Muon's momentum of kernels, Adam's two moments of the rest.
    trained = program.held["trained parameters"]
    assert 1.1 * trained > program.held["optimizer"] > trained > 30e6
    assert "stablehlo" in program.lowered.as_text()
    config = config_of("tiny", "customize")
    options = SamplingOptions(steps=25, mask_steps=10, guidance_stop=0.64)
    config.scan = True  # a training option, which sampling ignores
    config.model.unet.transformer_layers_per_block = 2
    program = programs.sample_program(read_config(config), jax.devices(), per_chip=2, options=options)
    assert program.images == 16 and "stablehlo.while" in program.lowered.as_text()
    once, *steps = program.parts
    assert once[1] == 1 and [times for _, times in steps] == [16, 9]
    # Passes per image: empty text, text and subject while guidance acts; then the subject's alone.
    flops = [lowered.cost_analysis()["flops"] for lowered, _ in steps]
    assert round(flops[0] / flops[1]) == 3
    texts = [lowered.as_text() for lowered, _ in steps]
    assert not any("stablehlo.while" in text for text in texts)
    # Only the first loop computes word maps.
    assert len(texts[0]) > len(texts[1])


def test_sharded_step_communicates_kernels_but_not_text_activations(micro_configs):
    """Parameters sharded over 8 devices; the text encoder gathers kernels and has no all-reduce."""
    config = config_of("tiny", "base")
    # One level without self-attention and one text layer, to compile fast.
    small = {"block_out_channels": (16,), "attention_head_dim": 2, "self_attention": False}
    for kind in ("down", "up"):
        small[f"{kind}_block_types"] = (f"CrossAttn{kind.title()}Block2D",)
    config.model = {
        "unet": micro_configs["unet"] | small,
        "vae": micro_configs["vae"],
        "text_encoder": micro_configs["text_encoder"] | {"num_hidden_layers": 1},
        "image_encoder": micro_configs["image_encoder"],
        "scheduler": {},
    }
    config.mesh.update({"data": 1, "fsdp": 8})
    config.sharding = (("(kernel|embedding)$", ("fsdp",)), (".*", ()))
    program = programs.train_program(read_config(config), jax.devices(), per_chip=1)
    parts = by_part(program.lowered.compile().as_text())
    assert {"CLIPText", "UNet", "UNet, backward", "VAE"} <= parts.keys() <= {*MODULES, "rest"}
    assert "all-gather" in parts["CLIPText"] and "all-reduce" not in parts["CLIPText"]


def test_components_with_stored_outputs_are_not_loaded():
    """Unless the run's sample images need them."""
    config = config_of("tiny", "customize")
    models, schedule = programs.find_models(read_config(config))
    params = programs.with_dtypes(models.param_shapes(), read_config(config))
    held = {}
    for stored, every in ((False, 0), (True, 0), (True, 100)):
        config.data.update({"encoded": stored, "encoded_text": stored})
        config.samples.every = every
        plan = make_plan(read_config(config), models, schedule, params, partition.make_mesh())
        held[stored, every] = set(plan.frozen)
    assert held[False, 0] == held[True, 100] == {"vae", "text_encoder", "image_encoder", "image_encoder_2"}
    assert held[True, 0] == {"image_encoder", "image_encoder_2"}


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the extra 'tpu'")
def test_aot_command_runs_on_tpu_compiler():
    command = [sys.executable, "-m", "realcustom_jax.aot", "--config", str(CONFIGS / "tiny.py"),
               "--topology", "v5e:2x2", "--effort=-1", "--json"]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stderr
    assert '"fits": true' in result.stdout.splitlines()[-1]
