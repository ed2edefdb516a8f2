"""The sampling options of a model, with defaults by base; what `sample` takes as keywords.

Meaning, type and range of an option stand once, beside its field: the checks, the errors and the flags of the
command all come from there.
"""

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from realcustom_jax.diffusion.guidance import MODES, SCOPES
from realcustom_jax.diffusion.masks import KINDS, NORMALISATIONS, OVERLAPS
from realcustom_jax.diffusion.refinement import REFINEMENTS
from realcustom_jax.diffusion.sampler_config import SCORINGS, SamplerConfig
from realcustom_jax.errors import UserError, shown
from realcustom_jax.foreign_names import our_name

# What `SamplerConfig` takes as it is; the sizes of latents and mask grid are worked out.
SHARED = (
    "steps",
    "mask_steps",
    "solver",
    "spacing",
    "eta",
    "guidance",
    "guidance_scope",
    "guidance_start",
    "guidance_stop",
    "mask_normalisation",
    "mask_kind",
    "mask_overlap",
    "mask_layers",
    "mask_refine",
    "scoring",
)
SOLVERS = ("ddim", "euler", "dpmpp_2m", "dpmpp_2s")
SPACINGS = ("trailing", "leading", "linspace")


@dataclasses.dataclass(frozen=True)
class Rule:
    """What an option means and may be.

    Attributes:
      help: one phrase.
      kind: float, int, or str for one of `choices`.
      low, high: of a number; the bounds are allowed.
      choices: of a str.
      many: a number for all requests or a sequence of one each (float), or a sequence (int).
      none: what None stands for; without it None is not allowed.
    """

    help: str
    kind: type = float
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    many: bool = False
    none: str | None = None

    def check(self, name: str, value: Any) -> Any:
        """The value in plain Python types, sequences as tuples.

        Raises:
          UserError: when it is none of what the option may be.
        """
        if value is None and self.none:
            return None
        if self.kind is str:
            if not isinstance(value, str) or value not in self.choices:
                raise UserError(f"{name} {shown(value)} is unknown; known: {', '.join(self.choices)}")
            return value
        if self.kind is float:
            return self._floats(name, value)
        if not self.many:
            return self._within(name, _whole(name, value))
        if not is_list(value) or len(value) == 0:
            raise UserError(f"{name} must be a list of one or more whole numbers, not {shown(value)}")
        return tuple(self._within(name, _whole(name, one)) for one in value)

    def _floats(self, name: str, value: Any) -> float | tuple[float, ...]:
        wanted = "one number or a list of one each request" if self.many else "a number"
        if is_list(value) and not self.many:
            raise UserError(f"{name} must be {wanted}, not {shown(value)}")
        numbers = list(value) if is_list(value) else [value]
        for number in numbers:
            array = np.asarray(number)
            if array.ndim or array.dtype.kind not in "iuf":  # neither text, None nor a bool
                raise UserError(f"{name} must be {wanted}, not {shown(number)}")
            with np.errstate(over="ignore"):
                if not np.isfinite(array.astype(np.float32)):
                    raise UserError(f"{name} must be finite in float32, not {number}")
            self._within(name, number)
        return tuple(map(float, numbers)) if is_list(value) else float(value)

    def _within(self, name: str, value: Any) -> Any:
        if not self.low <= value <= self.high:
            wanted = f"from {self.low} to {self.high}" if self.high < math.inf else f"{self.low} or more"
            raise UserError(f"{name} must be {wanted}, not {value}")
        return value


def _whole(name: str, value: Any) -> int:
    """An int from any integer type, numpy's and JAX's too, but neither from a bool, a float nor text."""
    try:
        if not isinstance(value, (bool, np.bool_)):
            return operator.index(value)
    except TypeError:
        pass
    raise UserError(f"{name} must be a whole number, not {shown(value)}")


def is_list(value: Any) -> bool:
    """Whether it holds values one by one: a list, tuple, range or array, but not text."""
    if isinstance(value, Sequence):
        return not isinstance(value, (str, bytes))
    return getattr(value, "ndim", 0) > 0


def _option(default: Any, help: str, kind: type = float, **rest: Any) -> Any:
    return dataclasses.field(default=default, metadata={"rule": Rule(help, kind, **rest)})


def _choice(default: str, help: str, choices: tuple[str, ...]) -> Any:
    return _option(default, help, str, choices=choices)


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """Options of `sample`. The defaults are the paper's, for SD1.5; `realcustom/sampling.json` changes them.

    Numbers from `text_weight` to `gamma_num` may be one for all requests or a sequence of one each; changing
    them never compiles again. The others shape the compiled program. `rules()` tells what each means and may
    be; values are checked when the object is made, and kept as plain Python numbers and tuples.

    Raises:
      UserError: for a value of a wrong type or out of its range.
    """

    text_weight: float | tuple[float, ...] = _option(
        7.5, "guidance weight ω_t of the text; ω of direct guidance", low=-1000, high=1000, many=True
    )
    image_weight: float | tuple[float, ...] = _option(
        12.5, "guidance weight ω_i of the subjects, of paper guidance only", low=-1000, high=1000, many=True
    )
    rescale: float | tuple[float, ...] = _option(
        0.0, "φ of direct guidance, how far it keeps the contrast", low=0, high=1, many=True
    )
    gamma_scope: float | tuple[float, ...] = _option(
        0.25, "share of the image where a subject may act", low=0, high=1, many=True
    )
    gamma_num: float | tuple[float, ...] = _option(
        0.8, "share of the visual tokens that act", low=0, high=1, many=True
    )
    height: int | None = _option(None, "of the image in pixels", int, none="the model's own")
    width: int | None = _option(None, "of the image in pixels", int, none="the model's own")
    steps: int = _option(50, "denoising steps", int, low=1)
    mask_steps: int | None = _option(
        None, "steps that make new masks, later ones reuse the last", int, low=1, none="all"
    )
    solver: str = _choice("ddim", "of the denoising process", SOLVERS)
    spacing: str = _choice("trailing", "of the timesteps", SPACINGS)
    eta: float = _option(0.0, "η of ddim, from no noise to DDPM's", low=0, high=1)
    guidance: str = _choice("paper", "eq. 13 of the paper, or RealCustom++'s", MODES)
    guidance_scope: str = _choice("image", "where ω_i of paper guidance acts, the image or the masks", SCOPES)
    guidance_start: float = _option(
        0.0, "share of the steps after which the guidance weights act", low=0, high=1
    )
    guidance_stop: float = _option(1.0, "share of the steps after which they act no more", low=0, high=1)
    mask_downscale: int = _option(1, "latent pixels per mask pixel along one side", int, low=1)
    mask_normalisation: str = _choice("max_norm", "of the word maps", NORMALISATIONS)
    mask_kind: str = _choice("soft", "how a mask is cut out of the word map", KINDS)
    mask_overlap: str = _choice("strongest", "whose a pixel is that several subjects claim", OVERLAPS)
    mask_layers: tuple[int, ...] | None = _option(
        None, "cross-attentions that give word maps, in running order", int, low=0, many=True, none="all"
    )
    mask_refine: str = _choice("none", "what sharpens the word maps before masks are cut out", REFINEMENTS)
    scoring: str = _choice("fused", "what chooses the visual tokens", SCORINGS)

    def __post_init__(self):
        for name, rule in self.rules().items():
            object.__setattr__(self, name, rule.check(name, getattr(self, name)))

    @classmethod
    def rules(cls) -> dict[str, Rule]:
        """{option: what it means and may be}."""
        return {field.name: field.metadata["rule"] for field in dataclasses.fields(cls)}

    def changed(self, changes: Mapping[str, Any]) -> "SamplingOptions":
        """With other values; JSON's lists will do for tuples.

        A default `mask_steps` shrinks to fit fewer `steps`; one that is asked for stays and must fit.

        Raises:
          UserError: for a name that is no option, or a value that the option can't have.
        """
        for name in changes:
            if name not in self.rules():
                ours = our_name(name) or f"known: {', '.join(self.rules())}"
                raise UserError(f"{name!r} is no sampling option; {ours}")
        result = dataclasses.replace(self, **changes)
        if "steps" in changes and "mask_steps" not in changes and result.mask_steps is not None:
            result = dataclasses.replace(result, mask_steps=min(result.mask_steps, result.steps))
        return result

    def sampler_config(self, height: int, width: int) -> SamplerConfig:
        """The static part, for latents of height x width.

        Raises:
          UserError: when the mask grid does not fit the latents, `mask_steps` the steps, or an option of the
            guidance another.
        """
        down = self.mask_downscale
        if height % down or width % down:
            raise UserError(f"mask_downscale {down} does not divide latents of {height}x{width}")
        values = {name: getattr(self, name) for name in SHARED}
        return SamplerConfig(
            height=height, width=width, mask_height=height // down, mask_width=width // down, **values
        )

    @classmethod
    def scalars(cls) -> tuple[str, ...]:
        """The options that may be a number each request."""
        return tuple(name for name, rule in cls.rules().items() if rule.many and rule.kind is float)

    def of_request(self, index: int) -> dict[str, Any]:
        """All options of one request of a batch."""
        values = {name: getattr(self, name) for name in self.rules()}
        for name in self.scalars():
            values[name] = values[name][index] if isinstance(values[name], tuple) else values[name]
        return values

    def scalar(self, name: str, batch: int) -> np.ndarray:
        """A number as (B,) float32.

        Raises:
          UserError: when there is a number each request, but of another batch.
        """
        value = np.asarray(getattr(self, name), np.float32)
        if value.shape not in ((), (batch,)):
            raise UserError(f"{name} must be one number or {batch}, one a request; got {value.size}")
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
