"""All sampling options: meaning, type, range, default, and whether they are static.

Checks, error messages, flags of the commands and the help of `sample` are all derived from the fields here.

- `ProgramOptions` are static: a new value compiles a new program.
- `SamplingOptions` adds the other options: numbers of a request, and sizes in pixels. They are the keyword
  arguments of `sample`.
- `SamplerConfig` is the static part: `ProgramOptions` with the sizes of latents and masks.
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
    """Static options: a new value compiles a new program.

    Raises:
      UserError: for a value of a wrong type or outside its range.
    """

    # the loop: how many steps, and with which solver
    steps: int = option(50, "denoising steps", int, low=1)
    mask_steps: int | None = option(
        None, "steps that make new masks, later ones reuse the last", int, low=1, none="all"
    )
    solver: str = choice("ddim", "solver of the denoising process", SOLVERS)
    spacing: str = choice("trailing", "spacing of the timesteps", SPACINGS)
    eta: float = option(0.0, "η of ddim: 0 adds no noise, 1 as much as DDPM", low=0, high=1)
    # guidance: which passes run, and how they combine
    guidance: str = choice("paper", "guidance formula: eq. 13 of the paper, or RealCustom++'s", MODES)
    guidance_scope: str = choice("image", "where ω_i of paper guidance acts", SCOPES)
    guidance_start: float = option(
        0.0, "share of the steps after which the guidance weights begin to act", low=0, high=1
    )
    guidance_stop: float = option(
        1.0, "share of the steps after which the guidance weights stop acting", low=0, high=1
    )
    # masks (eq. 11) and scoring (eq. 5–10)
    mask_downscale: int = option(1, "latent pixels per mask pixel along one side", int, low=1)
    mask_normalisation: str = choice("max_norm", "normalisation of the word maps", NORMALISATIONS)
    mask_kind: str = choice("soft", "how a mask is cut out of the word map", KINDS)
    mask_overlap: str = choice("strongest", "who gets a pixel that several subjects claim", OVERLAPS)
    mask_layers: tuple[int, ...] | None = option(
        None, "cross-attentions whose word maps are used, in running order", int, low=0, many=True, none="all"
    )
    mask_refine: str = choice("none", "refinement of the word maps before masks are cut out", REFINEMENTS)
    scoring: str = choice("fused", "score that selects the visual tokens", SCORINGS)

    def __post_init__(self):
        # `object.__setattr__`, because the dataclass is frozen.
        for name, rule in self.rules().items():
            object.__setattr__(self, name, rule.check(name, getattr(self, name)))

    @classmethod
    def rules(cls) -> dict[str, Rule]:
        """{option: its rule}, with the static options last."""
        rules = rules_of(cls)
        # Users most often change weights and shares, so help texts list them first. The sort is stable.
        return dict(sorted(rules.items(), key=lambda item: item[0] in ProgramOptions.__dataclass_fields__))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerConfig(ProgramOptions):
    """Static configuration of the sampler; hashable, so it can be a static argument of `jax.jit`.

    Attributes:
      height, width: size of the latents.
      mask_height, mask_width: size of the mask grid; 0: size of the latents / `mask_downscale`.

    Raises:
      UserError: for options that contradict each other.
    """

    height: int
    width: int
    mask_height: int = 0
    mask_width: int = 0

    def __post_init__(self):
        super().__post_init__()
        for name, size in (("mask_height", self.height), ("mask_width", self.width)):
            if size % self.mask_downscale:
                raise UserError(
                    f"mask_downscale {self.mask_downscale} does not divide latents of "
                    f"{self.height}x{self.width}"
                )
            if not getattr(self, name):
                object.__setattr__(self, name, size // self.mask_downscale)
        # Outside the masks the prediction is ε_T, which only paper guidance computes at each step.
        if self.guidance_scope == "mask" and self.guidance != "paper":
            raise UserError(
                "guidance_scope 'mask' needs guidance 'paper', which has a text-only pass at each step"
            )
        if self.guidance_start > self.guidance_stop:
            raise UserError(
                f"guidance_start {self.guidance_start} and guidance_stop {self.guidance_stop} must be shares "
                "of the steps, from 0 to 1, and the start must not be after the stop"
            )
        if self.mask_steps is not None and self.mask_steps > self.steps:
            raise UserError(f"mask_steps must be from 1 to {self.steps} (steps), not {self.mask_steps}")

    @property
    def guided_steps(self) -> int:
        """Number of steps that make new masks."""
        return self.steps if self.mask_steps is None else self.mask_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingOptions(ProgramOptions):
    """Options of `sample`. The defaults are those of the paper, for SD1.5.

    A model can have other defaults, in `realcustom/sampling.json`. The options `text_weight` to `gamma_num`
    are one number for all requests, or a sequence with one number per request; changing them never
    recompiles. `rules()` has the meaning and range of each option. Values are checked on creation, and stored
    as plain Python numbers and tuples.

    Raises:
      UserError: for a value of a wrong type or outside its range.
    """

    text_weight: float | tuple[float, ...] = option(
        7.5, "guidance weight ω_t of the text, or ω of direct guidance", low=-1000, high=1000, many=True
    )
    image_weight: float | tuple[float, ...] = option(
        12.5, "guidance weight ω_i of the subjects, only for paper guidance", low=-1000, high=1000, many=True
    )
    rescale: float | tuple[float, ...] = option(
        0.0, "φ of direct guidance, how much it restores the contrast", low=0, high=1, many=True
    )
    gamma_scope: float | tuple[float, ...] = option(
        0.25, "share of the image where a subject may act", low=0, high=1, many=True
    )
    gamma_num: float | tuple[float, ...] = option(
        0.8, "share of the visual tokens that act", low=0, high=1, many=True
    )
    height: int | None = option(None, "height of the image in pixels", int, none="the model's own")
    width: int | None = option(None, "width of the image in pixels", int, none="the model's own")

    def changed(self, changes: Mapping[str, Any]) -> "SamplingOptions":
        """A copy with other values. Lists, as JSON has them, are accepted for tuples.

        Raises:
          UserError: for an unknown name or an invalid value.
        """
        for name in changes:
            if name not in self.rules():
                ours = our_name(name) or f"known: {', '.join(self.rules())}"
                raise UserError(f"{name!r} is not a sampling option; {ours}")
        result = dataclasses.replace(self, **changes)
        # A default `mask_steps` is reduced to fit fewer `steps`. One that the user gives must fit.
        if "steps" in changes and "mask_steps" not in changes and result.mask_steps is not None:
            result = dataclasses.replace(result, mask_steps=min(result.mask_steps, result.steps))
        return result

    def sampler_config(self, height: int, width: int) -> SamplerConfig:
        """The static part of the options, for latents of height x width.

        Raises:
          UserError: if the mask grid does not fit the latents, if `mask_steps` exceeds `steps`, or if options
            of the guidance contradict each other.
        """
        static = {name: getattr(self, name) for name in ProgramOptions.rules()}
        return SamplerConfig(height=height, width=width, **static)

    @classmethod
    def scalars(cls) -> tuple[str, ...]:
        """Names of the options that can have one number per request."""
        return tuple(name for name, rule in cls.rules().items() if rule.many and rule.kind is float)

    def of_request(self, index: int) -> dict[str, Any]:
        """All options of the request with this index in the batch."""
        values = {name: getattr(self, name) for name in self.rules()}
        for name in self.scalars():
            values[name] = values[name][index] if isinstance(values[name], tuple) else values[name]
        return values

    def scalar(self, name: str, batch: int) -> np.ndarray:
        """An option of `scalars()` as float32 (B,).

        Raises:
          UserError: for a sequence whose length is not `batch`.
        """
        value = np.asarray(getattr(self, name), np.float32)
        if value.shape not in ((), (batch,)):
            raise UserError(f"{name} must be one number or {batch}, one per request; got {value.size}")
        return np.broadcast_to(value, (batch,))


# Defaults for SDXL: the settings of the published RealCustom++ inference.
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
    """Help text of an option: meaning, allowed values, and the defaults of both bases, "…: 0 to 1 (0.25)"."""
    rule = SamplingOptions.rules()[name]
    defaults = [getattr(base, name) for base in (SamplingOptions(), SDXL)]
    # a dict removes equal defaults
    shown = dict.fromkeys(str(rule.none if default is None else default) for default in defaults)
    return rule.describe(", SDXL ".join(shown))


def documented(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator that replaces `{options}` in a docstring by the help of all options."""
    lines = (
        textwrap.fill(f"{name}: {describe(name)}", 108, initial_indent=" " * 8, subsequent_indent=" " * 10)
        for name in SamplingOptions.rules()
    )
    if function.__doc__:  # none with python -OO
        function.__doc__ = function.__doc__.replace("{options}", "\n".join(lines).lstrip())
    return function


def add_option_flags(parser: argparse.ArgumentParser) -> None:
    """Add a group with the flags of all sampling options; a flag that is not given is None."""
    # No defaults here: they depend on the model, which is not loaded yet.
    group = parser.add_argument_group(
        "sampling options",
        "The defaults are the model's own; the brackets show those of SD1.5, and of SDXL if they differ.",
    )
    for name, rule in SamplingOptions.rules().items():
        group.add_argument(
            _flag(name),
            type=rule.kind,
            # One number per request is only for the Python call: here all images share their options.
            nargs="+" if rule.many and rule.kind is int else None,
            metavar={int: "N", float: "NUMBER", str: "NAME"}[rule.kind],
            help=describe(name),
        )


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling options that were given as flags. Each is checked alone; `sample` checks them together.

    Raises:
      UserError: for an invalid value; the message names the flag.
    """
    # Checked here, because `sample` would name the option instead of the flag.
    given = {name: getattr(args, name) for name in SamplingOptions.rules()}
    given = {name: value for name, value in given.items() if value is not None}
    return {name: SamplingOptions.rules()[name].check(_flag(name), value) for name, value in given.items()}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
