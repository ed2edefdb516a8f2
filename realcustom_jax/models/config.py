"""Configs of the UNet and of the parts that RealCustom adds to it."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from realcustom_jax.common.errors import UserError
from realcustom_jax.models.config_fields import check_fields

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
_WITH_ATTENTION = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
_WITHOUT_ATTENTION = ("DownBlock2D", "UpBlock2D")
# Projectors that also take features of the image at twice the input size of the towers (RealCustom++).
HIGH_RES = ("deep", "shallow")
FITS = ("squash", "crop", "pad")


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Shape of the UNet, with the field names of diffusers' `unet/config.json`; defaults are SD1.5's.

    `attention_head_dim` is the *number of heads* per level; the misleading name is part of the format.
    `self_attention` is our own field: which levels have self-attention. All levels keep their
    cross-attention.

    Raises:
      UserError: for a number or type of blocks, or an embedding, that is not supported.
    """

    sample_size: int = 64
    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    cross_attention_dim: int = 768
    attention_head_dim: int | tuple[int, ...] = 8
    transformer_layers_per_block: int | tuple[int, ...] = 1
    use_linear_projection: bool = False
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    self_attention: bool | tuple[bool, ...] = True

    def __post_init__(self):
        levels = len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types"):
            types = getattr(self, name)
            if len(types) != levels or any(t not in _WITH_ATTENTION + _WITHOUT_ATTENTION for t in types):
                raise UserError(
                    f"UNet config: {name} must name {levels} blocks of "
                    f"{_WITH_ATTENTION + _WITHOUT_ATTENTION}, got {types}"
                )
        if self.addition_embed_type not in (None, "text_time"):
            raise UserError(f"UNet config: addition_embed_type {self.addition_embed_type!r} is not supported")

    def _by_level(self, value: Any) -> tuple:
        levels = len(self.block_out_channels)
        values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * levels
        if len(values) != levels:
            raise UserError(f"UNet config: {value} must be one value or one for each of {levels} levels")
        return values

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads, by level."""
        return self._by_level(self.attention_head_dim)

    @property
    def depths(self) -> tuple[int, ...]:
        """Transformer blocks after each residual block, by level."""
        return self._by_level(self.transformer_layers_per_block)

    @property
    def self_attentions(self) -> tuple[bool, ...]:
        """Whether transformers have self-attention, by level."""
        return self._by_level(self.self_attention)

    @property
    def divisor(self) -> int:
        """Number that divides each valid latent height and width."""
        # Each level except the last halves the size.
        return 2 ** (len(self.block_out_channels) - 1)

    def has_attention(self, level: int, kind: str) -> bool:
        """Whether a level of the "down", "up" or "mid" path has transformers; "mid" always has."""
        if kind == "mid":
            return True
        # Levels count from the finest; the up path of the config begins with the coarsest.
        types = self.down_block_types if kind == "down" else self.up_block_types[::-1]
        return types[level] in _WITH_ATTENTION


@dataclasses.dataclass(frozen=True)
class RealCustomConfig:
    """Shape of the parts that RealCustom adds; stored as `realcustom/config.json`.

    Attributes:
      token_dim: channels C_i of the visual tokens, the output of the projector.
      projector: "plain" (the paper), "deep" or "shallow" (RealCustom++); see `projector`.
      projector_head_dim: channels per attention head of the RealCustom++ projectors.
      feature_layers: for each image tower, the hidden states that become features. They are indices into
        [input, output of layer 1, …], so -2 is the output of the penultimate layer. Each tower needs one
        index per feature array of the projector (`projector.FEATURES`), except the local one: local features
        come from the last index.
      scoring: whether adaptive scoring (eq. 5–10) selects the tokens.
      scoring_dim: width of the two score MLPs.
      reference_fit: how a non-square reference image becomes square. "squash" resizes the whole image, as
        the published RealCustom++ does. "crop" takes the largest centred square, as CLIP does. "pad" adds
        white borders. None is "squash" for the RealCustom++ projectors, else "crop".

    Raises:
      UserError: for an unknown `reference_fit`.
    """

    token_dim: int = 768
    projector: str = "plain"
    projector_head_dim: int = 64
    feature_layers: tuple[tuple[int, ...], ...] = ((-2,),)
    scoring: bool = True
    scoring_dim: int = 256
    reference_fit: str | None = None

    def __post_init__(self):
        fit = self.reference_fit or default_fit(self.projector in HIGH_RES)
        if fit not in FITS:
            raise UserError(f"reference_fit {fit!r} is unknown; known: {', '.join(FITS)}")
        object.__setattr__(self, "reference_fit", fit)  # the way to set a field of a frozen dataclass


def default_fit(high_res: bool) -> str:
    """The default `reference_fit`."""
    return "squash" if high_res else "crop"


def from_mapping(cls: type[T], values: Mapping[str, Any], source: str = "the config") -> T:
    """Make a config dataclass from a JSON object: lists become tuples, keys without a field are dropped.

    Raises:
      UserError: for a value of a wrong type or out of its range; the message begins with `source`.
    """
    # Files of diffusers and transformers have many keys that do not affect the shape (`_class_name` …).
    names = {field.name for field in dataclasses.fields(cls)}
    own = {name: _as_tuple(value) for name, value in values.items() if name in names}
    check_fields(cls, own, source)
    return cls(**own)


def _as_tuple(value: Any) -> Any:
    # Flax modules must be hashable, so their configs hold no lists.
    return tuple(map(_as_tuple, value)) if isinstance(value, (list, tuple)) else value
