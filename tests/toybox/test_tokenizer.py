"""The toybox's tokenizer: one token per word, tokens for any text, and equal results of all loaders."""

import json
import os
import re
import subprocess
import sys

import pytest
from transformers import CLIPTokenizer, CLIPTokenizerFast

from realcustom_jax.common.errors import UserError
from realcustom_jax.inputs.tokenize import load_tokenizer, tokenize
from realcustom_jax.toybox.tokenizer import train_tokenizer

# "art" inside "cart", "a" inside everything: the merges of one word must not break another.
CAPTIONS = [
    "a cat on the beach",
    "A robot and a mushroom in the forest",
    "an alarm clock under the night sky",
    "a cart of art, and the cat's car",
]
UNUSUAL = "A Zebra's 12 cats!! ünï 🙂 \t don't"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(CAPTIONS, path)
    return path


def test_each_caption_word_is_one_token(folder):
    tokenizer = load_tokenizer(folder)
    for word in re.findall(r"\w+", " ".join(CAPTIONS).lower().replace("'s", "")):
        assert tokenizer.tokenize(word) == [word + "</w>"]
        assert tokenizer.tokenize(word.upper()) == [word + "</w>"]


def test_any_text_round_trips(folder):
    tokenizer = load_tokenizer(folder)
    ids = tokenizer(UNUSUAL, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids).replace(" ", "") == "".join(UNUSUAL.lower().split())


def test_every_character_has_tokens(folder):
    tokenizer = load_tokenizer(folder)
    everything = " ".join(chr(code) for code in range(33, 0x2000) if chr(code).isprintable())
    assert (
        tokenizer.unk_token_id
        not in tokenizer(everything, add_special_tokens=False, verbose=False)["input_ids"]
    )


def test_slow_fast_and_auto_tokenizers_agree(folder):
    # transformers 4 has two implementations, 5 rebuilds one from vocab.json and merges.txt: all must agree.
    texts = [*CAPTIONS, UNUSUAL, "", "  two   spaces "]
    auto = load_tokenizer(folder)(texts)["input_ids"]
    files = {"vocab_file": str(folder / "vocab.json"), "merges_file": str(folder / "merges.txt")}
    assert CLIPTokenizer.from_pretrained(folder)(texts)["input_ids"] == auto
    assert CLIPTokenizerFast.from_pretrained(folder)(texts)["input_ids"] == auto
    if CLIPTokenizer is not CLIPTokenizerFast:  # from transformers 5 on they are one, with other arguments
        assert CLIPTokenizer(**files)(texts)["input_ids"] == auto


def test_files_and_special_tokens_match_clip(folder):
    names = {"vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"}
    assert {path.name for path in folder.iterdir()} == names
    tokenizer = load_tokenizer(folder)
    vocabulary = json.loads((folder / "vocab.json").read_text())
    assert sorted(vocabulary.values()) == list(range(len(vocabulary))) and len(tokenizer) == len(vocabulary)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|startoftext|>", "<|endoftext|>")
    # CLIP's pooling looks for the highest id, so the end token must have it.
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == len(vocabulary) - 1
    assert tokenizer.model_max_length == 77


def test_tokenizer_training_is_reproducible(tmp_path):
    # In processes of their own: the trainer's hash order differs between processes.
    code = (
        "import sys; from realcustom_jax.toybox.tokenizer import train_tokenizer; "
        f"[train_tokenizer({CAPTIONS!r}, sys.argv[1] + str(i)) for i in range(4)]"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=True, env={**os.environ})
    contents = {(tmp_path / f"a{i}" / "tokenizer.json").read_bytes() for i in range(4)}
    train_tokenizer([*reversed(CAPTIONS), CAPTIONS[0]], tmp_path / "b")
    assert contents == {(tmp_path / "b" / "tokenizer.json").read_bytes()}


def test_tokenize_pads_and_truncates(folder):
    tokenizer = load_tokenizer(folder)
    ids = tokenize(tokenizer, ["a cat", "cat " * 100])
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    a, cat = tokenizer.convert_tokens_to_ids(["a</w>", "cat</w>"])
    assert ids.shape == (2, 77) and ids.dtype == "int32"
    assert ids[0].tolist() == [begin, a, cat] + [end] * 74
    assert ids[1].tolist() == [begin] + [cat] * 75 + [end]
    assert tokenize(tokenizer, "a cat").tolist() == ids[:1].tolist()
    assert tokenize(tokenizer, []).shape == (0, 77)


def test_max_length_is_configurable(tmp_path):
    train_tokenizer(CAPTIONS, tmp_path, max_length=16)
    assert tokenize(load_tokenizer(tmp_path), "a cat").shape == (1, 16)


def test_missing_or_empty_folder_raises(tmp_path):
    with pytest.raises(UserError, match=r"'.*nowhere' does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
