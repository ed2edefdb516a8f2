"""Where the target words are among the prompt's tokens."""

import re
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
from transformers import PreTrainedTokenizerBase

from realcustom_jax.common.errors import UserError
from realcustom_jax.inputs.plurals import noun_forms


def target_token_mask(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    words: str | Sequence[str],
    *,
    plurals: bool = False,
    match_case: bool = False,
) -> np.ndarray:
    """Marks the tokens of every occurrence of the target words in the prompt.

    Whole words are matched, whatever the spaces between them: "dog" is not in "hotdog".

    Args:
      tokenizer: a fast one, as `load_tokenizer` returns.
      prompt: the text.
      words: a word or a phrase of it, "dog" or "alarm clock", or several; each must be there. "dog#2" is the
        second occurrence alone.
      plurals: whether "dog" is found in "dogs" and "dogs" in "dog"; of a phrase the last word changes.
      match_case: whether "Dog" is another word than "dog".

    Returns:
      float32 (L,), 1 at the words' tokens, 0 elsewhere; L = `tokenizer.model_max_length`; the begin token
        is 0.

    Raises:
      UserError: `words` is no text, is empty, is not in the prompt, or the tokenizer's limit cuts (part of)
        it off.
    """
    length = tokenizer.model_max_length
    encoded = tokenizer(prompt, return_offsets_mapping=True, truncation=False, verbose=False)
    offsets = encoded["offset_mapping"]
    mask = np.zeros(length, np.float32)
    for phrase in phrases_of(prompt, words):
        for start, stop in find_phrase(prompt, phrase, plurals, match_case):
            hits = [i for i, (a, b) in enumerate(offsets) if a < b and a < stop and b > start]
            # The last place is the end token's once a prompt is cut, so a word must end before it.
            if not hits or hits[-1] >= length - 1:
                raise UserError(
                    f"the target words '{phrase}' are cut off: the tokenizer's limit is {length} tokens "
                    f"and the prompt has {len(offsets)}; shorten the prompt or move the words forward"
                )
            mask[hits] = 1
    return mask


def words_mask(
    tokenizers: Sequence[PreTrainedTokenizerBase],
    prompt: str,
    words: str | Sequence[str],
    *,
    plurals: bool = False,
    match_case: bool = False,
) -> np.ndarray:
    """`target_token_mask` of a model with several tokenizers (SDXL): what any of them marks.

    The text tokens of such a model share their positions, so all tokenizers must have one limit L.

    Raises:
      UserError: as `target_token_mask`, for the first tokenizer that finds a fault; also for limits that
        differ.
    """
    limits = [tokenizer.model_max_length for tokenizer in tokenizers]
    if len(set(limits)) != 1:
        raise UserError(f"the tokenizers of one model must have one limit of tokens, not {limits}")
    masks = [
        target_token_mask(tokenizer, prompt, words, plurals=plurals, match_case=match_case)
        for tokenizer in tokenizers
    ]
    return np.max(masks, axis=0)


def phrases_of(prompt: str, words: str | Sequence[str]) -> tuple[str, ...]:
    """The target words as a tuple of phrases.

    Raises:
      UserError: when they are neither a string nor a list of strings, or are empty; it names the prompt.
    """
    phrases = (words,) if isinstance(words, str) else words
    if not isinstance(phrases, Sequence) or isinstance(phrases, bytes):
        raise UserError(_not_text(prompt, type(words).__name__))
    for phrase in phrases:
        if not isinstance(phrase, str):
            raise UserError(_not_text(prompt, f"a list with {type(phrase).__name__}"))
    if not phrases or not all(phrase.split() for phrase in phrases):
        raise UserError(f"the target words of the prompt '{prompt}' are empty")
    return tuple(phrases)


def _not_text(prompt: str, found: str) -> str:
    return f"the target words of the prompt '{prompt}' must be a string or a list of strings, not {found}"


def without_number(phrase: str) -> str:
    """The words of "dog#2"."""
    return _NUMBERED.sub(r"\1", phrase)


_NUMBERED = re.compile(r"(.*\S)#(\d+)\s*", re.DOTALL)


def find_phrase(
    prompt: str, phrase: str, plurals: bool = False, match_case: bool = False
) -> list[tuple[int, int]]:
    """Character spans of a phrase in the prompt: of every occurrence, or of one, "dog#2".

    Raises:
      UserError: when it is not in the prompt, or not so often.
    """
    numbered = _NUMBERED.fullmatch(phrase)
    # "#2" may be part of the prompt's own text.
    spans = _occurrences(prompt, phrase, plurals, match_case)
    if spans or not numbered:
        return spans or _not_in(prompt, phrase)
    words, number = numbered[1], int(numbered[2])
    spans = _occurrences(prompt, words, plurals, match_case) or _not_in(prompt, words)
    if not 1 <= number <= len(spans):
        raise UserError(f"there is no '{phrase}': the prompt has '{words}' {len(spans)} times, from #1")
    return spans[number - 1 : number]


def _occurrences(prompt: str, phrase: str, plurals: bool, match_case: bool) -> list[tuple[int, int]]:
    *first, last = phrase.split()
    forms = sorted(noun_forms(last)) if plurals else [last]
    parts = [*map(re.escape, first), f"(?:{'|'.join(map(re.escape, forms))})"]
    # Not \b, which fails for words that begin or end in a symbol, as in "c++".
    pattern = r"(?<!\w)" + r"\s+".join(parts) + r"(?!\w)"
    return [m.span() for m in re.finditer(pattern, prompt, 0 if match_case else re.IGNORECASE)]


def _not_in(prompt: str, phrase: str) -> NoReturn:
    known = ", ".join(dict.fromkeys(re.findall(r"\w+(?:['’-]\w+)*", prompt))) or "none"
    raise UserError(f"the target words '{phrase}' are not in the prompt; its words are: {known}")
