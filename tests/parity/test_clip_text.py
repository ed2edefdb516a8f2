"""Our CLIP text encoder against transformers' two, small and with random parameters."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'parity'")

import torch
import transformers

from realcustom_jax.models.clip_text import CLIPText, CLIPTextConfig
from realcustom_jax.models.config import from_mapping
from realcustom_jax.models.init import param_shapes

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))

END = 40  # of 50 tokens: no token is the highest by chance
# Token 45 is above END: where eos_token_id is 2, as old configs say, it is the pooled one.
IDS = np.array([[38, 5, 45, END, 7, 7, 7, 7, 7], [38, 45, 9, 9, 1, 8, 3, END, END]])


@pytest.mark.parametrize("end", [END, 2], ids=["eos_token_id", "old config"])
@pytest.mark.parametrize(("projects", "activation"), [(False, "quick_gelu"), (True, "gelu")])
def test_text_encoder_equals_transformers(projects, activation, end):
    """Last and penultimate states, pooled text: SD1.5's and SDXL's first encoder, and SDXL's second.

    A second time with weak embeddings and branches, so that the norms' epsilon (1e-5) matters.
    """
    settings = transformers.CLIPTextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=9, hidden_act=activation, projection_dim=6, eos_token_id=end,
    )  # fmt: skip
    name = "CLIPTextModelWithProjection" if projects else "CLIPTextModel"
    theirs = getattr(transformers, name)(settings)
    config = from_mapping(CLIPTextConfig, {**settings.to_dict(), "with_projection": projects})
    text = CLIPText(config)
    shapes = param_shapes(text, IDS)
    apply = jax.jit(lambda params: text.apply({"params": params}, IDS))
    for weak in (None, "embedding|out_proj|fc2"):
        common.randomise(theirs, seed=5, weak=weak)
        ours = apply(common.our_params(shapes, common.numpy_state(theirs)))
        out = theirs(torch.from_numpy(IDS), output_hidden_states=True)
        common.assert_close(ours.last, out.last_hidden_state)
        common.assert_close(ours.penultimate, out.hidden_states[-2])
        common.assert_close(ours.pooled, out.text_embeds if projects else out.pooler_output)
