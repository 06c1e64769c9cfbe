"""The tokenizer of a GGUF file as one of transformers.

Byte-level BPE (`gpt2`) has its merges in the file; SentencePiece (`llama`) has scores, of which merges are made.
Transformers' own conversion is not used: it takes GPT-2's pattern for each `tokenizer.ggml.pre` that it does not know
(smollm is one), and spaces of SentencePiece as its own class has them and not as llama.cpp.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from jaxalign.errors import ModelError
from jaxalign.models.gguf.families import TOKENS, special_ids
from jaxalign.models.gguf.head import Head
from jaxalign.models.gguf.pretokenizers import PRES, parts

# llama.cpp's types of tokens.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "▁"
TEMPLATE = "tokenizer.chat_template"
# Keys that change how text becomes tokens, and the only values that are known here.
_FIXED = {
    "tokenizer.ggml.add_sep_token": False,
    "tokenizer.ggml.remove_extra_whitespaces": False,
    "tokenizer.ggml.normalizer.lowercase": False,
    "tokenizer.ggml.normalizer.strip_accents": False,
}
# Phi-3: tokens that take the space after them away, but for these; llama.cpp knows it by the model's name.
PHI3_NAMES, PHI3_KEEP = ("phi-3", "phi3"), ("<unk>", "<s>", "<|endoftext|>")


def gguf_tokenizer(head: Head) -> Any:
    """The tokenizer of a file, with its chat template.

    Raises:
      ModelError: there is none, or one of a kind that is not known here; names the key.
    """
    from tokenizers import Tokenizer

    from jaxalign.models.huggingface import transformers_module

    body = tokenizer_json(head)
    ids, tokens = special_ids(head), head.metadata[TOKENS]
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    special = {name: tokens[ids[key]] for key, name in names.items() if ids[key] is not None}
    try:
        fast = Tokenizer.from_str(json.dumps(body))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{head.file}: cannot make a tokenizer of it: {reason}") from None
    made = transformers_module().PreTrainedTokenizerFast(
        tokenizer_object=fast, clean_up_tokenization_spaces=False, **special
    )
    made.chat_template = chat_template(head)
    made.name_or_path = str(head.file)
    return made


def chat_template(head: Head) -> Any:
    """The chat template of a file: a text, several by name, or None."""
    default = head.metadata.get(TEMPLATE)
    more = {
        name: head.metadata.get(f"{TEMPLATE}.{name}")
        for name in head.metadata.get("tokenizer.chat_templates", [])
    }
    for name, text in {"": default, **more}.items():
        if text is not None and (not isinstance(text, str) or _broken(text)):
            raise ModelError(f"{head.file}: {TEMPLATE}{name and '.'}{name}: expected a text")
    if not any(more.values()):
        return default
    return {name: text for name, text in {"default": default, **more}.items() if text is not None}


def tokenizer_json(head: Head) -> dict[str, Any]:
    """The tokenizer.json that a file stands for.

    Raises:
      ModelError: as `gguf_tokenizer`.
    """
    about = head.metadata
    kind, tokens = about.get("tokenizer.ggml.model"), about.get(TOKENS)
    if kind is None or tokens is None:
        raise ModelError(f"{head.file}: no tokenizer; expected tokenizer.ggml.model and {TOKENS}")
    if kind not in ("gpt2", "llama"):
        raise ModelError(f"{head.file}: tokenizer.ggml.model is {kind!r}; expected gpt2 or llama")
    for key, value in _FIXED.items():
        if about.get(key, value) != value:
            raise ModelError(f"{head.file}: {key} is {about[key]!r}; only {value!r} is supported")
    if len(about.get("tokenizer.ggml.precompiled_charsmap", ())):
        raise ModelError(f"{head.file}: tokenizer.ggml.precompiled_charsmap: normalization is not supported")
    if len(about.get("tokenizer.ggml.suppress_tokens", ())):
        raise ModelError(f"{head.file}: tokenizer.ggml.suppress_tokens: not supported")
    types = about.get("tokenizer.ggml.token_type")
    types = np.full(len(tokens), NORMAL) if types is None else np.asarray(types)
    if len(types) != len(tokens):
        raise ModelError(
            f"{head.file}: tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens"
        )
    if not np.isin(types, range(1, 7)).all():
        raise ModelError(f"{head.file}: tokenizer.ggml.token_type has values outside 1 to 6")
    for i, token in enumerate(tokens):
        if _broken(token):
            raise ModelError(f"{head.file}: {TOKENS}: token {i} is not valid UTF-8")
    # What fills the vocabulary up to the embedding's rows is no token.
    vocabulary = {t: i for i, t in enumerate(tokens) if types[i] != UNUSED or t != f"[PAD{i}]"}
    if len(vocabulary) != len(tokens) - sum(
        types[i] == UNUSED and t == f"[PAD{i}]" for i, t in enumerate(tokens)
    ):
        raise ModelError(f"{head.file}: {TOKENS}: a token is there twice")
    make = _bpe if kind == "gpt2" else _sentencepiece
    body = make(head, tokens, types, vocabulary)
    return {"version": "1.0", "truncation": None, "padding": None} | body


def _broken(text: str) -> bool:
    """Whether bytes of a text were no UTF-8; see `head`."""
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def _bpe(
    head: Head, tokens: Sequence[str], types: np.ndarray, vocabulary: Mapping[str, int]
) -> dict[str, Any]:
    name = head.metadata.get("tokenizer.ggml.pre")
    if name not in PRES:
        raise ModelError(
            f"{head.file}: tokenizer.ggml.pre is {name!r}, which is not supported; expected one of {', '.join(PRES)} "
            "(or set model.tokenizer)"
        )
    pre = PRES[name]
    merges = []
    for number, text in enumerate(head.metadata.get("tokenizer.ggml.merges", [])):
        left, _, right = text[1:].partition(" ")
        pair = [text[:1] + left, right]
        if (
            not right
            or pair[0] not in vocabulary
            or right not in vocabulary
            or "".join(pair) not in vocabulary
        ):
            raise ModelError(
                f"{head.file}: tokenizer.ggml.merges: {number} ({text!r}) is no pair of tokens that makes one"
            )
        merges.append(pair)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": pre.ignore_merges,
        "vocab": vocabulary,
        "merges": merges,
    }
    return {
        "added_tokens": _added(head, tokens, types, (CONTROL, USER_DEFINED, UNKNOWN)),
        **parts(pre),
        "post_processor": _around(head, bos=pre.bos) or (byte_level | {"trim_offsets": False}),
        "decoder": byte_level,
        "model": model,
    }


def _sentencepiece(
    head: Head, tokens: Sequence[str], types: np.ndarray, vocabulary: Mapping[str, int]
) -> dict[str, Any]:
    scores = head.metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise ModelError(
            f"{head.file}: tokenizer.ggml.scores: expected one of each of the {len(tokens)} tokens"
        )
    prefix = head.metadata.get("tokenizer.ggml.add_space_prefix", True)
    unknown = special_ids(head)["unknown"]
    escape = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    steps = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None if unknown is None else tokens[unknown],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": _merges(head, tokens, types, np.asarray(scores)),
    }
    first = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    return {
        "added_tokens": _added(head, tokens, types, (CONTROL, USER_DEFINED, UNKNOWN)),
        "normalizer": {"type": "Sequence", "normalizers": [*first, escape]},
        "pre_tokenizer": None,
        "post_processor": _around(head, bos=True),
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": model,
    }


def _merges(
    head: Head, tokens: Sequence[str], types: np.ndarray, scores: np.ndarray
) -> list[tuple[str, str]]:
    """SentencePiece joins the pair that makes the best token: the pairs of each token, best token first.

    Raises:
      ModelError: tokens of one score, between which the place in the text decides, which no list of merges can say.
    """
    normal = {tokens[i]: scores[i] for i in np.flatnonzero(types == NORMAL).tolist()}
    # Within a token in transformers' order: longer beginnings first.
    pairs = {
        token: [
            (token[:at], token[at:])
            for at in range(len(token) - 1, 0, -1)
            if token[:at] in normal and token[at:] in normal
        ]
        for token in normal
    }
    made = sorted((token for token in normal if pairs[token]), key=lambda token: -normal[token])
    equal = [(a, b) for a, b in pairwise(made) if normal[a] == normal[b]]
    if equal:
        raise ModelError(
            f"{head.file}: tokenizer.ggml.scores: {len(equal) + 1} tokens such as {equal[0][0]!r} and {equal[0][1]!r} "
            "have the same score, so the order of merges is not known (set model.tokenizer)"
        )
    return [pair for token in made for pair in pairs[token]]


def _added(
    head: Head, tokens: Sequence[str], types: np.ndarray, kinds: Sequence[int]
) -> list[dict[str, Any]]:
    name = str(head.metadata.get("general.name", "")).lower()
    phi3 = any(part in name for part in PHI3_NAMES)
    return [
        {
            "id": i,
            "content": tokens[i],
            "single_word": False,
            "lstrip": False,
            "rstrip": phi3 and tokens[i] not in PHI3_KEEP,
            "normalized": False,
            "special": bool(types[i] != USER_DEFINED),
        }
        for i in np.flatnonzero(np.isin(types, kinds)).tolist()
    ]


def _around(head: Head, *, bos: bool) -> dict[str, Any] | None:
    """What stands before and after a text; None for nothing. `bos` is what llama.cpp takes where the file is silent.

    Raises:
      ModelError: a token is to be added that the file does not name.
    """
    ids, tokens = special_ids(head), head.metadata[TOKENS]
    wanted = {
        name: head.metadata.get(f"tokenizer.ggml.add_{name}_token", usual)
        for name, usual in (("bos", bos), ("eos", False))
    }
    for name, add in wanted.items():
        if add and ids[name] is None:
            raise ModelError(
                f"{head.file}: tokenizer.ggml.add_{name}_token is true, but {name}_token_id is missing"
            )
    if not any(wanted.values()):
        return None
    texts = {name: tokens[ids[name]] for name, add in wanted.items() if add}

    def piece(name: str, kind: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": texts[name], "type_id": kind}}] if name in texts else []

    def around(sequence: str, kind: int) -> list[dict[str, Any]]:
        return [*piece("bos", kind), {"Sequence": {"id": sequence, "type_id": kind}}, *piece("eos", kind)]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {
            text: {"id": text, "ids": [ids[name]], "tokens": [text]} for name, text in texts.items()
        },
    }
