"""Prompts to token ids."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from realcustom_jax.errors import UserError

# Key of `tokenizer_config.json`: {name of a list: the words or phrases that the model was taught}, of a model
# that was taught few.
KNOWN_WORDS = "known_words"


def load_tokenizer(folder: str | os.PathLike, padding: str | None = None) -> PreTrainedTokenizerBase:
    """Loads a CLIP tokenizer folder (`tokenizer/` of a model folder), the fast kind, which knows offsets.

    Args:
      folder: of the tokenizer.
      padding: the token that it pads with, if not its own.

    Raises:
      UserError: the folder is missing, or holds no tokenizer, or the tokenizer does not know `padding`.
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
    if padding is not None:
        if padding not in tokenizer.get_vocab():
            raise UserError(f"the tokenizer in '{folder}' has no token {padding!r} to pad with")
        tokenizer.pad_token = padding
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike) -> None:
    """Writes a tokenizer folder that `load_tokenizer` reads, and `CLIPTokenizer` of transformers 4 and 5.

    Raises:
      UserError: it cannot be written.
    """
    try:
        tokenizer.save_pretrained(folder)
        # vocab.json and merges.txt: transformers 5 leaves them out, and 4's CLIPTokenizer, which diffusers
        # loads, reads nothing else.
        tokenizer.backend_tokenizer.model.save(os.fspath(folder))
    except Exception as error:  # tokenizers raises a bare Exception for a full disk
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the tokenizer cannot be written to '{folder}': {reason}") from None


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: str | Sequence[str]) -> np.ndarray:
    """int32 (B, L) token ids: begin, the prompt's tokens, end, padding; L = `tokenizer.model_max_length`.

    A longer prompt loses its tail and keeps the end token, as CLIP was trained.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    length = tokenizer.model_max_length
    if not prompts:
        return np.zeros((0, length), np.int32)
    encoded = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, verbose=False)
    return np.asarray(encoded["input_ids"], np.int32)
