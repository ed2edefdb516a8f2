"""The package's uses of transformers, with whichever version is imported.

    python tests/transformers_work.py OUT [TOKENIZER]

writes `OUT/results.npz` and saves the toybox's tokenizer to `OUT/tokenizer`; TOKENIZER is another version's.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import transformers

import realcustom_jax as rc
from realcustom_jax.inputs.target_words import target_token_mask
from realcustom_jax.inputs.tokenize import load_tokenizer, save_tokenizer, tokenize
from realcustom_jax.toybox.tokenizer import train_tokenizer
from realcustom_jax.weights.parts import TOYBOX

PROMPTS = [
    "a cat on the beach",
    "Ünknown  words: 12 don't c++,\tﬁ① <|endoftext|> 😀",
    "",
    "cat " * 100,
]
WORDS = [
    ("a cat on the beach", "cat"),
    ("two Ünknown Cats, a  hot  dog", "hot dog"),
    ("c++ 😀 robot's", "robot"),
]


def work(out: Path, other: Path | None = None) -> dict[str, np.ndarray]:
    pipe = rc.load("toybox")
    save_tokenizer(pipe.tokenizers[0], out / "tokenizer")
    # The form of SD1.5's published folder: without tokenizer.json.
    shutil.copytree(TOYBOX / "tokenizer", out / "old", ignore=lambda *_: ["tokenizer.json"])
    train_tokenizer(["a small robot", "two cats"], out / "trained")
    results = {
        "version": np.array(transformers.__version__),
        "ids": tokenize(pipe.tokenizers[0], PROMPTS),
        "ids_saved": tokenize(load_tokenizer(out / "tokenizer"), PROMPTS),
        "ids_old": tokenize(load_tokenizer(out / "old"), PROMPTS),
        "ids_trained": tokenize(load_tokenizer(out / "trained"), PROMPTS),
        "words": np.stack([target_token_mask(pipe.tokenizers[0], *pair) for pair in WORDS]),
    }
    if other:
        results["ids_other"] = tokenize(load_tokenizer(other), PROMPTS)
    reference = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    subject = rc.Subject(image=reference, words="cat")
    results["images"] = rc.sample(pipe, PROMPTS[0], subjects=[subject], seed=3, steps=2).images
    return results


if __name__ == "__main__":
    out = Path(sys.argv[1])
    np.savez(out / "results.npz", **work(out, *map(Path, sys.argv[2:])))
