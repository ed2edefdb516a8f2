"""The model card of an export: README.md, in the format of the Hugging Face hub."""

import re
from pathlib import Path

from realcustom_jax.common.files import write_text
from realcustom_jax.training.saved import Saved
from realcustom_jax.weights.added import ADDED

PUBLISHED_FILE = "realcustom.safetensors"

# The hub reads the YAML header: the library, the task, and the licence for filters.
_CARD = """\
---
library_name: realcustom_jax
pipeline_tag: text-to-image
license: other
tags:
- realcustom
---

# {title}

{what} It was trained with realcustom_jax, the JAX implementation of
[RealCustom](https://arxiv.org/abs/2403.00483) and [RealCustom++](https://arxiv.org/abs/2408.09744).

| | |
|---|---|
| base | {base} |
| data | {data} |
| steps | {step:,} of {steps:,}, {batch_size:,} images each |
| parameters | {count} arrays, {size:,} numbers |
| weights | {weights} |

{left}## How to load it

With realcustom_jax:

```python
{here}
```

With PyTorch:

```python
{torch}
```

## Licence

The base model's licence also applies to these weights. The licence of the training data may restrict their
use further. The code of realcustom_jax is under the Apache License 2.0.
"""

# PyTorch code for the two kinds of exports: an adapter file, and a whole diffusers folder.
_STATE_DICT = """\
from safetensors.torch import load_file

# Names are those of the published RealCustom++ implementation; `unet` is its UNet, with the base's weights.
missing, unexpected = unet.load_state_dict(load_file("FOLDER/{file}"), strict=False)
assert not unexpected"""

_PIPELINE = """\
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("FOLDER")  # makes images from text; it does not read realcustom/"""


def write_card(folder: Path, saved: Saved, averaged: bool, file: str, left: str) -> None:
    """Write the model card of an export.

    Args:
      folder: folder of the export.
      saved: the exported parameters and their config.
      averaged: whether the weights are the average over the steps (EMA).
      file: name of the adapter's weights file; "" for a whole model.
      left: a sentence about parameters that the export leaves out, or "".
    """
    config, params = saved.config, saved.params
    adapter = "What RealCustom adds to a text-to-image model"
    decay = f"averaged over the steps (EMA, decay {config.optimizer.ema_decay:g})"
    values = {
        "title": adapter if file else "A text-to-image model",
        "what": f"This is the result of the training stage `{config.stage}`.",
        "base": _base(config.init_from, file),
        "data": f"`{config.data.path}`, split `{config.data.split}`",
        "step": saved.step,
        "steps": config.steps,
        "batch_size": config.batch_size,
        "count": len(params),
        "size": sum(value.size for value in params.values()),
        "weights": decay if averaged else "values of that step, not averaged",
        "left": f"{left}\n\n" if left else "",
        "here": _here(saved, file),
        "torch": _STATE_DICT.format(file=file) if file else _PIPELINE,
    }
    write_text(folder / "README.md", _CARD.format(**values))


def _base(init_from: str, file: str) -> str:
    """The base model, for the card."""
    if init_from:
        return f"`{init_from}`"
    # A run that started from nothing trained its own base, and an adapter is useless without it.
    own = "the run's own, which `python -m realcustom_jax.export --form diffusers` exports"
    return own if file else "none: trained from scratch"


def _here(saved: Saved, file: str) -> str:
    """Python code that loads the export and samples from it."""
    lines = ["import realcustom_jax as rc", ""]
    if file:
        place = f"FOLDER/{file}" if file == PUBLISHED_FILE else "FOLDER"
        base = saved.config.init_from or "BASE"
        lines.append(f'pipe = rc.load("{base}", realcustom="{place}")')
    else:
        lines.append('pipe = rc.load("FOLDER")')
    if any(re.search(ADDED, path) for path in saved.params):  # other stages cannot take a subject
        lines += [
            'subject = rc.Subject(image=Image.open("photo.png"), words="dog")',
            'out = rc.sample(pipe, "a dog on the beach", subjects=[subject])',
        ]
        lines.insert(1, "from PIL import Image")
    else:
        lines.append('out = rc.sample(pipe, "a dog on the beach")')
    return "\n".join(lines)
