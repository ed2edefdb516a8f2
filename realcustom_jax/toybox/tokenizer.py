"""The toybox's tokenizer: CLIP's algorithm and files, with the toybox's own vocabulary."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from realcustom_jax.common.files import write_json
from realcustom_jax.inputs.tokenize import KNOWN_WORDS

BEGIN, END, SUFFIX = "<|startoftext|>", "<|endoftext|>", "</w>"
# CLIP's regex that splits text into words: English endings, letters, single digits, other symbols.
WORD = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


# With more words than this, no list of known words is stored: it would be too long to show.
_FEW_WORDS = 500


def train_tokenizer(captions: Iterable[str], folder: str | os.PathLike, max_length: int = 77) -> None:
    """Write a CLIP tokenizer folder in which every word of the captions is one token.

    The tokenizer is a lower-cased byte-level BPE, so any other text falls back to smaller pieces, down to
    bytes. `CLIPTokenizer`, `CLIPTokenizerFast` and `AutoTokenizer` can load it. The same captions give the
    same files. If there are only few words, the folder lists them, so that `sample` can warn about others.

    Args:
      captions: texts that use every word at least once.
      folder: the folder; created if missing.
      max_length: number of tokens of a prompt, including the begin and end tokens.
    """
    # Without duplicates, so that the merges do not depend on how often a caption is repeated.
    captions = sorted(set(captions))
    merges = _learn_merges(captions)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Every byte is a token, both inside a word and at its end, so any text can be encoded.
    tokens = [
        *alphabet,
        *(letter + SUFFIX for letter in alphabet),
        *("".join(pair) for pair in merges),
        BEGIN,
        END,
    ]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    # Only letters: the list is for warnings about words, not about punctuation.
    words = sorted({word for caption in captions for word in re.findall(r"[^\W\d_]+", caption.lower())})
    _save(vocabulary, merges, Path(folder), max_length, words if len(words) <= _FEW_WORDS else [])


def _learn_merges(captions: Iterable[str]) -> list[tuple[str, str]]:
    """Learn BPE merges until nothing is left to merge, so that each word of the captions is one token."""
    tokenizer = _pipeline(BPE(end_of_word_suffix=SUFFIX))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=10**6,  # no limit in practice
        min_frequency=0,
        show_progress=False,
        # The trainer breaks ties by token number, and it numbers the last letters of words in random order,
        # so the merges would differ from run to run. Special tokens are numbered first, in the given order.
        special_tokens=[letter + SUFFIX for letter in alphabet],
        initial_alphabet=alphabet,
        end_of_word_suffix=SUFFIX,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def _pipeline(model: BPE) -> Tokenizer:
    """A tokenizer that normalises and splits text like CLIP's."""
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
    """Write the files of the slow and of the fast tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    # CLIP pads with its end token.
    specials = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}
    write_json(folder / "vocab.json", vocabulary)
    write_json(folder / "special_tokens_map.json", specials)
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": max_length,
        "do_lower_case": True,
        "errors": "replace",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        **({KNOWN_WORDS: {"words": words}} if words else {}),
    }
    write_json(folder / "tokenizer_config.json", {**settings, **specials})
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]  # loaders skip the first line
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix=SUFFIX, unk_token=END)
    tokenizer = _pipeline(model)
    tokenizer.add_special_tokens([BEGIN, END])
    # Positional arguments, because tokenizers 0.23 renamed the one of the begin token.
    end, begin = (END, vocabulary[END]), (BEGIN, vocabulary[BEGIN])
    tokenizer.post_processor = processors.RobertaProcessing(
        end, begin, trim_offsets=False, add_prefix_space=False
    )
    tokenizer.save(str(folder / "tokenizer.json"))
