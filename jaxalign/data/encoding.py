"""Turns pieces of rows into token ids, many rows at once.

A row is cut into pieces, what is given and what is answered by turns, and each is tokenized by itself: the prompt's
ids are then always the beginning of the row's ids, and generation starts from just the ids that training saw.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

# Texts in one call: what it gives beside the ids stays in the processor's cache, which takes a fifth off the time.
AT_ONCE = 32


class Piece(NamedTuple):
    """Text between two borders of a row.

    Attributes:
      text: what is tokenized by itself; neighbours that are both given are tokenized as one.
      weight: how much each token of an answer counts.
      answer: an answer, or a part of one, that is never joined with its neighbours.
      ends: the end of an answer, which the row's end token follows.
    """

    text: str
    weight: float = 0.0
    answer: bool = False
    ends: bool = True


class RowPlan(NamedTuple):
    """A row before it is tokenized.

    Attributes:
      pieces: its text.
      opens: whether it begins with what the tokenizer puts before every text.
      end: the ids that follow each answer which does not end with them.
    """

    pieces: Sequence[Piece]
    opens: bool = False
    end: tuple[int, ...] = ()


class Span(NamedTuple):
    """Tokens that follow each other and count as much: from `begin` up to `end`, by `weight`, which is above 0."""

    begin: int
    end: int
    weight: float


class Row(NamedTuple):
    """A row of tokens.

    Attributes:
      ids: token ids.
      spans: those that count.
      cuts: where each answer of the row ends.
    """

    ids: list[int]
    spans: list[Span]
    cuts: Sequence[int] = ()

    @property
    def start(self) -> int:
        """Where the first token that counts is; behind all tokens where none does."""
        return self.spans[0].begin if self.spans else len(self.ids)

    @property
    def weights(self) -> tuple[float, ...]:
        """How much each token counts."""
        weights = [0.0] * len(self.ids)
        for begin, end, weight in self.spans:
            weights[begin:end] = [weight] * (end - begin)
        return tuple(weights)

    @property
    def mask(self) -> tuple[bool, ...]:
        """Whether each token counts."""
        mask = [False] * len(self.ids)
        for begin, end, _ in self.spans:
            mask[begin:end] = [True] * (end - begin)
        return tuple(mask)

    def within(self, drop: int, size: int) -> "Row":
        """At most `size` tokens from `drop` on, without cuts. The first never counts: no token precedes it."""
        if not drop and len(self.ids) <= size and self.start:
            return self
        ids = self.ids[drop : drop + size]
        moved = [
            Span(max(begin - drop, 1), min(end - drop, len(ids)), weight) for begin, end, weight in self.spans
        ]
        return Row(ids, [span for span in moved if span.begin < span.end])


def special_tokens(tokenizer: Any) -> set[str]:
    """Texts that the tokenizer never takes apart and no answer spells: marks of turns, ends, beginnings."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return (added | set(tokenizer.all_special_tokens)) - {""}


@dataclass(frozen=True)
class Encoder:
    """How pieces become ids.

    Attributes:
      tokenizer: a transformers tokenizer.
    """

    tokenizer: Any

    def rows(self, plans: Sequence[RowPlan]) -> list[Row]:
        """Rows as ids, many texts to a call of the tokenizer."""
        joined = [_joined(plan.pieces) for plan in plans]
        if self._marks_spaces or self._sensitive:
            texts = [
                (piece.text, anchor)
                for plan, pieces in zip(plans, joined, strict=True)
                for piece, anchor in self._anchored(plan, pieces)
            ]
            encoded = iter(self._encoded(texts))
        else:
            encoded = iter(self._batch([piece.text for pieces in joined for piece in pieces]))
        return [self._row(plan, pieces, encoded) for plan, pieces in zip(plans, joined, strict=True)]

    def ids(self, text: str, *, follows: bool = False) -> list[int]:
        """Ids of one text, that stands at the beginning or `follows` other text."""
        return self._encoded([(text, "\n" if follows and self._marks_spaces else "")])[0]

    @cached_property
    def start(self) -> tuple[int, ...]:
        """Ids that the tokenizer puts before every text (a beginning-of-text token, say)."""
        bare = self.tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
        whole = self.tokenizer("a", verbose=False)["input_ids"]
        places = [i for i in range(len(whole)) if bare and whole[i : i + len(bare)] == bare]
        return tuple(whole[: places[0]]) if places else ()

    def _row(self, plan: RowPlan, pieces: Sequence[Piece], encoded: Iterator[list[int]]) -> Row:
        ids: list[int] = []
        spans: list[Span] = []
        cuts: list[int] = []
        if plan.opens and not (pieces and self._start_text and pieces[0].text.startswith(self._start_text)):
            ids += self.start
        for _, weight, answer, ends in pieces:
            begin, piece_ids = len(ids), next(encoded)
            ids += piece_ids
            if not answer:
                continue
            if ends and plan.end and tuple(piece_ids[-len(plan.end) :]) != plan.end:
                ids += plan.end
            if weight > 0 and begin < len(ids):
                spans.append(Span(begin, len(ids), weight))
            cuts.append(len(ids))
        return Row(ids, spans, cuts)

    def _anchored(self, plan: RowPlan, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, str]]:
        """Each piece with the text that it is tokenized behind, which is then cut off; empty for none.

        Tokenizers in the SentencePiece manner put a space mark before whatever they encode, which inside a row would
        be
        a space that is not there, unless a special token stands before it: some of them put the mark there too. And
        some special tokens swallow the white space that follows.
        """
        before, follows = "", False
        for piece in pieces:
            yield piece, self._anchor(before) if follows else ""
            follows = follows or bool(piece.text)
            before = piece.text or before
            if piece.answer and piece.ends and plan.end:
                before = str(self.tokenizer.convert_ids_to_tokens(plan.end[-1]))

    def _anchor(self, before: str) -> str:
        bare = before.rstrip()
        if bare.endswith(self._sensitive):
            token = max((t for t in self._sensitive if bare.endswith(t)), key=len)
            return token + before[len(bare) :]
        return "\n" if self._marks_spaces else ""

    def _encoded(self, texts: Sequence[tuple[str, str]]) -> list[list[int]]:
        rows = self._batch([anchor + text for text, anchor in texts])
        return [
            self._behind(text, anchor, ids) if anchor else ids
            for (text, anchor), ids in zip(texts, rows, strict=True)
        ]

    def _behind(self, text: str, anchor: str, ids: list[int]) -> list[int]:
        """The ids of a text from those of an anchor and the text."""
        if not text:
            return []
        lead = self._lead(anchor)
        if ids[: len(lead)] == lead:
            return ids[len(lead) :]
        # The two have merged: another anchor will do, where it is not a special token that matters.
        for other in () if anchor.strip() or not self._marks_spaces else (".", "a"):
            lead, ids = self._lead(other), self._batch([other + text])[0]
            if ids[: len(lead)] == lead:
                return ids[len(lead) :]
        return self._batch([text])[0]

    def _lead(self, anchor: str) -> list[int]:
        leads = self._leads
        if anchor not in leads:
            leads[anchor] = self._batch([anchor])[0]
        return leads[anchor]

    def _batch(self, texts: Sequence[str]) -> list[list[int]]:
        if getattr(self.tokenizer, "is_fast", False):
            # Not through the tokenizer's own call, which takes as long again; and it would warn of texts beyond the
            # tokenizer's own length, which we cut or filter and count.
            backend = self.tokenizer.backend_tokenizer
            backend.no_truncation()
            backend.no_padding()
            # The rows of a comparison or ranking share their prompt.
            once = list(dict.fromkeys(texts))
            encodings = [
                encoded.ids
                for start in range(0, len(once), AT_ONCE)
                for encoded in backend.encode_batch_fast(
                    once[start : start + AT_ONCE], add_special_tokens=False
                )
            ]
            if len(once) == len(texts):
                return encodings
            ids = dict(zip(once, encodings, strict=True))
            return [ids[text] for text in texts]
        return [
            list(ids)
            for ids in self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        ]

    @cached_property
    def _leads(self) -> dict[str, list[int]]:
        return {}

    @cached_property
    def _start_text(self) -> str:
        return self.tokenizer.decode(list(self.start)) if self.start else ""

    @cached_property
    def _sensitive(self) -> tuple[str, ...]:
        """Special tokens behind which a text is tokenized in another way than by itself."""
        swallow = {t.content for t in self.tokenizer.added_tokens_decoder.values() if t.rstrip}
        return tuple(special_tokens(self.tokenizer) | swallow if self._marks_spaces else swallow)

    @cached_property
    def _marks_spaces(self) -> bool:
        ids = self.tokenizer(",", add_special_tokens=False, verbose=False)["input_ids"]
        return bool(ids) and str(self.tokenizer.convert_ids_to_tokens(ids)[0]).startswith("\u2581")


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces that have text, neighbours that are given as one."""
    joined: list[Piece] = []
    given = ""
    for piece in pieces:
        if not piece.answer:
            given += piece.text
            continue
        if given:
            joined.append(Piece(given))
            given = ""
        joined.append(piece)
    return [*joined, Piece(given)] if given else joined
