"""The sampling options of a model, with defaults by base; what `sample` takes as keywords."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from realcustom_jax.diffusion.sampler import SamplerConfig
from realcustom_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """Options of `sample`. The defaults are the paper's, for SD1.5; `realcustom/sampling.json` changes them.

    Numbers from `text_weight` to `gamma_num` may be one for all requests or a sequence of one each; changing
    them never compiles again. The others shape the compiled program; see `SamplerConfig` for their values.

    Attributes:
      text_weight, image_weight: ω_t and ω_i of `paper` guidance; text_weight is the ω of `direct`.
      rescale: φ of `direct` guidance, 0 for none.
      gamma_scope: share of the image where a subject may act.
      gamma_num: share of the visual tokens that act.
      height, width: of the image in pixels; None for the model's own size.
      mask_downscale: latent pixels per pixel of the mask grid along one side.
    """

    text_weight: float = 7.5
    image_weight: float = 12.5
    rescale: float = 0.0
    gamma_scope: float = 0.25
    gamma_num: float = 0.8
    height: int | None = None
    width: int | None = None
    steps: int = 50
    mask_steps: int | None = None
    solver: str = "ddim"
    spacing: str = "trailing"
    eta: float = 0.0
    guidance: str = "paper"
    mask_downscale: int = 1
    mask_normalisation: str = "max_norm"
    mask_kind: str = "soft"
    mask_overlap: str = "strongest"
    mask_layers: tuple[int, ...] | None = None
    scoring: str = "fused"

    def changed(self, changes: Mapping[str, Any]) -> "SamplingOptions":
        """With other values.

        Raises:
          UserError: for a name that is no option.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                raise UserError(f"{name!r} is no sampling option; known: {', '.join(names)}")
        return dataclasses.replace(self, **changes)

    def sampler_config(self, height: int, width: int) -> SamplerConfig:
        """The static part, for latents of height x width."""
        shared = {field.name for field in dataclasses.fields(SamplerConfig)} - {"height", "width"}
        values = {name: getattr(self, name) for name in shared if hasattr(self, name)}
        down = self.mask_downscale
        if down < 1 or height % down or width % down:
            raise UserError(f"mask_downscale {down} does not divide latents of {height}x{width}")
        return SamplerConfig(
            height=height, width=width, mask_height=height // down, mask_width=width // down, **values
        )

    def scalar(self, name: str, batch: int) -> np.ndarray:
        """A number as (B,) float32."""
        value = np.asarray(getattr(self, name), np.float32)
        if value.shape not in ((), (batch,)):
            raise UserError(f"{name} must be one number or {batch}, one a request; got {value.size}")
        if name in ("gamma_scope", "gamma_num", "rescale") and not ((value >= 0) & (value <= 1)).all():
            raise UserError(f"{name} must be from 0 to 1, not {getattr(self, name)}")
        return np.broadcast_to(value, (batch,))


SDXL = SamplingOptions(
    text_weight=3.5,
    steps=25,
    mask_steps=12,
    solver="dpmpp_2s",
    guidance="direct",
    mask_downscale=2,
    mask_normalisation="min_max_per_channel",
)
