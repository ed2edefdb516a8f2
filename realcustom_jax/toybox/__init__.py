"""The toybox: a small drawn world of subjects, backgrounds and captions, with exact subject masks."""

from realcustom_jax.toybox.backgrounds import BACKGROUNDS, paint_background
from realcustom_jax.toybox.captions import describe, prompt
from realcustom_jax.toybox.palette import WORDS, Identity, is_held_out, random_identity
from realcustom_jax.toybox.scenes import (
    Scene,
    example,
    example_face,
    render_reference,
    render_scene,
    sample_scene,
)

__all__ = [
    "BACKGROUNDS",
    "WORDS",
    "Identity",
    "Scene",
    "describe",
    "example",
    "example_face",
    "is_held_out",
    "paint_background",
    "prompt",
    "random_identity",
    "render_reference",
    "render_scene",
    "sample_scene",
]
