"""Shared by all tests: 8 simulated CPU devices, a compilation cache, and a small, fast model.

The fixtures are session-scoped and read-only:

- `micro_configs`: a dict with one config per component, for `Models.from_configs`. Copy it to change it.
- `micro_models`: `Models` made from it, with text, image and adaptive scoring: latents 8×8×4 (images 16×16),
  UNet levels of 16 and 32 channels with 1 and 2 heads, 77 text tokens of width 16, 16 visual tokens (4×4) of
  width 16.
- `micro_params`: {component: tree of arrays}. *Nothing* is at its neutral value: no kernel or bias is 0,
  no scale is 1, so every part of the model changes its output.
- `micro_pipe`: a `Pipeline` of these with a v-prediction schedule and a tokenizer of every toybox word.
- `flat_pipe`: `micro_pipe` with a UNet of one level and no self-attention, to compile many samplers.
- `micro_denoise`, `flat_denoise`: one jitted pass of their UNets, `micro_denoise(unet_params, latents, t,
  text, features=None, flags=None, masks=None, words=None, token_selection=None, strengths=None)`. They
  return the prediction and its `Aux`; the arguments are those of `UNet.encode_context` and `UNet.__call__`.
  They compile once for each combination of shapes.
"""

import importlib.metadata
import os
import resource
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
# XLA exits on an unknown flag, and JAX 0.12 has removed this one.
_OLDER = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 12)
# Set before JAX is imported. The flags between the first and the last shorten compiling, which takes most of
# the tests' time, and change results by rounding at most.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false" if _OLDER else "",
        "--xla_cpu_parallel_codegen_split_count=1",
        # XLA aborts the process if a simulated device waits longer for the others (40 s): a busy machine may.
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    ]
).strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["REALCUSTOM_JAX_CACHE"] = str(_ROOT / ".cache")  # commands keep compiled programs in its xla/

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from realcustom_jax.common.memory import return_freed_memory  # noqa: E402
from realcustom_jax.diffusion.schedule import ScheduleConfig  # noqa: E402
from realcustom_jax.inputs.tokenize import load_tokenizer  # noqa: E402
from realcustom_jax.models.family import Models  # noqa: E402
from realcustom_jax.models.init import init_params  # noqa: E402
from realcustom_jax.models.unet import UNet  # noqa: E402
from realcustom_jax.pipeline import Pipeline  # noqa: E402
from realcustom_jax.toybox import BACKGROUNDS, WORDS, prompt  # noqa: E402
from realcustom_jax.toybox.tokenizer import train_tokenizer  # noqa: E402
from realcustom_jax.weights.keys import flatten, unflatten  # noqa: E402

# Implicit promotion of dtypes is an error.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_compilation_cache_dir", str(_ROOT / ".cache" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


# Bytes of a worker from which it drops its compiled programs. Without a bound it grows to 9 GiB; a lower one
# makes it compile more programs again.
_MEMORY = 5 * 2**30


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """After each test file. Programs that are needed again come from the compilation cache."""
    yield
    pages = int(Path("/proc/self/statm").read_text().split()[1])  # resident ones
    if pages * resource.getpagesize() > _MEMORY:
        jax.clear_caches()
        return_freed_memory()


@pytest.fixture(scope="session")
def micro_tokenizer(tmp_path_factory):
    """A CLIP tokenizer in which every word of the toybox's plain prompts is one token."""
    folder = tmp_path_factory.mktemp("tokenizer")
    words = list(WORDS)
    pairs = zip(words, words[1:] + words[:1], strict=True)
    train_tokenizer([prompt(pair, place) for pair in pairs for place in BACKGROUNDS], folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def micro_configs(micro_tokenizer) -> dict:
    """One config per component, with the field names of a model folder."""
    return {
        "unet": {
            "sample_size": 8,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("CrossAttnUpBlock2D",) * 2,
            "cross_attention_dim": 16,
            "attention_head_dim": (1, 2),
            "norm_num_groups": 4,
        },
        "vae": {
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "scaling_factor": 0.5,
            "sample_size": 16,
        },
        "text_encoder": {
            "vocab_size": len(micro_tokenizer),
            "eos_token_id": micro_tokenizer.eos_token_id,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "projection_dim": 16,
        },
        "image_encoder": {
            "image_size": 16,
            "patch_size": 4,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "projection_dim": 16,
        },
        "realcustom": {"token_dim": 16, "projector": "plain", "scoring": True, "scoring_dim": 8},
    }


@pytest.fixture(scope="session")
def micro_models(micro_configs) -> Models:
    return Models.from_configs(micro_configs)


@pytest.fixture(scope="session")
def micro_params(micro_models) -> dict:
    return _random_params(micro_models)


@pytest.fixture(scope="session")
def micro_pipe(micro_models, micro_params, micro_tokenizer) -> Pipeline:
    schedule = ScheduleConfig(prediction_type="v_prediction", timestep_spacing="trailing")
    return Pipeline(micro_models, schedule, micro_params, (micro_tokenizer,))


@pytest.fixture(scope="session")
def flat_pipe(micro_configs, micro_pipe) -> Pipeline:
    flat = {
        "block_out_channels": (16,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "attention_head_dim": 2,
        "self_attention": False,
    }
    models = Models.from_configs({**micro_configs, "unet": {**micro_configs["unet"], **flat}})
    params = {**micro_pipe.params, "unet": _random_params(models)["unet"]}
    return micro_pipe.replace(models=models, params=params)


@pytest.fixture(scope="session")
def micro_denoise(micro_models):
    return _jitted_pass(micro_models.unet)


@pytest.fixture(scope="session")
def flat_denoise(flat_pipe):
    return _jitted_pass(flat_pipe.models.unet)


@pytest.fixture
def small_disk():
    """Files are limited to 1000 bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _random_params(models: Models) -> dict:
    """Random parameters; none has a value that switches its layer off."""
    rng = np.random.default_rng(0)
    flat = flatten(init_params(models.param_shapes(), seed=0))
    for path, value in flat.items():
        if path.endswith(("/bias", "/scale")):
            flat[path] = (value + 0.2 * rng.standard_normal(value.shape)).astype(np.float32)
        assert np.any(value) or path.endswith("/bias")
    return unflatten(flat)


def _jitted_pass(unet: UNet):
    """`encode_context` and one pass."""

    @jax.jit
    def denoise(
        params, latents, t, text, features=None, flags=None, masks=None, words=None, token_selection=None,
        strengths=None,
    ):  # fmt: skip
        def run(module):
            context = module.encode_context(text, features, flags, strengths)
            return module(latents, t, context, masks=masks, words=words, token_selection=token_selection)

        return unet.apply({"params": params}, method=run)

    return denoise
