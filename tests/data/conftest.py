"""Two small tokenizers made on the spot, in the two manners there are: byte-level, and with space marks."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(chat_template=None, eos="<eos>"):
    """As GPT-2's: every byte a token, a few merges, nothing put before a text."""
    specials = ["<eos>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("Ġ", "a"), ("h", "i")]
    vocab = {token: i for i, token in enumerate([*specials, *letters, *(a + b for a, b in merges)])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(specials)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, chat_template=chat_template)


def spaced_tokenizer():
    """As Llama's: `<s>` and a space mark put before a text; no padding token."""
    letters = list("▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:!?\n")
    merges = [("▁", "a"), ("▁", "o"), (".", "\n")]
    vocab = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>", *letters, *(a + b for a, b in merges)])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def plain_bytes():
    return byte_tokenizer()


@pytest.fixture(scope="session")
def chatml():
    return byte_tokenizer(CHATML, eos="<|im_end|>")


@pytest.fixture(scope="session")
def spaced():
    return spaced_tokenizer()


@pytest.fixture
def no_eos():
    return byte_tokenizer(eos=None)


@pytest.fixture
def no_system():
    """A template that refuses system turns, as Gemma 2's does."""
    return byte_tokenizer(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
        "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    )


@pytest.fixture
def write(tmp_path):
    """Writes rows as JSON lines and returns the path."""

    def make(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return make
