"""Tokenizers: loading, saving, and prompts to token ids."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from realcustom_jax.common.errors import UserError

# Our key in `tokenizer_config.json` of a model with a small vocabulary: {name of a list: words or phrases of
# the training captions}.
KNOWN_WORDS = "known_words"


def load_tokenizer(folder: str | os.PathLike, padding: str | None = None) -> PreTrainedTokenizerBase:
    """Load a CLIP tokenizer as a fast tokenizer, which knows character offsets.

    Args:
      folder: folder of the tokenizer (`tokenizer/` of a model folder).
      padding: token for padding; None for the tokenizer's own.

    Raises:
      UserError: if the folder is missing or holds no tokenizer, or the tokenizer does not have `padding`.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"the tokenizer folder '{folder}' does not exist")
    try:
        tokenizer = AutoTokenizer.from_pretrained(os.fspath(path), local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise bare Exception for some broken files
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"'{folder}' holds no tokenizer that can be loaded ({reason})") from error
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer in '{folder}' has no fast version, which the target words need")
    # SDXL's second text encoder was trained with "!" as padding, whatever its tokenizer's file says.
    if padding is not None:
        if padding not in tokenizer.get_vocab():
            raise UserError(f"the tokenizer in '{folder}' has no token {padding!r} to pad with")
        tokenizer.pad_token = padding
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike) -> None:
    """Write a tokenizer folder for `load_tokenizer`, and for `CLIPTokenizer` of transformers 4 and 5.

    Raises:
      UserError: it cannot be written.
    """
    try:
        tokenizer.save_pretrained(folder)
        # vocab.json and merges.txt: transformers 5 leaves them out, and 4's CLIPTokenizer, which diffusers
        # loads, reads nothing else.
        backend: Any = tokenizer.backend_tokenizer
        backend.model.save(os.fspath(folder))
    except Exception as error:  # tokenizers raises a bare Exception for a full disk
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the tokenizer cannot be written to '{folder}': {reason}") from None


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: str | Sequence[str]) -> np.ndarray:
    """Token ids int32 (B, L): begin token, tokens of the prompt, end token, padding.

    L is `tokenizer.model_max_length`. A longer prompt is truncated, but keeps its end token.
    """
    # CLIP was trained so, and pools at the end token.
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    length = tokenizer.model_max_length
    if not prompts:
        return np.zeros((0, length), np.int32)
    encoded = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, verbose=False)
    return np.asarray(encoded["input_ids"], np.int32)
