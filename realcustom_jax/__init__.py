"""realcustom_jax: RealCustom and RealCustom++ in JAX/Flax. What `__all__` names is the public API.

Names are imported when first used, so loader workers import the data modules alone, without the networks.
`sample` is the function, also after the command of that name, `realcustom_jax.sample`, was imported.
"""

import logging
import sys
import types
from typing import Any

from etils import epy

for _hook in ("__getattr__", "__dir__"):  # there when a notebook reloads the package
    globals().pop(_hook, None)

with epy.lazy_api_imports(globals()):
    from realcustom_jax.common.errors import UserError
    from realcustom_jax.diffusion.conditioning import Conditioning, Settings
    from realcustom_jax.diffusion.sampler import sample_latents
    from realcustom_jax.generate import sample
    from realcustom_jax.inputs.background import cut_out
    from realcustom_jax.inputs.characters import Character
    from realcustom_jax.inputs.encode import make_conditioning
    from realcustom_jax.inputs.face_detection import find_face
    from realcustom_jax.inputs.reference_hints import reference_hints
    from realcustom_jax.inputs.subjects import Subject
    from realcustom_jax.inspection.inspect import inspect
    from realcustom_jax.inspection.inspection import Inspection
    from realcustom_jax.options import SamplerConfig, SamplingOptions
    from realcustom_jax.outputs.samples import Samples
    from realcustom_jax.pipeline import Pipeline, load, save
    from realcustom_jax.story.create import candidates
    from realcustom_jax.story.scene import Scene
    from realcustom_jax.story.story import Story
    from realcustom_jax.toybox import example, example_face

__all__ = [
    "Character",
    "Conditioning",
    "Inspection",
    "Pipeline",
    "SamplerConfig",
    "Samples",
    "SamplingOptions",
    "Scene",
    "Settings",
    "Story",
    "Subject",
    "UserError",
    "candidates",
    "cut_out",
    "example",
    "example_face",
    "find_face",
    "inspect",
    "load",
    "make_conditioning",
    "reference_hints",
    "sample",
    "sample_latents",
    "save",
]


# We need transformers for its tokenizers alone. Version 5 reports on import that there is no PyTorch, which
# would only hide what a command has to say.
logging.getLogger("transformers").addFilter(lambda record: "PyTorch was not found" not in record.getMessage())


class _Package(types.ModuleType):
    """Importing a submodule sets it on its package; it must not hide a public name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
