"""The arguments of `sample` as a batch of requests."""

from typing import Any

from realcustom_jax.errors import UserError
from realcustom_jax.options import is_list
from realcustom_jax.prompts import texts_of
from realcustom_jax.subjects import Subject


def requests_of(
    prompt: Any, subjects: Any, negative_prompt: Any, seed: Any
) -> tuple[list[str], list[list[Subject]], list[str], list[Any]]:
    """Prompts, subjects, negative prompts and seeds of `sample`, as lists with one entry a request.

    Raises:
      UserError: for arguments of wrong types, or lists of different lengths.
    """
    prompts = texts_of("prompt", prompt)
    single = isinstance(prompt, str)
    if not prompts:
        raise UserError("there is no prompt")
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
    negative_prompt = "" if negative_prompt is None else negative_prompt
    negatives = texts_of("negative_prompt", negative_prompt)
    if isinstance(negative_prompt, str):
        return prompts, nested, negatives * batch, seeds
    return prompts, nested, _each("negative_prompt", negatives, batch), seeds


def prompt_lists(prompts: Any, negative_prompts: Any) -> tuple[list[str], list[str]]:
    """The prompts and negative prompts of a batch, one of each a request.

    Raises:
      UserError: there are none, they are no lists, or of different lengths.
    """
    if not is_list(prompts):
        raise UserError(f"prompts must be a list, also of one, not {_kind(prompts)}")
    if not len(prompts):
        raise UserError("there is no prompt")
    negatives = _each("negative_prompts", negative_prompts, len(prompts))
    return texts_of("prompts", prompts), texts_of("negative_prompts", negatives)


def nested_subjects(subjects: Any, batch: int, single: bool) -> list[list[Subject]]:
    """The subjects of every request as lists; they may be absent for all or for some."""
    if subjects is None:
        return [[] for _ in range(batch)]
    if isinstance(subjects, Subject):
        raise UserError("subjects must be a list, also of one: subjects=[rc.Subject(image, words)]")
    nested = [subjects] if single else _each("subjects", subjects, batch)
    nested = [[] if own is None else own for own in nested]
    for own in nested:
        if not is_list(own):
            wanted = "a list" if single else "a list of lists"
            raise UserError(
                f"subjects must be {wanted} of rc.Subject(image, words), not {_kind(own, not single)}"
            )
        for subject in own:
            if not isinstance(subject, Subject):
                raise UserError(f"a subject must be rc.Subject(image, words), not {_kind(subject)}")
    return [list(own) for own in nested]


def _kind(value: Any, within: bool = False) -> str:
    return ("a list with " if within else "") + type(value).__name__


def _each(name: str, values: Any, count: int) -> list[Any]:
    if not is_list(values) or len(values) != count:
        raise UserError(f"{name} must be a list of {count}, one for each prompt")
    return list(values)
