"""Texts as contexts and continuations, and as windows."""

import numpy as np
import pytest

from jaxalign import models
from jaxalign.errors import UserError
from jaxalign.evaluation.likelihood import Continuation, ContinuationScorer
from jaxalign.evaluation.text_likelihood import TextScorer


@pytest.fixture(scope="module")
def model(tiny_model_folder):
    return models.load_pretrained(tiny_model_folder)


@pytest.fixture
def scorer(model, byte_tokenizer):
    return TextScorer(ContinuationScorer(model, context=16), byte_tokenizer)


def text_of(tokenizer, tokens):
    return tokenizer.decode(list(tokens))


def test_space_at_the_end_of_a_context_is_the_continuations(scorer, byte_tokenizer):
    for context, continuation in (("ab", " cd"), ("ab ", "cd")):
        pair = scorer.pair(context, continuation)
        assert text_of(byte_tokenizer, pair.context) == "ab"
        assert text_of(byte_tokenizer, pair.tokens) == " cd"


@pytest.mark.parametrize("context", ["", "  "])
def test_what_has_no_context_follows_the_first_token_of_a_text(scorer, byte_tokenizer, context):
    pair = scorer.pair(context, "ab")
    assert pair.context == (byte_tokenizer.bos_token_id,)
    assert text_of(byte_tokenizer, pair.tokens) == context + "ab"


def test_a_first_token_that_the_text_has_is_not_put_twice(scorer, byte_tokenizer):
    bos = byte_tokenizer.bos_token_id
    assert scorer.pair("", "<s>ab").context == (bos,)
    assert len(scorer.pair("", "<s>ab").tokens) == 2
    assert scorer.pair("<s>ab", "c").context[:2] != (bos, bos)


def test_a_continuation_without_tokens_is_refused(scorer):
    with pytest.raises(UserError, match="'' adds no token to 'ab'"):
        scorer.pair("ab", "")


def test_a_long_text_is_read_in_windows_that_predict_each_token_once(scorer, byte_tokenizer):
    text = "abcdefghijklmnopqrstuvwxyz0123456789ABCD"  # 40 tokens in windows of 16
    windows = scorer._windows(scorer.encode(text, alone=False))
    assert "".join(text_of(byte_tokenizer, window.tokens) for window in windows) == text
    assert [len(window.context) + len(window.tokens) - 1 for window in windows] == [16, 16, 16]
    assert windows[0].context == (byte_tokenizer.bos_token_id,)
    # The last predicts 8 and reads the 9 before them.
    assert text_of(byte_tokenizer, windows[2].context) == text[23:32]


def test_a_texts_log_prob_is_the_sum_over_its_windows(scorer):
    text = "abcdefghijklmnopqrstuvwxyz"
    logps, tokens = scorer.rolling([text, "xy"])
    windows = scorer._windows(scorer.encode(text, alone=False))
    assert logps[0] == pytest.approx(scorer.scorer.score(windows).logps.sum(), abs=1e-4)
    assert logps[1] == pytest.approx(scorer.score([("", "xy")]).logps[0], abs=1e-4)
    assert tokens.tolist() == [26, 2]


def test_an_empty_text_has_a_log_prob_of_0(scorer):
    logps, tokens = scorer.rolling(["", "ab"])
    assert logps[0] == 0 and tokens.tolist() == [0, 2] and np.isfinite(logps[1])


def test_tokens_that_the_tokenizer_puts_first_are_scored_where_it_is_asked(
    scorer, byte_tokenizer, monkeypatch
):
    # As in lm-evaluation-harness: `<s>` after `<s>`, then the text.
    text = "abcdefghij"
    plain = scorer.rolling([text])
    encode = TextScorer.encode
    monkeypatch.setattr(
        TextScorer,
        "encode",
        lambda self, text, *, alone=True: [*([256] if alone else []), *encode(self, text, alone=False)],
    )
    assert scorer.rolling([text])[0] == plain[0]
    logps, tokens = scorer.rolling([text], alone=True)
    bos = Continuation((256,), (256, *scorer.encode(text, alone=False)))
    assert tokens.tolist() == [11] and logps[0] == pytest.approx(
        scorer.scorer.score([bos]).logps[0], abs=1e-4
    )
    assert logps[0] < plain[0][0] - 1


def test_a_continuation_longer_than_the_model_reads_at_once_is_refused(scorer):
    assert len(scorer.pair("a", "x" * 16).tokens) == 16
    with pytest.raises(UserError, match="a continuation of 17 tokens, which begins with 'xxxx"):
        scorer.pair("a", "x" * 17)
