"""Scenes: the prompts of a story, with what differs from scene to scene."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.rules import Rule, quoted, shown
from realcustom_jax.inputs.prompts import texts_of
from realcustom_jax.inputs.requests import SEED
from realcustom_jax.inputs.subjects import STRENGTH, STRENGTHS

_SIDE = Rule("", int, 8, 2**20, none="the story's")
LONGEST_PROMPT = 10_000


@dataclasses.dataclass(frozen=True)
class Scene:
    """One image of a story.

    Attributes:
      prompt: a prompt that uses characters' names, "Mika on the beach".
      seed: seed of the noise; None for the story's.
      negative_prompt: what the image should not show; None for the story's.
      height, width: size in pixels; None for the story's options.
      strengths: changes for this scene, {"Mika": {"body_strength": 0.5}}; the keys are those of `Subject`.
      wishes: {"Mika": "wearing a red scarf"}: text after the first mention; it may name others.

    Raises:
      UserError: for wrong types or values out of range.
    """

    prompt: str
    seed: int | None = None
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    strengths: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    wishes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_text("a scene's prompt", self.prompt)
        if self.negative_prompt is not None:
            check_text("a scene's negative_prompt", self.negative_prompt)
        if self.seed is not None:
            SEED.check("a scene's seed", self.seed)
        for name in ("height", "width"):
            _SIDE.check(f"a scene's {name}", getattr(self, name))
        strengths = _mapping("strengths", self.strengths)
        changes = {
            "strengths": {name: _strengths(name, values) for name, values in strengths.items()},
            "wishes": dict(_mapping("wishes", self.wishes)),
        }
        for name, wish in changes["wishes"].items():
            check_text(f"the wish for {quoted(name)}", wish)
        for name, value in changes.items():
            object.__setattr__(self, name, value)

    def check_names(self, names: list[str]) -> None:
        """Raise `UserError` if strengths or wishes are for an unknown character."""
        for name in (*self.strengths, *self.wishes):
            if name not in names:
                known = ", ".join(names) or "none"
                raise UserError(
                    f"the scene {quoted(self.prompt)} is about {quoted(name)}; "
                    f"the story's characters: {known}"
                )

    def values(self) -> dict[str, Any]:
        """The fields as JSON values, without those of default value."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) not in (None, {})
        }

    @classmethod
    def from_values(cls, values: Any, source: str) -> "Scene":
        """Inverse of `values`.

        Raises:
          UserError: for unknown keys or wrong values; the message begins with `source`.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"{source}: a scene must be a JSON object, not {shown(values)}")
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [key for key in values if key not in known]
        if unknown or "prompt" not in values:
            wrong = f"has no key {shown(unknown[0])}" if unknown else "needs a prompt"
            raise UserError(f"{source}: a scene {wrong}; its keys: {', '.join(known)}")
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None


def check_text(what: str, text: Any) -> None:
    """Raise `UserError` unless a text is one that a model can read, and at most `LONGEST_PROMPT` long."""
    if not isinstance(text, str):
        raise UserError(f"{what} must be a text, not {shown(text)}")
    texts_of(what, text)
    if len(text) > LONGEST_PROMPT:
        raise UserError(f"{what} has {len(text)} characters; at most {LONGEST_PROMPT} are allowed")


def _mapping(what: str, values: Any) -> Mapping[str, Any]:
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise UserError(f"a scene's {what} must name characters, as in {{'Mika': …}}, not {shown(values)}")
    return values


def _strengths(name: str, values: Any) -> dict[str, float]:
    if not isinstance(values, Mapping) or not set(values) <= set(STRENGTHS):
        known = ", ".join(STRENGTHS)
        raise UserError(f"the strengths of {quoted(name)} must be among {known}, not {shown(values)}")
    return {key: STRENGTH.check(f"the {key} of {quoted(name)}", value) for key, value in values.items()}
