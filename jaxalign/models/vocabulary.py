"""Vocabularies of two tokenizers: the same one, one but for special tokens, or a map by the bytes that tokens write.

What counts is a tokenizer's map of token strings to ids. Models of one family pad their embeddings to different sizes;
ids beyond the tokenizer's are no tokens. Tokens that were added to a vocabulary later, special ones among them, are
called added here.

A token string is spelled in letters of its tokenizer: a space is "Ġ" in GPT-2's, "▁" in SentencePiece's. The
tokenizer's own decoder says which, and `token_bytes` undoes them as that does inside a text. At the very start
of a text SentencePiece's decoder drops one space, which its normalizer had put there. A map does not know where a token
stands: between such a tokenizer and one that does neither, the first word of a text is read as one after a space.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxalign.errors import ModelError

# What a tokenizer may name a token for, in the order in which a token of several roles is given a partner.
_ROLES = ("eos", "bos", "pad", "unk", "sep", "cls", "mask")
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
# The letter of each byte in a byte-level vocabulary: itself where it can be seen, else the next from U+0100 on.
_SEEN = (*range(33, 127), *range(161, 173), *range(174, 256))
_LETTERS = {chr(x): x for x in _SEEN} | {
    chr(256 + place): x for place, x in enumerate(x for x in range(256) if x not in _SEEN)
}
# Differences that a line lists; the others are counted.
_LISTED = 6


def vocabulary_size(tokenizer: Any) -> int:
    """One more than the highest token id of a tokenizer, its added tokens included."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def check_same_vocabulary(first: Any, second: Any, names: tuple[str, str] = ("doctor", "patient")) -> None:
    """What the second tokenizer writes means the same to the first: every token of it has its id there.

    Only a special token may have another text, where both tokenizers give its id one role (as end, as padding), and
    the first may have added tokens that the second has not.

    Args:
      first, second: tokenizers.
      names: whose they are, for the message.

    Raises:
      ModelError: they differ; the message has both sizes and the lowest id that does, with the tokens of both.
    """
    one, other = first.get_vocab(), second.get_vocab()
    wrong = {*one.items()} ^ {*other.items()}
    if wrong and only_added_differ(first, second):
        ids = vocabulary_map(second, first)
        wrong = {(text, index) for text, index in other.items() if ids[index] != index}
    if not wrong:
        return
    token = min(wrong, key=lambda item: item[1])[1]
    shown = [
        f"{next((repr(text) for text, index in words.items() if index == token), 'no token')} for the {name}"
        for words, name in zip((one, other), names, strict=True)
    ]
    raise ModelError(
        f"the tokenizers of {names[0]} and {names[1]} differ: {len(one)} and {len(other)} tokens; the first "
        f"difference is at id {token}, {shown[0]} and {shown[1]}"
    )


def only_added_differ(first: Any, second: Any) -> bool:
    """Whether two tokenizers have ordinary tokens in common, and none that the other lacks or gives another id."""
    one, other = ({*tokenizer.get_vocab().items()} for tokenizer in (first, second))
    added, more = _added(first), _added(second)
    alone = [index for _, index in one - other if index not in added]
    alone += [index for _, index in other - one if index not in more]
    return not alone and any(index not in added and index not in more for _, index in one & other)


def vocabulary_map(patient_tokenizer: Any, doctor_tokenizer: Any) -> np.ndarray:
    """Where the patient's tokens stand in the doctor's vocabulary.

    An added token has as its partner the doctor's token of the same role (end, beginning, padding, ...; a padding or
    unknown token that is the doctor's end or beginning too is none), else its added token of the same text; a special
    token never has an ordinary one. Any other token has the one that writes the same bytes. Of several that write
    them it is the one of the same text, else the one that is no byte fallback (`<0x41>`), else the lowest id.
    Where two tokenizers differ in added tokens alone, the same text goes before all that.

    Returns:
      int32 [V], V the patient's `vocabulary_size`: the doctor's id, -1 where the doctor has none or the patient has no
      token of that id.

    Raises:
      ModelError: the two have no token in common.
    """
    ids = np.full(vocabulary_size(patient_tokenizer), -1, np.int32)
    words, roles = doctor_tokenizer.get_vocab(), _same_roles(patient_tokenizer, doctor_tokenizer)
    if only_added_differ(patient_tokenizer, doctor_tokenizer):
        for text, index in patient_tokenizer.get_vocab().items():
            ids[index] = words.get(text, roles.get(index, -1))
        return ids
    added, special = _added(patient_tokenizer), _special(patient_tokenizer)
    more, closed = _added(doctor_tokenizer), _special(doctor_tokenizer)
    spelled: dict[bytes, list[tuple[bool, int, str]]] = {}
    for text, written in token_bytes(doctor_tokenizer).items():
        if words[text] not in closed:
            spelled.setdefault(written, []).append((_BYTE.fullmatch(text) is not None, words[text], text))
    written = token_bytes(patient_tokenizer)
    for text, index in patient_tokenizer.get_vocab().items():
        same = words.get(text, -1)
        if index in added and index in roles:
            ids[index] = roles[index]
        elif index in added and same in more:
            ids[index] = same
        elif index not in special and (found := spelled.get(written[text])):
            ids[index] = next((number for _, number, other in found if other == text), min(found)[1])
    if all(ids[index] < 0 or index in special for index in patient_tokenizer.get_vocab().values()):
        raise ModelError(
            f"the tokenizers of patient and doctor ({len(ids)} and {vocabulary_size(doctor_tokenizer)} tokens) "
            "have no token in common"
        )
    return ids


def added_differences(patient_tokenizer: Any, doctor_tokenizer: Any) -> str:
    """What two tokenizers that differ in added tokens alone differ in, and what becomes of it, in part of a line."""
    one, other = patient_tokenizer.get_vocab(), doctor_tokenizer.get_vocab()
    ids, texts = (
        vocabulary_map(patient_tokenizer, doctor_tokenizer),
        {index: text for text, index in other.items()},
    )
    shown = []
    for text, index in sorted({*one.items()} - {*other.items()}, key=lambda item: item[1]):
        found = int(ids[index])
        partner = "none of the doctor's" if found < 0 else f"the doctor's {texts[found]!r} (id {found})"
        shown.append(f"the patient's {text!r} (id {index}) is {partner}")
    met = {*ids.tolist()}
    for text, index in sorted({*other.items()} - {*one.items()}, key=lambda item: item[1]):
        if index not in met:
            shown.append(f"the doctor's {text!r} (id {index}) is none of the patient's")
    rest = len(shown) - _LISTED
    return ", ".join([*shown[:_LISTED], *([f"and {rest} more"] if rest > 0 else [])])


def token_bytes(tokenizer: Any) -> dict[str, bytes]:
    """What each token of a tokenizer writes inside a text, by token string; partial characters too.

    How its strings are spelled says its decoder, where it has none its pre-tokenizer, and where neither does (or
    there is no tokenizer of the `tokenizers` library behind it) the letters of its tokens. What no marker is found in
    is taken by its exact text.
    """
    words = tokenizer.get_vocab()
    steps = _spelling(tokenizer) or list(_spelling_seen(words))
    return {text: _written(text, steps) for text in words}


def _written(text: str, steps: list[dict[str, Any]]) -> bytes:
    for step in steps:
        match step["type"]:
            case "ByteLevel":  # as the decoder: a token with any other letter is plain text
                known = all(x in _LETTERS for x in text)
                return bytes(_LETTERS[x] for x in text) if known else text.encode()
            case "ByteFallback" if found := _BYTE.fullmatch(text):
                return bytes.fromhex(found[1])
            case "Metaspace":
                text = text.replace(step["replacement"], " ")
            case "Replace" if "String" in step["pattern"]:
                text = text.replace(step["pattern"]["String"], step["content"])
            case "WordPiece":
                inside = text.startswith(step["prefix"])
                glued = inside or (step["cleanup"] and text in {".", ",", "!", "?"})
                text = ("" if glued else " ") + (text[len(step["prefix"]) :] if inside else text)
            case "BPEDecoder":
                text = text.replace(step["suffix"], " ")
    return text.encode(errors="surrogatepass")


_SPELLINGS = {"ByteLevel", "ByteFallback", "Metaspace", "Replace", "WordPiece", "BPEDecoder"}


def _spelling(tokenizer: Any) -> list[dict[str, Any]]:
    """The steps of a tokenizer's decoder that change letters, else of its pre-tokenizer; none where it has neither."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return []
    body = json.loads(backend.to_str())
    for part in ("decoder", "pre_tokenizer"):
        steps = [step for step in _flat(body.get(part)) if step["type"] in _SPELLINGS]
        if steps:
            return steps
    return []


def _flat(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a decoder or pre-tokenizer, those of sequences one by one."""
    if step is None:
        return
    inner = step.get("decoders") or step.get("pretokenizers")
    if inner is None:
        yield step
    for part in inner or ():
        yield from _flat(part)


def _spelling_seen(words: dict[str, int]) -> Iterator[dict[str, Any]]:
    """How a vocabulary looks spelled, as steps of a decoder."""
    if all(letter in words for letter in _LETTERS):
        yield {"type": "ByteLevel"}
    if any(text.startswith("▁") for text in words):
        yield {"type": "Metaspace", "replacement": "▁"}
    if all(f"<0x{value:02X}>" in words for value in range(256)):
        yield {"type": "ByteFallback"}


def _same_roles(patient: Any, doctor: Any) -> dict[int, int]:
    """The doctor's token of the role of each of the patient's that has one."""
    roles = [[getattr(t, f"{role}_token_id", None) for role in _ROLES] for t in (patient, doctor)]
    pairs = {}
    for place, (own, other) in enumerate(zip(*roles, strict=True)):
        # Many name their end also as what fills and what is unknown, which does not mean that.
        if own is not None and other is not None and (place < 2 or other not in roles[1][:2]):
            pairs.setdefault(int(own), int(other))
    return pairs


def _special(tokenizer: Any) -> set[int]:
    """Ids of the tokens that write no text."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {int(x) for x in tokenizer.all_special_ids} | {i for i, token in added.items() if token.special}


def _added(tokenizer: Any) -> set[int]:
    return _special(tokenizer) | {*getattr(tokenizer, "added_tokens_decoder", {})}
