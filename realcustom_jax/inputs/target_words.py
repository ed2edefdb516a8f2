"""Finds the tokens of the target words in a prompt."""

import re
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from transformers import PreTrainedTokenizerBase

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.rules import quoted
from realcustom_jax.inputs.plurals import noun_forms


def target_token_mask(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    words: str | Sequence[str] | None,
    *,
    plurals: bool = False,
    match_case: bool = False,
) -> np.ndarray:
    """Mark the tokens of all occurrences of the target words in the prompt.

    Only whole words match, with any whitespace between them: "dog" is not in "hotdog".

    Args:
      tokenizer: a fast tokenizer, as `load_tokenizer` returns it.
      prompt: the prompt.
      words: a word or phrase of the prompt, such as "dog" or "alarm clock", or several. Each must be in the
        prompt. "dog#2" is only the second occurrence.
      plurals: whether "dog" also matches "dogs", and "dogs" matches "dog"; for a phrase, its last word.
      match_case: whether "Dog" and "dog" are different words.

    Returns:
      float32 (L,), 1 at the words' tokens, 0 elsewhere. L is `tokenizer.model_max_length`; the begin token
      is index 0.

    Raises:
      UserError: if `words` is not text, is empty, is not in the prompt, or is cut off by the tokenizer's
        limit, even partly.
    """
    # By character offsets instead of token ids: the tokens of a word depend on its neighbours.
    length = tokenizer.model_max_length
    encoded: Any = tokenizer(prompt, return_offsets_mapping=True, truncation=False, verbose=False)
    offsets = encoded["offset_mapping"]
    mask = np.zeros(length, np.float32)
    for phrase in phrases_of(prompt, words):
        for start, stop in find_phrase(prompt, phrase, plurals, match_case):
            # Tokens that overlap the span. Special tokens have the empty span (0, 0).
            hits = [i for i, (a, b) in enumerate(offsets) if a < b and a < stop and b > start]
            # When a prompt is cut, the last place holds the end token, so a word must end before it.
            if not hits or hits[-1] >= length - 1:
                raise UserError(
                    f"the target words {quoted(phrase)} are cut off: the tokenizer's limit is {length} "
                    f"tokens and the prompt has {len(offsets)}; shorten the prompt or move the words forward"
                )
            mask[hits] = 1
    return mask


def words_mask(
    tokenizers: Sequence[PreTrainedTokenizerBase],
    prompt: str,
    words: str | Sequence[str] | None,
    *,
    plurals: bool = False,
    match_case: bool = False,
) -> np.ndarray:
    """`target_token_mask` for a model with several tokenizers (SDXL): the union of their masks.

    Raises:
      UserError: as `target_token_mask`; also if the tokenizers have different limits.
    """
    # SDXL concatenates the states of both text encoders by position, so one mask is for both.
    limits = [tokenizer.model_max_length for tokenizer in tokenizers]
    if len(set(limits)) != 1:
        raise UserError(f"the tokenizers of a model must have the same token limit, not {limits}")
    masks = [
        target_token_mask(tokenizer, prompt, words, plurals=plurals, match_case=match_case)
        for tokenizer in tokenizers
    ]
    return np.max(masks, axis=0)


def phrases_of(prompt: str, words: str | Sequence[str] | None) -> tuple[str, ...]:
    """The target words as a tuple of phrases.

    Raises:
      UserError: if they are neither a string nor a list of strings, or are empty.
    """
    phrases = (words,) if isinstance(words, str) else words
    if not isinstance(phrases, Sequence) or isinstance(phrases, bytes):
        raise UserError(_not_text(prompt, type(words).__name__))
    for phrase in phrases:
        if not isinstance(phrase, str):
            raise UserError(_not_text(prompt, f"a list with {type(phrase).__name__}"))
    if not phrases or not all(phrase.split() for phrase in phrases):
        raise UserError(f"the target words of the prompt {quoted(prompt)} are empty")
    return tuple(phrases)


def _not_text(prompt: str, kind: str) -> str:
    return (
        f"the target words of the prompt {quoted(prompt)} must be a string or a list of strings, not {kind}"
    )


def without_number(phrase: str) -> str:
    """The phrase without a number: "dog" for "dog#2"."""
    return _NUMBERED.sub(r"\1", phrase)


_NUMBERED = re.compile(r"(.*\S)#(\d{1,9})\s*", re.DOTALL)


def find_phrase(
    prompt: str, phrase: str, plurals: bool = False, match_case: bool = False
) -> list[tuple[int, int]]:
    """Character spans (start, stop) of a phrase in the prompt: of all occurrences, or of one for "dog#2".

    Raises:
      UserError: if it is not in the prompt, or has fewer occurrences than the number.
    """
    numbered = _NUMBERED.fullmatch(phrase)
    # First as literal text: the prompt itself may contain "#2".
    spans = _occurrences(prompt, phrase, plurals, match_case)
    if spans or not numbered:
        return spans or _not_in(prompt, phrase)
    words, number = numbered[1], int(numbered[2])
    spans = _occurrences(prompt, words, plurals, match_case) or _not_in(prompt, words)
    if not 1 <= number <= len(spans):
        raise UserError(
            f"there is no {quoted(phrase)}: the prompt has {quoted(words)} {len(spans)} times, from #1"
        )
    return spans[number - 1 : number]


def _occurrences(prompt: str, phrase: str, plurals: bool, match_case: bool) -> list[tuple[int, int]]:
    """Character spans of all occurrences of a phrase without a number."""
    *first, last = phrase.split()
    forms = sorted(noun_forms(last)) if plurals else [last]
    parts = [*map(re.escape, first), f"(?:{'|'.join(map(re.escape, forms))})"]
    # Not \b: it needs a letter at the border, and fails for words such as "c++".
    pattern = r"(?<!\w)" + r"\s+".join(parts) + r"(?!\w)"
    return [m.span() for m in re.finditer(pattern, prompt, 0 if match_case else re.IGNORECASE)]


def _not_in(prompt: str, phrase: str) -> NoReturn:
    known = list(dict.fromkeys(re.findall(r"\w+(?:['’-]\w+)*", prompt)))
    some = [word if len(word) <= 40 else word[:39] + "…" for word in known[:30]]
    words = ", ".join(some + ["…"] * (len(known) > len(some))) or "none"
    raise UserError(f"the target words {quoted(phrase)} are not in the prompt; its words are: {words}")
