"""A tokenizer as the metadata of a GGUF file, what `tokenizer` reads, and the check that it is the same."""

import json
import re
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

from jaxalign.errors import ModelError
from jaxalign.models.config import ModelConfig
from jaxalign.models.gguf.pretokenizers import name_of
from jaxalign.models.gguf.tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    PHI3_KEEP,
    PHI3_NAMES,
    SPACE,
    TEMPLATE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)

# Texts that are cut where the ways to cut differ: digits, contractions, spaces, scripts, signs.
PROBES = (
    "Once upon a time, there were 12345 dragons; they'd said \"don't\".",
    "x = [1, 22, 333, 4444]\nfor i in range(10):\n\tprint(i ** 2)  # squares\n\n\nDONE",
    "I'VE 'told' him HE'LL see... 3.14159!? (50%) #tag @user https://example.org/a_b?c=d&e",
    "Größe über Straße naïve — “quoted” ‘text’ €100 ½ ²",
    "Привет, мир! Это тест. 你好,世界。我想在apple工作1314151天~ こんにちは 안녕하세요 السلام عليكم",
    "a  b   c    d\t\te\r\nf \n g\n\n\n\nh",
    "emoji 🚀🙂👩‍🔬 and ```code``` ======= ...... ------",
)
# Where transformers' classes for SentencePiece differ from SentencePiece itself, and so from llama.cpp.
SPACED = (" begins with a space", "  with two")


def vocabulary_of(tokenizer: Any, config: ModelConfig) -> dict[str, Any]:
    """The keys of a tokenizer: texts, ints, bools, lists; all of the vocabulary is as long as the embedding.

    Raises:
      ModelError: a tokenizer that GGUF has no form of.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError("GGUF: the tokenizer has no fast form (tokenizer.json)")
    body = json.loads(backend.to_str())
    model = body["model"]
    if model["type"] != "BPE":
        raise ModelError(f"GGUF: a {model['type']} tokenizer has no form there; expected BPE")
    if not model["merges"]:
        raise ModelError(
            "GGUF: the tokenizer has no merges, and llama.cpp reads no BPE tokenizer without them"
        )
    if model.get("byte_fallback"):
        keys = _sentencepiece(body, config)
    elif (name := name_of(body)) is None:
        raise ModelError(
            "GGUF: llama.cpp has no name for the way in which the tokenizer cuts text (its normalizer and "
            "pre-tokenizer)"
        )
    else:
        keys = _bpe(body, config, name)
    keys |= _ids(tokenizer, config)
    before, after = _around(tokenizer)
    keys |= {"tokenizer.ggml.add_bos_token": before, "tokenizer.ggml.add_eos_token": after}
    return keys | _templates(tokenizer)


def _bpe(body: Mapping[str, Any], config: ModelConfig, name: str) -> dict[str, Any]:
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in body["model"]["merges"]]
    tokens, types = _tokens(body, config)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
    }


def _sentencepiece(body: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    tokens, types = _tokens(body, config)
    model = body["model"]
    for i, token in enumerate(tokens):
        if types[i] == NORMAL and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[i] = BYTE
        elif token == model.get("unk_token"):
            types[i] = UNKNOWN
        elif types[i] == USER_DEFINED:
            tokens[i] = token.replace(SPACE, " ")
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": _scores(model, tokens, types),
        "tokenizer.ggml.add_space_prefix": _prefixes(body),
    }


def _scores(model: Mapping[str, Any], tokens: list[str], types: list[int]) -> list[float]:
    """Scores by which SentencePiece joins what the merges join: the earlier, the better.

    Raises:
      ModelError: merges that no scores stand for.
    """
    pairs = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    made = ["".join(pair) for pair in pairs]
    order = [token for token, _ in groupby(made)]
    normal = {token for token, kind in zip(tokens, types, strict=True) if kind == NORMAL}
    known = {pair for pair, token in zip(pairs, made, strict=True) if token in normal}
    whole = {
        (token[:at], token[at:])
        for token in normal
        for at in range(1, len(token))
        if token[:at] in normal and token[at:] in normal
    }
    known = {pair for pair in known if pair[0] in normal and pair[1] in normal}
    if len(order) != len(set(order)) or whole != known:
        raise ModelError(
            "GGUF: the merges of the tokenizer are not those of a SentencePiece model, which has scores alone"
        )
    rank = {token: -float(place) for place, token in enumerate(order)}
    last = -float(len(order))
    return [
        rank.get(token, last) if kind == NORMAL else 0.0 for token, kind in zip(tokens, types, strict=True)
    ]


def _prefixes(body: Mapping[str, Any]) -> bool:
    """Whether a space is put before a text.

    Raises:
      ModelError: spaces are written in a way that SentencePiece does not have.
    """
    parts = [body.get("normalizer"), body.get("pre_tokenizer")]
    steps = [
        step for part in parts if part for step in part.get("normalizers", part.get("pretokenizers", [part]))
    ]
    known = {"Prepend", "Replace", "Metaspace", "Split"}
    if not all(step["type"] in known for step in steps):
        names = ", ".join(sorted({step["type"] for step in steps} - known))
        raise ModelError(f"GGUF: the tokenizer's {names} has no form in a SentencePiece vocabulary")
    return any(
        step["type"] == "Prepend" or (step["type"] == "Metaspace" and step.get("prepend_scheme") != "never")
        for step in steps
    )


def _tokens(body: Mapping[str, Any], config: ModelConfig) -> tuple[list[str], list[int]]:
    found = {i: (token, NORMAL) for token, i in body["model"]["vocab"].items()}
    for token in body["added_tokens"]:
        found[token["id"]] = (token["content"], CONTROL if token["special"] else USER_DEFINED)
    if max(found) >= config.vocab_size:
        raise ModelError(
            f"GGUF: the tokenizer has a token {max(found)}, but the model's vocabulary has {config.vocab_size}"
        )
    filled = [found.get(i, (f"[PAD{i}]", UNUSED)) for i in range(config.vocab_size)]
    tokens = [token for token, _ in filled]
    if len(set(tokens)) != len(tokens) or "" in tokens:
        raise ModelError("GGUF: two tokens have the same text, or one has none")
    return tokens, [kind for _, kind in filled]


def _ids(tokenizer: Any, config: ModelConfig) -> dict[str, int]:
    first = getattr(tokenizer, "eos_token_id", None)
    ends = sorted(config.eos_ids, key=lambda token: token != first)
    if len(ends) > 3:
        raise ModelError(f"GGUF: the model has {len(ends)} end tokens {ends}; the format has three at most")
    bos = config.bos_id if config.bos_id >= 0 else getattr(tokenizer, "bos_token_id", None)
    pad = config.pad_id if config.pad_id >= 0 else getattr(tokenizer, "pad_token_id", None)
    ids = dict(zip(("eos", "eot", "eom"), ends, strict=False)) | {
        "bos": bos,
        "padding": pad,
        "unknown": getattr(tokenizer, "unk_token_id", None),
    }
    return {f"tokenizer.ggml.{name}_token_id": int(i) for name, i in ids.items() if i is not None}


def _around(tokenizer: Any) -> tuple[bool, bool]:
    """Whether a text is encoded with the start token before it, and the end token after it."""
    bare, whole = (tokenizer.encode("a", add_special_tokens=add) for add in (False, True))
    at = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), None)
    before, after = ([], []) if at is None else (whole[:at], whole[at + len(bare) :])
    if (
        at is None
        or before not in ([], [tokenizer.bos_token_id])
        or after not in ([], [tokenizer.eos_token_id])
    ):
        raise ModelError(
            f"GGUF: the tokenizer puts {whole} around {bare}, where the format has one token at most"
        )
    return bool(before), bool(after)


def _templates(tokenizer: Any) -> dict[str, Any]:
    template = getattr(tokenizer, "chat_template", None)
    if template is None:
        return {}
    if isinstance(template, str):
        return {TEMPLATE: template}
    named = {name: text for name, text in template.items() if name != "default"}
    keys: dict[str, Any] = {f"{TEMPLATE}.{name}": text for name, text in named.items()}
    keys["tokenizer.chat_templates"] = list(named)
    return keys | ({TEMPLATE: template["default"]} if "default" in template else {})


def model_name(name: str, tokenizer: Any) -> str:
    """A model's name for the file: by Phi-3's llama.cpp knows that special tokens take the space after them away.

    Raises:
      ModelError: some do and others do not, in another way than Phi-3's.
    """
    added = json.loads(tokenizer.backend_tokenizer.to_str())["added_tokens"]
    if not any(token["rstrip"] or token["lstrip"] or token["single_word"] for token in added):
        return re.sub("phi-?3", "phi 3", name, flags=re.IGNORECASE)
    if not set(PHI3_KEEP) <= tokenizer.get_vocab().keys() or any(
        token["rstrip"] != (token["content"] not in PHI3_KEEP) or token["lstrip"] or token["single_word"]
        for token in added
    ):
        raise ModelError(
            "GGUF: added tokens of the tokenizer strip spaces or match whole words, which has no form there"
        )
    return name if any(part in name.lower() for part in PHI3_NAMES) else f"{name} (phi-3)"


def check_tokenizer(tokenizer: Any, again: Any, where: str, say: Callable[[str], None]) -> None:
    """That of a file gives the same ids as the one that it was made of.

    Raises:
      ModelError: other ids for a text; names it.
    """
    for text in PROBES:
        ours, theirs = tokenizer.encode(text), again.encode(text)
        if ours != theirs:
            raise ModelError(
                f"{where}: the tokenizer of the file gives {len(theirs)} tokens for {text[:20]!r}..., and its own "
                f"{len(ours)}, or others: GGUF has no form of it"
            )
    spaced = (*SPACED, *([f"{tokenizer.eos_token}a b"] if tokenizer.eos_token else []))
    if any(tokenizer.encode(text) != again.encode(text) for text in spaced):
        say(
            f"{where}: llama.cpp cuts text that begins with a space or follows a special token in another way than "
            "the tokenizer of the model does; chats may read slightly otherwise there"
        )
