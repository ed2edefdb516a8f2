"""Whole runs of the micro model on 64 scenes, shared by the files of this folder that a worker runs."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from realcustom_jax.data.image_text import write
from realcustom_jax.toybox.dataset import make_example
from realcustom_jax.weights.added import ADDED

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("run_helpers.py"))))
TINY, STAGES, train = common.TINY, common.STAGES, common.train


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data")
    write(folder, {"train": (make_example(seed, held_out=False) for seed in range(64))})
    return str(folder)


@pytest.fixture(scope="session")
def make_config(data, micro_configs):
    """configs/tiny.py of a stage with the micro model: batches of 8, two steps, all eight devices."""
    get_config = runpy.run_path(str(TINY))["get_config"]

    def make(stage: str, init_from: Path | str = "", steps: int = 2):
        config = get_config(stage)
        config.init_from, config.steps, config.batch_size = str(init_from), steps, 8
        config.log_every, config.checkpoint_every, config.export_dtype = 1, 2, "float32"
        config.optimizer.warmup = 0
        config.data.path = data
        config.data.by_word = False  # too few examples of a word for a batch
        if stage in ("vae", "instance"):  # the others use Muon, which takes longer to compile
            config.optimizer.name = "adamw"
        config.curriculum.begin, config.curriculum.finish = 0, steps
        # One level without self-attention, to compile fast.
        small = {"block_out_channels": (16,), "attention_head_dim": 2, "self_attention": False}
        for kind in ("down", "up"):
            small[f"{kind}_block_types"] = (f"CrossAttn{kind.title()}Block2D",)
        config.model.unet = micro_configs["unet"] | small
        for name in ("vae", "image_encoder"):
            config.model[name] = micro_configs[name]
        shared = ("image_size", "patch_size", "hidden_size", "intermediate_size", "num_attention_heads")
        second = {name: micro_configs["image_encoder"][name] for name in shared}
        config.model.image_encoder_2.update({**second, "num_hidden_layers": 1, "projection_dim": 8})
        config.model.text_encoder = {
            name: value for name, value in micro_configs["text_encoder"].items() if name != "eos_token_id"
        }
        if stage == "customize":
            config.model.realcustom = {**micro_configs["realcustom"], "feature_layers": ((0,), (-2,))}
            # With the base frozen, as in the method; the base stage trains the same UNet.
            config.trainable = (ADDED,)
            config.loss.subject_weight = 3.0
        return config

    return make


@pytest.fixture(scope="session")
def runs(make_config, tmp_path_factory) -> dict[str, tuple]:
    """{stage: (config, workdir, sha256)}, trained on first use, each from the previous stage.

    They have two steps, customize four.
    """
    root = tmp_path_factory.mktemp("runs")

    class Runs(dict):
        def __missing__(self, stage):
            before = STAGES.index(stage) - 1
            model = self[STAGES[before]][1] / "model" if before >= 0 else ""
            config = make_config(stage, model, steps=4 if stage == "customize" else 2)
            config.samples.every = 3 if stage == "base" else 0
            self[stage] = config, root / stage, train(config, root / stage)
            return self[stage]

    return Runs()
