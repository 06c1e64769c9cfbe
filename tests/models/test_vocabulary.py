"""Two tokenizers are told apart by their maps of token strings to ids, and one is found in the other."""

import numpy as np
import pytest

from jaxalign import models
from jaxalign.errors import ModelError
from jaxalign.models.vocabulary import check_same_vocabulary, vocabulary_map, vocabulary_size


def words(*tokens):
    """A tokenizer of whole words, made here; ids in the order given."""
    from tokenizers import Tokenizer
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(tokens)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(kinds.WordLevel(vocab=vocabulary, unk_token=tokens[0]))
    )


def test_the_same_map_passes_however_it_was_made(tiny_model_folder, byte_tokenizer):
    check_same_vocabulary(byte_tokenizer, models.load_tokenizer(tiny_model_folder))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            ("a", "b", "c"),
            ("a", "c", "b"),
            "3 and 3 tokens; .* id 1, 'b' for the doctor and 'c' for the patient",
        ),
        (("a", "b"), ("a", "b", "c"), "2 and 3 tokens; .* id 2, no token for the doctor and 'c' for the pat"),
        (("a", "b", "c"), ("a", "b"), "3 and 2 tokens; .* id 2, 'c' for the doctor and no token for the pat"),
        (("x", "b", "c"), ("a", "b", "d"), "id 0, 'x' for the doctor and 'a' for the patient"),
    ],
)
def test_difference_is_named_by_both_sizes_and_the_lowest_id(first, second, message):
    with pytest.raises(ModelError, match=message) as caught:
        check_same_vocabulary(words(*first), words(*second))
    assert "\n" not in str(caught.value)


def test_the_message_has_the_names_given():
    with pytest.raises(ModelError, match=r"tokenizers of judge and policy .* 'a' for the judge"):
        check_same_vocabulary(words("a"), words("b"), ("judge", "policy"))


def test_map_has_the_doctors_id_of_each_token_and_none_where_it_has_none():
    ids = vocabulary_map(words("a", "b", "c", "d"), words("d", "x", "a"))
    assert ids.dtype == np.int32
    assert ids.tolist() == [2, -1, -1, 0]


def test_tokens_added_later_count(byte_tokenizer, tiny_model_folder):
    more = models.load_tokenizer(tiny_model_folder)
    more.add_tokens(["<new>"])
    assert (vocabulary_size(byte_tokenizer), vocabulary_size(more)) == (259, 260)
    with pytest.raises(ModelError, match="id 259, '<new>' for the doctor and no token for the patient"):
        check_same_vocabulary(more, byte_tokenizer)
    assert vocabulary_map(more, byte_tokenizer).tolist() == [*range(259), -1]
    assert vocabulary_map(byte_tokenizer, more).tolist() == [*range(259)]


def test_tokenizers_with_nothing_in_common_cannot_be_mapped():
    with pytest.raises(ModelError, match=r"\(2 and 3 tokens\) have no token in common"):
        vocabulary_map(words("a", "b"), words("x", "y", "z"))
