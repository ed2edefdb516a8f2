"""Finds the words of subjects whose words are "auto", and writes those that the prompt lacks into it."""

import dataclasses
from collections.abc import Sequence

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.rules import quoted
from realcustom_jax.inputs.added_nouns import with_nouns
from realcustom_jax.inputs.matching import Matcher, Scores, candidates, choose_words
from realcustom_jax.inputs.subjects import AUTO, Subject
from realcustom_jax.inputs.target_words import phrases_of, without_number
from realcustom_jax.inputs.transforms import load_image


def find_words(prompt: str, subjects: Sequence[Subject], matcher: Matcher) -> tuple[str, tuple[Subject, ...]]:
    """Replace the words "auto" of one request's subjects by what their images show.

    Where the prompt has a word for an image, it is chosen. Where it has none, a noun of the matcher's
    vocabulary is written into the prompt.

    Args:
      prompt: prompt of the request.
      subjects: its subjects.
      matcher: compares images with words.

    Returns:
      The prompt, with the nouns that were added, and the subjects; those with other words than "auto" are
      unchanged.

    Raises:
      UserError: if no word fits an image well.
    """
    auto = [i for i, subject in enumerate(subjects) if subject.words == AUTO]
    if not auto:
        return prompt, tuple(subjects)
    # The first photo represents a subject with several.
    images = [load_image(subjects[i].photos[0]) for i in auto]
    phrases, nouns = candidates(prompt), matcher.vocabulary()
    given = [phrases_of(prompt, subject.words) for subject in subjects if subject.words != AUTO]
    used = [without_number(phrase) for own in given for phrase in own]
    logits = matcher.logits(images, [*phrases, *nouns])  # (images, phrases + nouns)
    scores = Scores(nouns, logits[:, len(phrases) :], matcher.none(images))
    choices = choose_words(phrases, logits[:, : len(phrases)], scores, matcher.rules, used)
    added: list[str] = []
    found = dict(zip(auto, choices, strict=True))
    for row, i in enumerate(auto):
        if found[i] is None:
            noun = scores.sure_noun(row, matcher.rules.sure)
            if noun is None or noun in [*added, *used, *choices]:
                raise UserError(_unclear(prompt, i, len(subjects), noun))
            found[i] = noun
            added.append(noun)
    # `candidates` are in lower case, so the chosen words must match any case.
    own = (
        dataclasses.replace(subject, words=found[i], match_case=False) if i in found else subject
        for i, subject in enumerate(subjects)
    )
    return with_nouns(prompt, added) if added else prompt, tuple(own)


def _unclear(prompt: str, index: int, count: int, taken: str | None) -> str:
    """The error for a subject without a word. It suggests none: a wrong one would give a wrong image."""
    which = "the reference image" if count == 1 else f"the reference image of subject {index + 1}"
    if taken is not None:
        return f"{which} looks like '{taken}', as another subject does: give the words of each subject"
    return (
        f"it is not clear what {which} shows, or which word of the prompt {quoted(prompt)} names it: write "
        "its word into the prompt, and give it as the subject's words"
    )
