"""Vocabularies of two tokenizers: the same one, or a map of token strings between them.

What counts is a tokenizer's map of token strings to ids. Models of one family pad their
embeddings to different sizes; ids beyond the tokenizer's are no tokens.
"""

from typing import Any

import numpy as np

from jaxalign.errors import ModelError


def vocabulary_size(tokenizer: Any) -> int:
    """One more than the highest token id of a tokenizer, its added tokens included."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def check_same_vocabulary(first: Any, second: Any, names: tuple[str, str] = ("doctor", "patient")) -> None:
    """Both tokenizers give every token string the same id.

    Args:
      first, second: tokenizers.
      names: whose they are, for the message.

    Raises:
      ModelError: they differ; the message has both sizes and the lowest id whose tokens differ, with both.
    """
    one, other = first.get_vocab(), second.get_vocab()
    if one == other:
        return
    token = min({*one.items()} ^ {*other.items()}, key=lambda item: item[1])[1]
    shown = [
        f"{next((repr(text) for text, index in words.items() if index == token), 'no token')} for the {name}"
        for words, name in zip((one, other), names, strict=True)
    ]
    raise ModelError(
        f"the tokenizers of {names[0]} and {names[1]} differ: {len(one)} and {len(other)} tokens; the first that "
        f"differs is id {token}, {shown[0]} and {shown[1]}"
    )


def vocabulary_map(patient_tokenizer: Any, doctor_tokenizer: Any) -> np.ndarray:
    """Where the patient's tokens stand in the doctor's vocabulary.

    Returns:
      int32 [V], V the patient's `vocabulary_size`: the doctor's id of the exact same token string, -1 where
      the doctor has none or the patient has no token of that id.

    Raises:
      ModelError: the two have no token in common.
    """
    words = doctor_tokenizer.get_vocab()
    ids = np.full(vocabulary_size(patient_tokenizer), -1, np.int32)
    for text, index in patient_tokenizer.get_vocab().items():
        ids[index] = words.get(text, -1)
    if (ids < 0).all():
        raise ModelError(
            f"the tokenizers of patient and doctor ({len(ids)} and {vocabulary_size(doctor_tokenizer)} tokens) "
            "have no token in common"
        )
    return ids
