"""Prompts: type checks, @FILE, and warnings about words that are cut off or unknown to the model."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from realcustom_jax.common.errors import UserError, warn
from realcustom_jax.common.files import exists
from realcustom_jax.common.rules import is_list
from realcustom_jax.inputs.tokenize import KNOWN_WORDS


def texts_of(name: str, value: Any) -> list[str]:
    """A text or a list of texts, as a list.

    Args:
      name: name of the argument, for errors.
      value: the argument.

    Raises:
      UserError: for any other type, and for text that is not valid Unicode.
    """
    texts = list(value) if is_list(value) else [value]
    for text in texts:
        if not isinstance(text, str):
            kind = ("a list with " if is_list(value) else "") + type(text).__name__
            raise UserError(f"{name} must be a string or a list of strings, not {kind}")
        # A Python string may hold a lone surrogate, which tokenizers reject with an unclear error.
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(
                f"{name} {text[:40]!a} is not valid Unicode: lone surrogate at position {error.start}"
            ) from None
    return texts


def text_or_file(flag: str, text: str) -> str:
    """The text of a flag, or the content of the file for "@FILE".

    Raises:
      UserError: if the file does not exist or is not a text file.
    """
    if not text.startswith("@"):
        return text
    path = Path(text[1:])
    if not exists(path) or not path.is_file():
        raise UserError(f"{flag} {text!r}: there is no file {str(path)!r}")
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{flag} {text!r}: {str(path)!r} cannot be read as text ({error})") from None


def warn_of_lost_parts(tokenizers: Sequence[PreTrainedTokenizerBase], prompts: Sequence[str]) -> None:
    """Warn about each prompt whose end the tokenizers cut off."""
    for prompt in dict.fromkeys(prompts):  # each prompt once
        lost = max((lost_part(tokenizer, prompt) for tokenizer in tokenizers), key=len)
        if lost:
            limit = tokenizers[0].model_max_length
            warn(f"the model reads {limit} tokens of a prompt, so this part is lost: '{lost}'")


def warn_of_unknown_words(tokenizers: Sequence[PreTrainedTokenizerBase], prompts: Sequence[str]) -> None:
    """Warn about words that a model with a small vocabulary was not trained on.

    Only for tokenizers whose config lists the words of the training captions (`known_words`).
    """
    # Such a tokenizer has each known word as one token, and spells the others.
    tokenizer = tokenizers[0]
    known = tokenizer.init_kwargs.get(KNOWN_WORDS)
    if not known:
        return
    words = (word for prompt in prompts for word in re.findall(r"[^\W\d_]+", prompt.lower()))
    unknown = [word for word in dict.fromkeys(words) if len(tokenizer.tokenize(word)) > 1]
    if unknown:
        lists = "; ".join(f"{name}: {', '.join(group)}" for name, group in known.items())
        names = ", ".join(f"'{word}'" for word in unknown[:10])
        warn(f"the model does not know {names}, so the image will show something else; it knows {lists}")


def lost_part(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """The end of a prompt beyond the tokenizer's limit; "" if the whole prompt fits."""
    limit = tokenizer.model_max_length
    encoded: Any = tokenizer(prompt, return_offsets_mapping=True, truncation=False, verbose=False)
    offsets = encoded["offset_mapping"]
    # The last kept place is the end token's, so the text from that token on is lost.
    return prompt[offsets[limit - 1][0] :] if len(offsets) > limit else ""
