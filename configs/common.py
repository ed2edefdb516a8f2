"""Common part of configs/sd15.py and configs/sdxl.py: train RealCustom's added weights on a frozen base.

Config files set only what differs from the defaults. `python -m realcustom_jax.train --options` lists all
options with meaning, range and default. Each option is also a flag: --config.optimizer.learning_rate=2e-4.
"""

import ml_collections

from realcustom_jax.training.config import default_config

# The CLIP text encoder of both bases.
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


def get_config() -> ml_collections.ConfigDict:
    """The common config."""
    config = default_config()
    config.stage = "customize"  # visual K and V, projector and scoring train; base and towers are frozen
    return config
