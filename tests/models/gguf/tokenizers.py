"""Small tokenizers as published models have them, and their writing by llama.cpp's conventions."""

import json
from typing import Any

import gguf
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as kinds
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

from jaxalign.models.gguf.vocabulary import PROBES

TEXTS = [*PROBES, "The quick brown fox jumps over the lazy dog, and it's 2024. " * 3, "I'll go; you'd stay."]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    from tokenizers import Regex

    cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([cut, ByteLevel(add_prefix_space=False, use_regex=False)])


# As in the tokenizer.json of GPT-2, SmolLM, Llama 3 and Qwen 2: name in GGUF -> how text is cut.
CUTS = {
    "gpt-2": lambda: ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": lambda: split(WORDS + r"\p{N}{1,3}" + REST),
    "qwen2": lambda: split(WORDS + r"\p{N}" + REST),
}


def byte_level(pre: str = "gpt-2", size: int = 400) -> PreTrainedTokenizerFast:
    """Byte-level BPE, with a start token where Llama 3 has one."""
    fast = Tokenizer(kinds.BPE(ignore_merges=pre == "llama-bpe"))
    fast.pre_tokenizer = CUTS[pre]()
    fast.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        fast.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(TEXTS, trainer)
    fast.add_tokens([AddedToken("<tool>", normalized=False)])
    if pre == "llama-bpe":
        fast.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 0)]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    made.chat_template = TEMPLATE
    return made


def sentencepiece(*, prefix: bool = True, size: int = 340) -> tuple[PreTrainedTokenizerFast, list[float]]:
    """SentencePiece as the tokenizer.json of Llama 2 (or Gemma, without prefix) has it, and its scores."""
    learnt = Tokenizer(kinds.BPE())
    learnt.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=size - 259, show_progress=False, limit_alphabet=60)
    learnt.train_from_iterator(TEXTS[:3] + TEXTS[-2:], trainer)
    pieces = [piece for piece, _ in sorted(learnt.get_vocab().items(), key=lambda item: item[1])]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    scores = [0.0] * 259 + [-float(place) for place in range(len(pieces))]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = generate_merges(vocabulary, {piece: scores[vocabulary[piece]] for piece in pieces})
    fast = Tokenizer(
        kinds.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    steps = [normalizers.Prepend("▁")] if prefix else []
    fast.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    ends = [decoders.Strip(" ", 1, 0)] if prefix else []
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    )
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    return made, scores


def written(
    tokenizer: Any, *, pre: str = "", scores: list[float] | None = None, prefix: bool = True, rows: int = 0
):
    """Writes a tokenizer as llama.cpp's converter does: `written(...)(writer, size)`."""
    body = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {token["id"]: token for token in body["added_tokens"]}
    there = {i: token for token, i in tokenizer.get_vocab().items()}

    def kind(i: int) -> int:
        if i not in there:
            return gguf.TokenType.UNUSED
        if i in added and not (scores and there[i] == "<unk>"):
            return gguf.TokenType.CONTROL if added[i]["special"] else gguf.TokenType.USER_DEFINED
        if scores and there[i] == "<unk>":
            return gguf.TokenType.UNKNOWN
        return gguf.TokenType.BYTE if scores and there[i].startswith("<0x") else gguf.TokenType.NORMAL

    def write(writer: gguf.GGUFWriter, size: int) -> None:
        size = max(size, rows, len(tokenizer))
        writer.add_tokenizer_model("llama" if scores else "gpt2")
        writer.add_tokenizer_pre(pre or "default")
        writer.add_token_list([there.get(i, f"[PAD{i}]") for i in range(size)])
        writer.add_token_types([int(kind(i)) for i in range(size)])
        if scores:
            writer.add_token_scores([*scores, *[-1000.0] * (size - len(scores))])
            writer.add_add_space_prefix(prefix)
        else:
            merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in body["model"]["merges"]]
            writer.add_token_merges(merges)
        writer.add_bos_token_id(tokenizer.bos_token_id)
        writer.add_eos_token_id(tokenizer.eos_token_id)
        if tokenizer.pad_token_id is not None:
            writer.add_pad_token_id(tokenizer.pad_token_id)
        if tokenizer.chat_template:
            writer.add_chat_template(tokenizer.chat_template)

    return write
