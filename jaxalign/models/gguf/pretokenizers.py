"""How text is cut before byte-level BPE: the names of GGUF's `tokenizer.ggml.pre`, as parts of a tokenizer.json.

The patterns are those of the models' own tokenizer.json; llama.cpp has the same, rewritten for its own engine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = _WORDS + r"\p{N}{1,3}" + _REST
QWEN2 = _WORDS + r"\p{N}" + _REST
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Pre:
    """A way to cut text.

    Attributes:
      pattern: what is cut out; "" for GPT-2's, which the tokenizers' ByteLevel has itself.
      digits: whether each digit is cut out first.
      nfc: whether text is normalized (which llama.cpp does not do).
      ignore_merges: whether a piece that is a token is taken whole.
      bos: whether the start token is set before a text where the file does not say.
    """

    pattern: str = ""
    digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    bos: bool = False


_LLAMA3 = Pre(LLAMA3, ignore_merges=True, bos=True)
_DIGITS = Pre(digits=True)
# The first of equal ones is written.
PRES: dict[str, Pre] = {
    "gpt-2": Pre(),
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "dbrx": Pre(LLAMA3),
    "smaug-bpe": Pre(LLAMA3),
    "qwen2": Pre(QWEN2, nfc=True),
    "deepseek-r1-qwen": Pre(QWEN2),
    "megrez": Pre(QWEN2),
    "tekken": Pre(TEKKEN, ignore_merges=True, bos=True),
}


def parts(pre: Pre) -> dict[str, Any]:
    """Normalizer and pre-tokenizer of a tokenizer.json."""
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": not pre.pattern,
    }
    steps: list[dict[str, Any]] = []
    if pre.digits:
        steps.append({"type": "Digits", "individual_digits": True})
    if pre.pattern:
        pattern = {"Regex": pre.pattern}
        steps.append({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False})
    steps.append(byte_level)
    return {
        "normalizer": {"type": "NFC"} if pre.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else byte_level,
    }


def name_of(body: Mapping[str, Any]) -> str | None:
    """The name under which llama.cpp cuts text as a tokenizer.json does; None where it has none."""
    return next((name for name, pre in PRES.items() if _same(pre, body)), None)


def _same(pre: Pre, body: Mapping[str, Any]) -> bool:
    wanted = parts(pre)
    return (
        _plain(body.get("normalizer"), "normalizers") == _plain(wanted["normalizer"], "normalizers")
        and _plain(body.get("pre_tokenizer"), "pretokenizers")
        == _plain(wanted["pre_tokenizer"], "pretokenizers")
        and bool(body["model"].get("ignore_merges")) == pre.ignore_merges
    )


def _plain(part: Mapping[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, without what changes no token."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for one in part[inside] for step in _plain(one, inside)]
    return [{name: value for name, value in part.items() if name != "trim_offsets"}]
