"""Every sampling option once: meaning, type, range, default, and whether it shapes the compiled program.

The checks, the errors, the flags of the commands and the help of `sample` all come from the fields here:

- `ProgramOptions` are static: another value compiles another program;
- `SamplingOptions` adds those that do not: numbers of a request, and sizes in pixels. `sample` takes these
  as keywords;
- `SamplerConfig` is what the sampler is compiled for: `ProgramOptions` with the sizes of latents and masks.
"""

import argparse
import dataclasses
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.foreign_names import our_name
from realcustom_jax.common.rules import Rule, choice, option, rules_of
from realcustom_jax.diffusion.denoiser import SCORINGS
from realcustom_jax.diffusion.guidance import MODES, SCOPES
from realcustom_jax.diffusion.masks import KINDS, NORMALISATIONS, OVERLAPS
from realcustom_jax.diffusion.refinement import REFINEMENTS
from realcustom_jax.diffusion.solvers import SOLVERS, SPACINGS


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramOptions:
    """Options that shape the compiled program; another value is another trace.

    Raises:
      UserError: for a value of a wrong type or out of its range.
    """

    steps: int = option(50, "denoising steps", int, low=1)
    mask_steps: int | None = option(
        None, "steps that make new masks, later ones reuse the last", int, low=1, none="all"
    )
    solver: str = choice("ddim", "of the denoising process", SOLVERS)
    spacing: str = choice("trailing", "of the timesteps", SPACINGS)
    eta: float = option(0.0, "η of ddim, from no noise to DDPM's", low=0, high=1)
    guidance: str = choice("paper", "eq. 13 of the paper, or RealCustom++'s", MODES)
    guidance_scope: str = choice("image", "where ω_i of paper guidance acts, the image or the masks", SCOPES)
    guidance_start: float = option(
        0.0, "share of the steps after which the guidance weights act", low=0, high=1
    )
    guidance_stop: float = option(1.0, "share of the steps after which they act no more", low=0, high=1)
    mask_downscale: int = option(1, "latent pixels per mask pixel along one side", int, low=1)
    mask_normalisation: str = choice("max_norm", "of the word maps", NORMALISATIONS)
    mask_kind: str = choice("soft", "how a mask is cut out of the word map", KINDS)
    mask_overlap: str = choice("strongest", "whose a pixel is that several subjects claim", OVERLAPS)
    mask_layers: tuple[int, ...] | None = option(
        None, "cross-attentions that give word maps, in running order", int, low=0, many=True, none="all"
    )
    mask_refine: str = choice("none", "what sharpens the word maps before masks are cut out", REFINEMENTS)
    scoring: str = choice("fused", "what chooses the visual tokens", SCORINGS)

    def __post_init__(self):
        for name, rule in self.rules().items():
            object.__setattr__(self, name, rule.check(name, getattr(self, name)))

    @classmethod
    def rules(cls) -> dict[str, Rule]:
        """{option: what it means and may be}, the static ones last."""
        rules = rules_of(cls)
        return dict(sorted(rules.items(), key=lambda item: item[0] in ProgramOptions.__dataclass_fields__))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerConfig(ProgramOptions):
    """What the sampler is compiled for; hashable, so that `jax.jit` can take it as static.

    Attributes:
      height, width: of the latents.
      mask_height, mask_width: of the mask grid; default the latents' by `mask_downscale`.

    Raises:
      UserError: for an option that does not go with another.
    """

    height: int
    width: int
    mask_height: int | None = None
    mask_width: int | None = None

    def __post_init__(self):
        super().__post_init__()
        for name, size in (("mask_height", self.height), ("mask_width", self.width)):
            if size % self.mask_downscale:
                raise UserError(
                    f"mask_downscale {self.mask_downscale} does not divide latents of "
                    f"{self.height}x{self.width}"
                )
            if getattr(self, name) is None:
                object.__setattr__(self, name, size // self.mask_downscale)
        if self.guidance_scope == "mask" and self.guidance != "paper":
            raise UserError(
                "guidance_scope 'mask' needs guidance 'paper', with its text-only pass at each step"
            )
        if self.guidance_start > self.guidance_stop:
            raise UserError(
                f"guidance_start {self.guidance_start} and guidance_stop {self.guidance_stop} must be shares "
                "of the steps, from 0 to 1, the start not after the stop"
            )
        if self.mask_steps is not None and self.mask_steps > self.steps:
            raise UserError(f"mask_steps must be from 1 to {self.steps} (steps), not {self.mask_steps}")

    @property
    def guided_steps(self) -> int:
        """Steps that make new masks."""
        return self.steps if self.mask_steps is None else self.mask_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingOptions(ProgramOptions):
    """Options of `sample`. The defaults are the paper's, for SD1.5; `realcustom/sampling.json` changes them.

    Numbers from `text_weight` to `gamma_num` may be one for all requests or a sequence of one each; changing
    them never compiles again. `rules()` tells what each option means and may be; values are checked when the
    object is made, and kept as plain Python numbers and tuples.

    Raises:
      UserError: for a value of a wrong type or out of its range.
    """

    text_weight: float | tuple[float, ...] = option(
        7.5, "guidance weight ω_t of the text; ω of direct guidance", low=-1000, high=1000, many=True
    )
    image_weight: float | tuple[float, ...] = option(
        12.5, "guidance weight ω_i of the subjects, of paper guidance only", low=-1000, high=1000, many=True
    )
    rescale: float | tuple[float, ...] = option(
        0.0, "φ of direct guidance, how far it keeps the contrast", low=0, high=1, many=True
    )
    gamma_scope: float | tuple[float, ...] = option(
        0.25, "share of the image where a subject may act", low=0, high=1, many=True
    )
    gamma_num: float | tuple[float, ...] = option(
        0.8, "share of the visual tokens that act", low=0, high=1, many=True
    )
    height: int | None = option(None, "of the image in pixels", int, none="the model's own")
    width: int | None = option(None, "of the image in pixels", int, none="the model's own")

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
        static = {name: getattr(self, name) for name in ProgramOptions.rules()}
        return SamplerConfig(height=height, width=width, **static)

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


# ---------------------------------------------------------------- help and flags


def describe(name: str) -> str:
    """An option's meaning, what it may be, and the defaults of both bases: "… : 0 to 1 (0.25)"."""
    rule = SamplingOptions.rules()[name]
    defaults = [getattr(base, name) for base in (SamplingOptions(), SDXL)]
    shown = dict.fromkeys(rule.none if default is None else str(default) for default in defaults)
    return rule.describe(", SDXL ".join(shown))


def documented(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with `{options}` in its docstring filled in."""
    lines = (
        textwrap.fill(f"{name}: {describe(name)}", 108, initial_indent=" " * 8, subsequent_indent=" " * 10)
        for name in SamplingOptions.rules()
    )
    if function.__doc__:  # none with python -OO
        function.__doc__ = function.__doc__.replace("{options}", "\n".join(lines).lstrip())
    return function


def add_option_flags(parser: argparse.ArgumentParser) -> None:
    """Add a group with all of them; those that are not given are None."""
    group = parser.add_argument_group(
        "sampling options", "Defaults are the model's own; in brackets SD1.5's, and SDXL's where it differs."
    )
    for name, rule in SamplingOptions.rules().items():
        group.add_argument(
            _flag(name),
            type=rule.kind,
            # A number each request is for the Python call; here all images share their options.
            nargs="+" if rule.many and rule.kind is int else None,
            metavar={int: "N", float: "NUMBER", str: "NAME"}[rule.kind],
            help=describe(name),
        )


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling options that were given, each checked by itself; `sample` checks them together.

    Raises:
      UserError: for a value that an option can't have; the sentence names the flag.
    """
    given = {name: getattr(args, name) for name in SamplingOptions.rules()}
    given = {name: value for name, value in given.items() if value is not None}
    return {name: SamplingOptions.rules()[name].check(_flag(name), value) for name, value in given.items()}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
