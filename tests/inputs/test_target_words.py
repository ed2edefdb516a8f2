"""Target words → token positions, and the errors for words that cannot be found."""

import numpy as np
import pytest

from realcustom_jax.common.errors import UserError
from realcustom_jax.inputs.target_words import target_token_mask, words_mask
from realcustom_jax.inputs.tokenize import load_tokenizer
from realcustom_jax.toybox.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    # "zebra" and "hotdog" are left out, so that they are several tokens.
    train_tokenizer(["a dog and an alarm clock on the beach", "the"], folder)
    return load_tokenizer(folder)


def positions(tokenizer, prompt: str, words: str) -> list[int]:
    mask = target_token_mask(tokenizer, prompt, words)
    assert mask.shape == (77,) and mask.dtype == np.float32
    assert set(mask.tolist()) <= {0.0, 1.0}
    return np.flatnonzero(mask).tolist()


def test_word_position_counts_begin_token(tokenizer):
    assert positions(tokenizer, "a dog on the beach", "dog") == [2]
    assert positions(tokenizer, "dog", "dog") == [1]


def test_every_occurrence_is_marked(tokenizer):
    assert positions(tokenizer, "a dog and a dog, dog", "dog") == [2, 5, 7]


def test_phrase_must_be_whole_and_in_order(tokenizer):
    assert positions(tokenizer, "an alarm and a clock and an alarm clock", "alarm clock") == [8, 9]


def test_case_and_spacing_are_ignored(tokenizer):
    assert positions(tokenizer, "A DOG and an Alarm   Clock", "  dog ") == [2]
    assert positions(tokenizer, "a dog and an Alarm \n Clock", "aLARM cLOCK") == [5, 6]


def test_word_of_several_tokens_is_marked_whole(tokenizer):
    pieces = len(tokenizer.tokenize("zebra"))
    assert pieces > 1
    assert positions(tokenizer, "a zebra on the beach", "zebra") == list(range(2, 2 + pieces))


def test_positions_are_correct_after_multibyte_characters(tokenizer):
    before = len(tokenizer.tokenize("ünï 🙂"))
    assert positions(tokenizer, "ünï 🙂 dog", "dog") == [before + 1]


def test_only_whole_words_match(tokenizer):
    hotdog = len(tokenizer.tokenize("hotdog"))
    assert positions(tokenizer, "a hotdog and a dog's beach", "dog") == [4 + hotdog]
    with pytest.raises(UserError, match="'dog' are not in the prompt"):
        target_token_mask(tokenizer, "a hotdog, two dogs", "dog")


def test_symbols_match_literally(tokenizer):
    assert positions(tokenizer, "a dog + dog", "+") == [3]
    with pytest.raises(UserError):
        target_token_mask(tokenizer, "a dog", "d.g")


def test_absent_words_error_lists_prompt_words(tokenizer):
    with pytest.raises(UserError) as error:
        target_token_mask(tokenizer, "a dog on a beach", "cat")
    assert (
        str(error.value) == "the target words 'cat' are not in the prompt; its words are: a, dog, on, beach"
    )


def test_errors_of_long_texts_stay_short(tokenizer):
    """A number that Python does not read is no number."""
    prompt = "a dog\n" + " ".join(f"w{k}" * 30 for k in range(300))
    for words in ("cat" * 1000, "dog#" + "9" * 5000, "cat\nhat", "dog#2"):
        with pytest.raises(UserError) as error:
            target_token_mask(tokenizer, prompt, words)
        assert "\n" not in str(error.value) and len(str(error.value)) < 2000


def test_empty_words_raise(tokenizer):
    for words in ("", "  "):
        with pytest.raises(UserError, match="the target words of the prompt 'a dog' are empty"):
            target_token_mask(tokenizer, "a dog", words)


def test_word_at_token_limit_fits_and_beyond_raises(tokenizer):
    # 77 tokens: begin, 75 of the prompt, end.
    assert positions(tokenizer, "a " * 74 + "dog", "dog") == [75]
    with pytest.raises(UserError, match=r"cut off.* limit is 77 tokens and the prompt has 78"):
        target_token_mask(tokenizer, "a " * 75 + "dog", "dog")


def test_truncated_phrase_or_later_occurrence_raises(tokenizer):
    with pytest.raises(UserError, match="cut off"):
        target_token_mask(tokenizer, "a " * 74 + "alarm clock", "alarm clock")
    with pytest.raises(UserError, match="cut off"):
        target_token_mask(tokenizer, "dog " + "a " * 80 + "dog", "dog")


def test_several_phrases_form_one_mask(tokenizer):
    """The union of all phrases, each of which must be there."""
    prompt = "a dog and an alarm clock on the beach"
    mask = target_token_mask(tokenizer, prompt, ["alarm clock", "dog"])
    assert np.flatnonzero(mask).tolist() == [2, 5, 6]
    with pytest.raises(UserError, match="'cat' are not in the prompt"):
        target_token_mask(tokenizer, prompt, ["dog", "cat"])
    for words in ((), ["dog", " "]):
        with pytest.raises(UserError, match="are empty"):
            target_token_mask(tokenizer, prompt, words)
    for words, found in ((None, "NoneType"), (b"dog", "bytes"), (["dog", 3], "a list with int")):
        with pytest.raises(UserError, match=f"must be a string or a list of strings, not {found}"):
            target_token_mask(tokenizer, prompt, words)


def test_plurals_match_only_if_enabled(tokenizer):
    dogs = len(tokenizer.tokenize("dogs"))
    found = target_token_mask(tokenizer, "two dogs and a dog", "dog", plurals=True)
    start = 1 + len(tokenizer.tokenize("two"))
    assert np.flatnonzero(found).tolist() == [*range(start, start + dogs), start + dogs + 2]
    np.testing.assert_array_equal(
        found, target_token_mask(tokenizer, "two dogs and a dog", "dogs", plurals=True)
    )
    clocks = target_token_mask(tokenizer, "alarm clocks", "alarm clock", plurals=True)
    assert np.flatnonzero(clocks).tolist() == list(range(1, 2 + len(tokenizer.tokenize("clocks"))))
    with pytest.raises(UserError, match="'alarm clock' are not in the prompt"):
        target_token_mask(tokenizer, "alarms clock", "alarm clock", plurals=True)


def test_case_matters_only_with_match_case(tokenizer):
    mask = target_token_mask(tokenizer, "a Dog and a dog", "dog", match_case=True)
    assert np.flatnonzero(mask).tolist() == [5]
    with pytest.raises(UserError, match="'DOG' are not in the prompt"):
        target_token_mask(tokenizer, "a Dog and a dog", "DOG", match_case=True)
    assert target_token_mask(tokenizer, "Dogs", "Dog", match_case=True, plurals=True).any()


def test_masks_of_several_tokenizers_are_merged(tokenizer, tmp_path):
    """The union of their masks; exceeding the token limit of any tokenizer raises."""
    # This one has only single letters, so that positions differ.
    train_tokenizer(["q"], tmp_path)
    letters = load_tokenizer(tmp_path)
    masks = [target_token_mask(t, "a dog on the beach", "dog") for t in (tokenizer, letters)]
    assert [np.flatnonzero(m).tolist() for m in masks] == [[2], [2, 3, 4]]
    both = words_mask([tokenizer, letters], "a dog on the beach", "dog")
    np.testing.assert_array_equal(both, np.maximum(*masks))
    with pytest.raises(UserError, match="cut off"):
        words_mask([tokenizer, letters], "alarm " * 20 + "dog", "dog")
    assert target_token_mask(tokenizer, "alarm " * 20 + "dog", "dog").any()
    letters.model_max_length = 50
    with pytest.raises(UserError, match=r"the same token limit, not \[77, 50\]"):
        words_mask([tokenizer, letters], "a dog", "dog")
