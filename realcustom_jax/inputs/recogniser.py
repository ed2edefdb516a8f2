"""A `matching.Matcher` for a small vocabulary: a network trained to name the subject of an image."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from realcustom_jax.common.chunks import in_chunks
from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import make_folder, write_json
from realcustom_jax.common.pixels import to_signed
from realcustom_jax.common.rules import Rule, is_list
from realcustom_jax.inputs.matching import Rules
from realcustom_jax.inputs.plurals import noun_forms
from realcustom_jax.inputs.transforms import center_crop_resize
from realcustom_jax.models.init import param_shapes
from realcustom_jax.models.recogniser import Recogniser, RecogniserConfig
from realcustom_jax.weights.components import find_weights, on_device, read_config, read_params, write_params
from realcustom_jax.weights.layouts import DIFFUSERS
from realcustom_jax.weights.tensors import open_tensors

MODEL_TYPE = "recogniser"

# Its logits are calibrated log-probabilities, so the rules are shares: a word of the prompt may have half the
# probability of the best word. `studies/auto_words.py` measures what they do.
RULES = Rules(margin=float(np.log(2)), sure=0.9)
# A phrase whose words it does not know. Finite, so that differences are defined.
_UNKNOWN = -100.0
_SIZES = Rule("", int, 1, 4096)


@dataclasses.dataclass(frozen=True)
class WordRecogniser:
    """The network with its parameters.

    Attributes:
      config, params: of `Recogniser`.
      rules: when a word fits; see `matching.Rules`.
    """

    config: RecogniserConfig
    params: Any
    rules: Rules = RULES

    @classmethod
    def load(cls, folder: Path) -> "WordRecogniser":
        """Read a folder that `save` wrote.

        Raises:
          UserError: if it is missing or is something else.
        """
        config = _config(read_config(folder), f"{folder / 'config.json'}")
        tensors = open_tensors(find_weights(folder))
        params = read_params(tensors, (DIFFUSERS,), recogniser_shapes(config), on_device(jnp.float32))
        return cls(config, params)

    def save(self, folder: Path) -> None:
        """Write config.json, and the parameters in float16."""
        make_folder(folder, "folder of the recogniser")
        write_json(folder / "config.json", {"model_type": MODEL_TYPE, **dataclasses.asdict(self.config)})
        write_params(folder / "model.safetensors", DIFFUSERS, jax.device_get(self.params), "float16")

    def logits(self, images: Sequence[np.ndarray], phrases: Sequence[str]) -> np.ndarray:
        """Log-probabilities (images, phrases) of the last known word of each phrase; see `Matcher`."""
        known = {form: i for i, word in enumerate(self.config.words) for form in noun_forms(word)}
        columns = []
        scores = self.scores(images)[:, 1:]
        for phrase in phrases:
            words = phrase.lower().split()
            found = next((known[word] for word in reversed(words) if word in known), None)
            # "dog" before "red dog": the word alone is narrowed.
            extra = 1e-3 * (len(words) - 1)
            columns.append(np.full(len(scores), _UNKNOWN) if found is None else scores[:, found] - extra)
        return np.stack(columns, axis=1) if columns else np.zeros((len(scores), 0))

    def none(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Log-probabilities (images,) that an image shows none of the words."""
        return self.scores(images)[:, 0]

    def vocabulary(self) -> list[str]:
        """Its words."""
        return list(self.config.words)

    def scores(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Log-probabilities (images, 1 + words) of uint8 images (H, W, 3) of any size."""
        pixels = [to_signed(_square(image, self.config.image_size)) for image in images]
        (scores,) = in_chunks(lambda rows: [_scores(self.config, self.params, np.stack(rows))], pixels)
        return scores


def recogniser_shapes(config: RecogniserConfig) -> Any:
    """Shapes of the `params` tree of a `Recogniser`."""
    side = config.image_size
    return param_shapes(Recogniser(config), jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))


@functools.partial(jax.jit, static_argnums=0)
def _scores(config: RecogniserConfig, params: Any, images: Array) -> Array:
    """Log-probabilities (B, 1 + words)."""
    logits: Any = Recogniser(config).apply({"params": params}, images)
    return jax.nn.log_softmax(logits)


def _square(image: np.ndarray, side: int) -> np.ndarray:
    """The whole image, made square by repeating its edge, at `side` pixels."""
    height, width, _ = image.shape
    short, long = sorted((height, width))
    before = (long - short) // 2
    margin, none = (before, long - short - before), (0, 0)
    padding = (margin, none) if height < width else (none, margin)
    # A thin strip would become very large.
    if long > 16 * short:
        raise UserError(f"an image of {width}x{height} pixels is too thin to tell what it shows")
    return center_crop_resize(np.pad(image, (*padding, none), mode="edge"), side)


def _config(values: dict[str, Any], source: str) -> RecogniserConfig:
    """The config from JSON values, checked."""
    words, widths = values.get("words"), values.get("widths")
    if values.get("model_type") != MODEL_TYPE:
        raise UserError(f"{source}: model_type is {values.get('model_type')!r}, not {MODEL_TYPE!r}")
    if not (is_list(words) and words and all(isinstance(word, str) and word for word in words)):
        raise UserError(f"{source}: words must be a list of words")
    if not (is_list(widths) and 1 <= len(widths) <= 8):
        raise UserError(f"{source}: widths must be a list of 1 to 8 numbers of channels")
    widths = tuple(_SIZES.check(f"{source}: widths", width) for width in widths)
    if any(width % 8 for width in widths):
        raise UserError(f"{source}: widths must be multiples of 8, not {list(widths)}")
    side, blocks = (_SIZES.check(f"{source}: {name}", values.get(name)) for name in ("image_size", "blocks"))
    return RecogniserConfig(tuple(words), side, widths, blocks)
