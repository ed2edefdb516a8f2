"""Where the target words are among the prompt's tokens."""

import re

import numpy as np
from transformers import PreTrainedTokenizerBase

from realcustom_jax.errors import UserError


def target_token_mask(tokenizer: PreTrainedTokenizerBase, prompt: str, words: str) -> np.ndarray:
    """Marks the tokens of every occurrence of the target words in the prompt.

    Whole words are matched, whatever their case and the spaces between them: "dog" is not in "hotdog".

    Args:
      tokenizer: a fast one, as `load_tokenizer` returns.
      prompt: the text.
      words: a word or a phrase of it, "dog" or "alarm clock".

    Returns:
      float32 (L,), 1 at the words' tokens, 0 elsewhere; L = `tokenizer.model_max_length`; the begin token
        is 0.

    Raises:
      UserError: `words` is no text, is empty, is not in the prompt, or the tokenizer's limit cuts (part of)
        it off.
    """
    if not isinstance(words, str):
        raise UserError(
            f"the target words of the prompt '{prompt}' must be a string, not {type(words).__name__}"
        )
    spans = _find(prompt, words)
    length = tokenizer.model_max_length
    encoded = tokenizer(prompt, return_offsets_mapping=True, truncation=False, verbose=False)
    offsets = encoded["offset_mapping"]
    mask = np.zeros(length, np.float32)
    for start, stop in spans:
        hits = [i for i, (a, b) in enumerate(offsets) if a < b and a < stop and b > start]
        # The last place is the end token's once a prompt is cut, so a word must end before it.
        if not hits or hits[-1] >= length - 1:
            raise UserError(
                f"the target words '{words}' are cut off: the tokenizer's limit is {length} tokens "
                f"and the prompt has {len(offsets)}; shorten the prompt or move the words forward"
            )
        mask[hits] = 1
    return mask


def _find(prompt: str, words: str) -> list[tuple[int, int]]:
    """Character spans of the words in the prompt."""
    parts = words.split()
    if not parts:
        raise UserError(f"the target words of the prompt '{prompt}' are empty")
    # Not \b, which fails for words that begin or end in a symbol, as in "c++".
    pattern = r"(?<!\w)" + r"\s+".join(map(re.escape, parts)) + r"(?!\w)"
    spans = [match.span() for match in re.finditer(pattern, prompt, re.IGNORECASE)]
    if not spans:
        known = ", ".join(dict.fromkeys(re.findall(r"\w+(?:['’-]\w+)*", prompt))) or "none"
        raise UserError(f"the target words '{words}' are not in the prompt; its words are: {known}")
    return spans
