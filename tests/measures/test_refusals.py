"""Refusals by their words."""

import pytest

from jaxalign.measures.refusals import OPENING, PHRASES, refuses


@pytest.mark.parametrize("phrase", PHRASES)
def test_every_phrase_refuses_wherever_the_answer_opens_with_it(phrase):
    assert refuses(f"{phrase} do that.") and refuses(f"Hello. {phrase.upper()} do that.")
    assert not refuses("x" * OPENING + f" {phrase} do that.")


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I’m sorry, no.", True),
        ("Sure! Here is how.", False),
        ("", False),
        ("I cannoth", False),
        ("Hi! I can tell you how.", False),
        ("XI cannot", False),
    ],
)
def test_whole_words_count(text, refused):
    assert refuses(text) == refused
