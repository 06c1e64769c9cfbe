"""The page of token rewards: every token once, escaped, marked by sign and size."""

import re

from jaxalign.llmdoctor.token_view import PairView, ResponseView, token_texts, write_token_view
from tests.data.conftest import spaced_tokenizer


def response(texts, rewards):
    n = len(texts)
    return ResponseView(texts, [-1.0] * n, [-2.5] * n, [abs(r) for r in rewards], rewards)


def page_of(tmp_path, **sides):
    pair = PairView("<p>ask</p>", sides["chosen"], sides["rejected"], source="a&b.jsonl:1")
    path = write_token_view(tmp_path / "view" / "page.html", [pair], title="<t>", notes=("x < y",))
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
    return path.read_text(encoding="utf-8")


def test_tokens_are_escaped_and_marked_by_sign_and_size(tmp_path):
    page = page_of(
        tmp_path,
        chosen=response(["<b>", " kind", "\n"], [0.0, 0.75, 0.0]),
        rejected=response(["mean", ""], [-0.5, 0.0]),
    )
    tokens = re.findall(r"<span( class=\w+ style='[^']*')? title=\"([^\"]*)\">(.*?)</span>", page, re.DOTALL)
    assert [shown for _, _, shown in tokens] == ["&lt;b&gt;", " kind", "↵\n", "mean", "·"]
    marks = ["", " class=plus style='--s:0.75'", "", " class=minus style='--s:0.50'", ""]
    assert [mark for mark, _, _ in tokens] == marks
    assert "log-prob -1.000 under the positive, -2.500 under the negative" in tokens[1][1]
    assert "difference +1.500 nats; importance 0.750; reward +0.750" in tokens[1][1]
    assert "1 of 3 tokens rewarded; the log-probs differ by 1.5 nats per token" in page
    for text in ("&lt;p&gt;ask", "a&amp;b.jsonl:1", "x &lt; y", "&lt;t&gt;"):
        assert text in page
    assert "<b>" not in page


def test_the_page_needs_no_other_file(tmp_path):
    page = page_of(tmp_path, chosen=response(["a"], [0.0]), rejected=response(["b"], [0.0]))
    assert not re.search(r"(src|href|@import|url\()", page)


def test_texts_of_tokens_join_to_the_text_and_characters_are_whole(byte_tokenizer):
    said = "né ü\n€ end"
    ids = byte_tokenizer(said)["input_ids"]
    texts = token_texts(byte_tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == said
    assert texts[:4] == ["n", "", "é", " "]


def test_an_unfinished_character_at_the_end_is_shown(byte_tokenizer):
    assert token_texts(byte_tokenizer, byte_tokenizer("aé")["input_ids"][:-1]) == ["a", "\ufffd"]


def test_spaces_before_words_stay():
    spaced = spaced_tokenizer()
    ids = spaced("a big dog", add_special_tokens=False)["input_ids"]
    assert "".join(token_texts(spaced, ids)) == "a big dog"
