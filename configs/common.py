"""What configs/sd15.py and configs/sdxl.py share: training what RealCustom adds to a frozen base.

`python -m realcustom_jax.train --options` lists all options with meaning, range and default; what stands in a
config file differs from the defaults. Each is a flag too: --config.optimizer.learning_rate=2e-4.
"""

import ml_collections

from realcustom_jax.training.config import default_config

# The CLIP text encoder of both bases.
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


def get_config() -> ml_collections.ConfigDict:
    config = default_config()
    config.stage = "customize"  # visual K and V, projector and scoring train; base and towers are frozen
    return config
