"""The toybox's tokenizer: CLIP's algorithm and files, with a vocabulary of the toybox's own words."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from realcustom_jax.inputs.tokenize import KNOWN_WORDS

BEGIN, END, SUFFIX = "<|startoftext|>", "<|endoftext|>", "</w>"
# How CLIP cuts a text into words: English endings, letters, single digits, other symbols.
WORD = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


# More words than these are a language, and no list to show.
_FEW_WORDS = 500


def train_tokenizer(captions: Iterable[str], folder: str | os.PathLike, max_length: int = 77) -> None:
    """Writes a CLIP tokenizer folder in which every word of the captions is one token.

    Byte-level BPE, lower-cased; any other text falls back to smaller pieces, down to bytes. `CLIPTokenizer`,
    `CLIPTokenizerFast` and `AutoTokenizer` load it. The same captions give the same files. Where the words
    are few, the folder lists them, so that `sample` can warn of others.

    Args:
      captions: texts that use every word at least once.
      folder: where to write; made if missing.
      max_length: tokens of a prompt, with the begin and end tokens.
    """
    # Each caption once: the merges then depend on the set of captions and not on how often one is repeated.
    captions = sorted(set(captions))
    merges = _learn_merges(captions)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Every byte is a token, inside a word and at its end, so there is no text without a spelling.
    tokens = [
        *alphabet,
        *(letter + SUFFIX for letter in alphabet),
        *("".join(pair) for pair in merges),
        BEGIN,
        END,
    ]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    words = sorted({word for caption in captions for word in re.findall(r"[^\W\d_]+", caption.lower())})
    _save(vocabulary, merges, Path(folder), max_length, words if len(words) <= _FEW_WORDS else [])


def _learn_merges(captions: Iterable[str]) -> list[tuple[str, str]]:
    """Merges until nothing is left to merge: then each word of the captions is one token."""
    tokenizer = _pipeline(BPE(end_of_word_suffix=SUFFIX))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=10**6,  # no limit: the words run out first
        min_frequency=0,
        show_progress=False,
        # The trainer breaks ties by token number and numbers the last letters of words in random order, which
        # would give other merges each time. Special tokens are numbered first, in the order given.
        special_tokens=[letter + SUFFIX for letter in alphabet],
        initial_alphabet=alphabet,
        end_of_word_suffix=SUFFIX,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def _pipeline(model: BPE) -> Tokenizer:
    """A tokenizer around `model` that normalises and cuts a text as CLIP's does."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _save(
    vocabulary: dict[str, int],
    merges: list[tuple[str, str]],
    folder: Path,
    max_length: int,
    words: list[str],
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    specials = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}
    _write_json(folder / "vocab.json", vocabulary)
    _write_json(folder / "special_tokens_map.json", specials)
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": max_length,
        "do_lower_case": True,
        "errors": "replace",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        **({KNOWN_WORDS: {"words": words}} if words else {}),
    }
    _write_json(folder / "tokenizer_config.json", {**settings, **specials})
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]  # loaders skip the first line
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix=SUFFIX, unk_token=END)
    tokenizer = _pipeline(model)
    tokenizer.add_special_tokens([BEGIN, END])
    # By place: tokenizers 0.23 renamed the begin token's argument.
    end, begin = (END, vocabulary[END]), (BEGIN, vocabulary[BEGIN])
    tokenizer.post_processor = processors.RobertaProcessing(
        end, begin, trim_offsets=False, add_prefix_space=False
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
