"""Characters from a description alone: candidates are generated, and one is chosen."""

from collections.abc import Sequence
from typing import Any

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.rules import shown
from realcustom_jax.generate import sample
from realcustom_jax.inputs.names import indefinite
from realcustom_jax.inputs.target_words import find_phrase
from realcustom_jax.inputs.tokenize import KNOWN_WORDS
from realcustom_jax.outputs.samples import Samples
from realcustom_jax.pipeline import Pipeline


def candidates(
    pipe: Pipeline, word: str, description: str = "", seeds: Sequence[int] = (0, 1, 2, 3), **options: Any
) -> Samples:
    """Generate images of a character that does not exist yet: close up, on a plain background.

    Choose one, `rc.Character("Mika", samples.pil()[2], word, description)`.

    Args:
      pipe: the model.
      word: real word of the character, "cat".
      description: subject and key appearance, "a round orange cat with a green scarf".
      seeds: one image per seed.
      **options: as in `sample`, also progress, preview, every and fast_preview.

    Raises:
      UserError: as `sample`, and without a word.
    """
    return sample(pipe, candidate_prompt(pipe, word, description), seed=list(seeds), **options)


def candidate_prompt(pipe: Pipeline, word: str, description: str = "") -> str:
    """The prompt of `candidates`."""
    for name, text in (("word", word), ("description", description)):
        if not isinstance(text, str):
            raise UserError(f"a character's {name} must be a text, not {shown(text)}")
    word, description = " ".join(word.split()), " ".join(description.split()).rstrip(".")
    if not word:
        raise UserError("a character needs a word, such as cat")
    subject = f"{indefinite(word)}{word}"
    if description:
        try:
            find_phrase(description, word)
            subject = description
        except UserError:  # "round and orange"
            subject = f"{subject}, {description},"
    # A model with a small vocabulary, such as the toybox, has not learned what a close-up is.
    if pipe.tokenizers[0].init_kwargs.get(KNOWN_WORDS):
        return f"{subject} on a plain background"
    return f"a close-up of {subject} centred on a plain background"
