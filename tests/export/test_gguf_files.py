"""Models as GGUF files: what is written reads back as the model, or is not left."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.errors import ModelError
from jaxalign.export import gguf_files
from jaxalign.export.gguf_files import PROMPTS, save_gguf
from jaxalign.models.gguf import writer
from jaxalign.models.gguf.head import read_head
from jaxalign.models.gguf.settings import differences
from jaxalign.models.gguf.vocabulary import PROBES
from tests.models.gguf.tokenizers import byte_level, sentencepiece

GOLDEN = Path(__file__).parents[1] / "golden" / "models"


@pytest.fixture(autouse=True)
def no_llama(monkeypatch):
    """As where llama-cpp-python is not installed."""
    monkeypatch.setitem(sys.modules, "llama_cpp", None)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level("smollm")


def like(family: str, tokenizer, **changes) -> models.Transformer:
    """A random model of the shape of a golden one, with room for the tokenizer and a scale that the format has."""
    config = models.load_config(GOLDEN / family)
    ids = {"bos_id": tokenizer.bos_token_id, "eos_ids": (tokenizer.eos_token_id,)}
    scale = config.head_dim**-0.5 if config.query_scale else 0.0
    config = replace(config, vocab_size=len(tokenizer) + 3, query_scale=scale, generation="", **ids)
    return models.create(replace(config, **changes), key=jax.random.key(0))


@pytest.mark.parametrize(
    "family",
    [
        "llama",
        "llama3",
        "llama_linear",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "phi3",
    ],
)
def test_each_family_reads_back_exactly(family, tokenizer, tmp_path):
    model, said = like(family, tokenizer), []
    file = save_gguf(model, tmp_path / "m.gguf", tokenizer=tokenizer, dtype="float32", say=said.append)
    again = models.load_pretrained(file)
    assert differences(model.config, again.config) == []
    # Norms of Gemma are stored plus one, which rounds them.
    close = 1e-7 if family.startswith("gemma") else 0
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=close), again.params, model.params
    )
    windowed = family in ("mistral", "phi3")
    assert [("sliding window" in line) for line in said] == [True, False][not windowed :]
    assert said[-1] == (
        f"{file}: read back and compared, but llama.cpp itself was not asked: llama-cpp-python is not installed"
    )


def test_other_patterns_of_sliding_layers_are_in_the_file(tokenizer, tmp_path):
    model = like("gemma3_text", tokenizer, sliding_layers=(False, True, True, False, True, False, False))
    file = save_gguf(model, tmp_path / "m.gguf", tokenizer=tokenizer, say=lambda line: None)
    assert models.load_config(file).layer_slides == model.config.layer_slides


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "q8_0"])
def test_weights_are_rounded_to_the_type(dtype, tokenizer, tmp_path):
    model = like("llama", tokenizer, hidden_size=64, intermediate_size=40, head_dim=16)
    said = []
    file = save_gguf(model, tmp_path / "m.gguf", tokenizer=tokenizer, dtype=dtype, say=said.append)
    again, kinds = models.load_pretrained(file), read_head(file).tensors
    up, down = (np.asarray(model.params["layers"][name][0]) for name in ("up_proj", "down_proj"))
    if dtype == "q8_0":
        kind = gguf.GGMLQuantizationType.Q8_0
        up = gguf.dequantize(gguf.quantize(np.ascontiguousarray(up.T), kind), kind).T
        down = down.astype(np.float16)  # 40 columns are no whole blocks
        assert kinds["blk.0.ffn_down.weight"].kind == "F16" and kinds["token_embd.weight"].kind == "Q8_0"
        assert "2 tensors such as model.layers.0.mlp.down_proj.weight are F16" in said[0]
    else:
        up, down = up.astype(dtype), down.astype(dtype)
    np.testing.assert_array_equal(again.params["layers"]["up_proj"][0], up.astype(np.float32))
    np.testing.assert_array_equal(again.params["layers"]["down_proj"][0], down.astype(np.float32))
    np.testing.assert_array_equal(again.params["layers"]["input_norm"], model.params["layers"]["input_norm"])
    assert kinds["blk.0.attn_norm.weight"].kind == kinds["blk.0.attn_q.bias"].kind == "F32"


def test_the_package_reads_what_is_written(tokenizer, tmp_path):
    save_gguf(like("qwen2", tokenizer), tmp_path / "my.gguf", tokenizer=tokenizer, say=lambda line: None)
    fields = gguf.GGUFReader(tmp_path / "my.gguf").fields
    said = {
        "general.architecture": "qwen2",
        "general.name": "my",
        "general.file_type": 1,
        "qwen2.context_length": 32768,
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": tokenizer.chat_template,
    }
    assert {key: fields[key].contents() for key in said} == said
    assert fields["tokenizer.ggml.tokens"].contents()[-1] == f"[PAD{len(tokenizer) + 2}]"


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_is_written_as_scores(prefix, tmp_path):
    tokenizer, _ = sentencepiece(prefix=prefix)
    file = save_gguf(
        like("gemma", tokenizer), tmp_path / "m.gguf", tokenizer=tokenizer, say=lambda line: None
    )
    again = models.load_tokenizer(file)
    for text in (*PROBES, " a", "a</s> b"):
        assert again.encode(text) == tokenizer.encode(text)
        assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text))


def test_spaces_that_llama_cpp_has_otherwise_are_told(tmp_path):
    from tokenizers import pre_tokenizers

    tokenizer, _ = sentencepiece()
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    said = []
    save_gguf(like("gemma", tokenizer), tmp_path / "m.gguf", tokenizer=tokenizer, say=said.append)
    assert "begins with a space or follows a special token" in said[0]


# --- what is refused --------------------------------------------------------------------------


def refused(expected: str, folder: Path, model, tokenizer, **arguments) -> None:
    before = set(folder.rglob("*"))
    with pytest.raises(ModelError, match=expected) as error:
        save_gguf(model, folder / "m.gguf", tokenizer=tokenizer, say=lambda line: None, **arguments)
    assert "\n" not in str(error.value)
    assert set(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [
        ("gpt2", {}, "a gpt2 model cannot be written as GGUF; expected one of gemma, "),
        ("gemma2", {"query_scale": 0.3}, r"no form of the model's scale \(0\.3, read as"),
        ("qwen2", {"sliding_window": 8}, r"no form of the model's sliding_window \(8, read as 0\)"),
        ("qwen2", {"embedding_scale": 2.0}, r"no form of the model's embedding_scale \(2\.0, read as 1\.0\)"),
        ("qwen3", {"qkv_bias": True}, r"no form of the model's qkv_bias \(True, read as False\)"),
        ("llama", {"activation": "gelu"}, r"no form of the model's activation \(gelu, read as silu\)"),
        ("llama", {"eos_ids": (0, 1, 2, 3)}, r"the model has 4 end tokens .* the format has three at most"),
        ("llama", {"vocab_size": 99}, r"the tokenizer has a token \d+, but the model's vocabulary has 99"),
    ],
)
def test_a_model_that_the_format_has_no_form_of_is_refused(family, changes, expected, tokenizer, tmp_path):
    refused(expected, tmp_path, like(family, tokenizer, **changes), tokenizer)


def test_a_tokenizer_that_the_format_has_no_form_of_is_refused(byte_tokenizer, tmp_path):
    from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(kinds.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    )
    lower, whole, strips = byte_level(), byte_level(), byte_level()
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    whole.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    strips.add_tokens([AddedToken("<strip>", rstrip=True)])
    pieces, _ = sentencepiece()
    body = json.loads(pieces.backend_tokenizer.to_str())
    body["model"]["merges"].pop(5)  # SentencePiece makes each token of every pair that there is
    merged = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(body)), eos_token="</s>")
    cases = [
        (words, "a WordLevel tokenizer has no form there; expected BPE"),
        (byte_tokenizer, "the tokenizer has no merges"),
        (lower, "llama.cpp has no name for the way in which the tokenizer cuts text"),
        (whole, "llama.cpp has no name for the way in which the tokenizer cuts text"),
        (strips, "added tokens of the tokenizer strip spaces"),
        (merged, "the merges of the tokenizer are not those of a SentencePiece model"),
    ]
    model = like("llama", pieces, vocab_size=500, eos_ids=())
    for tokenizer, expected in cases:
        refused(expected, tmp_path, model, tokenizer)


def test_only_a_gguf_file_is_replaced(tokenizer, tmp_path):
    model = like("llama", tokenizer)
    (tmp_path / "m.gguf").write_text("notes")
    refused("exists and is no GGUF file; nothing was replaced", tmp_path, model, tokenizer)
    (tmp_path / "m.gguf").write_bytes(b"GGUF of before")
    save_gguf(model, tmp_path / "m.gguf", tokenizer=tokenizer, say=lambda line: None)
    assert models.load_config(tmp_path / "m.gguf").family == "llama"
    expected = "dtype: expected float32, float16, bfloat16, q8_0 for GGUF, got q4_k"
    refused(expected, tmp_path, model, tokenizer, dtype="q4_k")


def test_a_number_beyond_float16_is_refused(tokenizer, tmp_path):
    model = like("llama", tokenizer)
    params = jax.tree.map(lambda x: x, model.params)
    params["layers"]["up_proj"] = params["layers"]["up_proj"].at[0, 0, 0].set(1e5)
    model = models.Transformer(model.config, params)
    refused(r"blk\.0\.ffn_up\.weight: a weight exceeds the largest float16", tmp_path, model, tokenizer)


@pytest.mark.parametrize(
    ("family", "step", "wrong", "tensor"),
    [
        ("llama", "head_order", lambda rows, heads: np.arange(rows), r"blk\.0\.attn_q\.weight"),
        ("gemma", "is_shifted", lambda ending, name: False, r"output_norm\.weight"),
    ],
)
def test_a_file_that_is_written_wrong_is_not_left(
    family, step, wrong, tensor, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(writer, step, wrong)
    model = like(family, tokenizer)
    refused(f"{tensor} does not read back as it was written; nothing was kept", tmp_path, model, tokenizer)


# --- llama.cpp --------------------------------------------------------------------------------


def stand_in(tokenizer, change=lambda row, at: row, cut=lambda ids: ids, readable: bool = True) -> ModuleType:
    """llama-cpp-python with jaxalign's own model inside, and its logits changed."""

    class Llama:
        def __init__(self, path: str, *, n_ctx: int, **_) -> None:
            if not readable:
                raise ValueError(f"Failed to load model from file: {path}")
            self.model, self.ids = models.load_pretrained(path), []
            self.logits = jax.jit(self.model)
            self.scores = np.zeros((n_ctx, self.model.config.vocab_size), np.float32)

        def tokenize(self, text: bytes, **_) -> list[int]:
            return cut(tokenizer.encode(text.decode()))

        def reset(self) -> None:
            self.ids = []

        @property
        def n_tokens(self) -> int:
            return len(self.ids)

        def eval(self, ids: list[int]) -> None:
            self.ids = [*self.ids, *ids]
            last, padded = len(self.ids) - 1, jnp.asarray([self.ids + [0] * (64 - len(self.ids))])
            self.scores[last] = change(np.asarray(self.logits(padded))[0, last], len(self.ids))

    module = ModuleType("llama_cpp")
    module.Llama = Llama
    return module


def best_but_one(row: np.ndarray, by: float) -> np.ndarray:
    """The second best token, made the best by so many nats."""
    row = row.copy()
    row[np.argsort(row)[-2]] = row.max() + by
    return row


def test_llama_cpp_is_asked_where_it_is_installed(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_files, "NEW_TOKENS", 4)
    monkeypatch.setitem(sys.modules, "llama_cpp", stand_in(tokenizer))
    said, model = [], like("llama", tokenizer)
    save_gguf(model, tmp_path / "m.gguf", tokenizer=tokenizer, dtype="q8_0", say=said.append)
    count = 4 * len(PROMPTS)
    assert said[-1].endswith(f"writes the model's tokens: {count} of {count} greedy ones")


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ({"readable": False}, "llama.cpp cannot read the file"),
        ({"cut": lambda ids: ids[1:]}, "llama.cpp makes .* of 'Once upon a time', and the model's tokenizer"),
        (
            {"change": lambda row, at: row[::-1] if at > 9 else row},
            r"after '.*' and \d tokens llama.cpp chooses .*, and the model .* nats better, 0.05 allowed",
        ),
    ],
)
def test_what_llama_cpp_reads_otherwise_is_not_left(module, expected, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_files, "NEW_TOKENS", 4)
    monkeypatch.setitem(sys.modules, "llama_cpp", stand_in(tokenizer, **module))
    refused(expected, tmp_path, sharp(like("llama", tokenizer)), tokenizer)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "phi3"])
def test_the_real_llama_cpp_writes_the_models_tokens(family, tokenizer, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "llama_cpp")
    pytest.importorskip("llama_cpp")
    said, changes = [], {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "max_positions": 256}
    if family == "gemma3_text":
        changes |= {"query_scale": 0.25, "embedding_scale": 8.0}
    if family == "phi3":
        changes |= {"sliding_window": 0}  # llama.cpp ignores it
    model = like(family, tokenizer, **changes)
    save_gguf(model, tmp_path / "m.gguf", tokenizer=tokenizer, say=said.append)
    assert "writes the model's tokens: " in said[-1]


def test_a_near_tie_is_no_other_choice(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_files, "NEW_TOKENS", 4)
    monkeypatch.setitem(gguf_files.GAPS, "float16", 100.0)
    module = stand_in(tokenizer, change=lambda row, at: best_but_one(row, 1.0))
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    said = []
    save_gguf(sharp(like("llama", tokenizer)), tmp_path / "m.gguf", tokenizer=tokenizer, say=said.append)
    assert said[-1].endswith(": 0 of 16 greedy ones; 16 near ties differ (by up to 100.0 nats)")


def sharp(model: models.Transformer) -> models.Transformer:
    """The model with larger matrices: it prefers some tokens by more than rounding."""
    return models.Transformer(model.config, jax.tree.map(lambda x: 4 * x, model.params))
