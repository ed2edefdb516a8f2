"""Requests, one per image, and the conversion of `sample`'s arguments into requests."""

import dataclasses
from typing import Any

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.rules import Rule, is_list
from realcustom_jax.inputs.prompts import texts_of
from realcustom_jax.inputs.subjects import Subject

SEED = Rule("seed of the noise, one per image", int, 0, 2**64 - 1)


@dataclasses.dataclass(frozen=True)
class Request:
    """A request for one image.

    Attributes:
      prompt: description of the image.
      subjects: subjects that must appear; empty for text only.
      seed: seed of the noise, see `SEED`.
      negative_prompt: description of what the image should not show.
    """

    prompt: str
    subjects: tuple[Subject, ...] = ()
    seed: int = 0
    negative_prompt: str = ""


def requests_of(prompt: Any, subjects: Any, negative_prompt: Any, seed: Any) -> list[Request]:
    """The arguments of `sample` as requests.

    Raises:
      UserError: for arguments of wrong types, empty lists, or lists of different lengths.
    """
    prompts = texts_of("prompt", prompt)
    single = isinstance(prompt, str)
    if not prompts:
        raise UserError("there is no prompt")
    # One prompt with a list of seeds makes an image for each seed.
    if single and is_list(seed):
        if not len(seed):
            raise UserError("there is no seed")
        nested = nested_subjects(subjects, 1, single=True) * len(seed)
        prompts = prompts * len(seed)
    else:
        nested = nested_subjects(subjects, len(prompts), single)
    batch = len(prompts)
    seed = 0 if seed is None else seed
    seeds = _each("seed", seed, batch) if is_list(seed) else [seed] * batch
    negatives = _negatives(negative_prompt, batch)
    return [
        Request(text, tuple(own), SEED.check("seed", one), negative)
        for text, own, one, negative in zip(prompts, nested, seeds, negatives, strict=True)
    ]


def _negatives(negative_prompt: Any, batch: int) -> list[str]:
    """A negative prompt per request: one for all, or one each."""
    negative_prompt = "" if negative_prompt is None else negative_prompt
    texts = texts_of("negative_prompt", negative_prompt)
    return texts * batch if isinstance(negative_prompt, str) else _each("negative_prompt", texts, batch)


def prompt_lists(prompts: Any, negative_prompts: Any) -> tuple[list[str], list[str]]:
    """Prompts and negative prompts of a batch, one of each per request.

    Raises:
      UserError: if they are empty, not lists, or of different lengths.
    """
    if not is_list(prompts):
        raise UserError(f"prompts must be a list, even for one prompt, not {_kind(prompts)}")
    if not len(prompts):
        raise UserError("there is no prompt")
    negatives = _each("negative_prompts", negative_prompts, len(prompts))
    return texts_of("prompts", prompts), texts_of("negative_prompts", negatives)


def nested_subjects(subjects: Any, batch: int, single: bool) -> list[list[Subject]]:
    """The subjects of each request as a list; None stands for no subjects, of all requests or of one.

    Args:
      subjects: a list of subjects (`single`), or a list of such lists.
      batch: number of requests.
      single: whether there is a single prompt.

    Raises:
      UserError: for wrong types or another number of lists.
    """
    if subjects is None:
        return [[] for _ in range(batch)]
    if isinstance(subjects, Subject):
        raise UserError("subjects must be a list, even for one: subjects=[rc.Subject(image, words)]")
    nested = [subjects] if single else _each("subjects", subjects, batch)
    nested = [[] if own is None else own for own in nested]
    for own in nested:
        if not is_list(own):
            expected = "a list" if single else "a list of lists"
            raise UserError(
                f"subjects must be {expected} of rc.Subject(image, words), not {_kind(own, not single)}"
            )
        for subject in own:
            if not isinstance(subject, Subject):
                raise UserError(f"a subject must be rc.Subject(image, words), not {_kind(subject)}")
    return [list(own) for own in nested]


def _kind(value: Any, within: bool = False) -> str:
    """The type of a value for errors, or of an entry within a list."""
    return ("a list with " if within else "") + type(value).__name__


def _each(name: str, values: Any, count: int) -> list[Any]:
    """A list of one value per request, checked."""
    if not is_list(values) or len(values) != count:
        raise UserError(f"{name} must be a list of {count}, one for each prompt")
    return list(values)
