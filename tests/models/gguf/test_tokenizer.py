"""The tokenizer of a GGUF file gives the ids of the one it was made of; what cannot be known is refused by name."""

from pathlib import Path

import gguf
import pytest

from jaxalign import models
from jaxalign.errors import ModelError
from jaxalign.models.gguf.vocabulary import PROBES
from tests.models.gguf.tokenizers import CUTS, byte_level, sentencepiece, written

CHAT = [{"role": "user", "content": "How's 12345 + 1?"}, {"role": "assistant", "content": "12346."}]
MORE = (" begins with a space", "two  spaces<tool>and more<|im_end|>\nok", "", "日本 ½ \u00e9 e\u0301")


def file_of(write, file: Path, add=lambda writer: None) -> Path:
    """A file with a tokenizer and nothing else."""
    writer = gguf.GGUFWriter(file, "llama")
    write(writer, 0)
    add(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return file


def same(ours, theirs, texts) -> None:
    for text in texts:
        assert ours.encode(text) == theirs.encode(text), text
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, add_special_tokens=False) == ids
        for skip in (False, True):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("pre", CUTS)
def test_byte_level_ids_and_chats_are_those_of_the_folder(pre, tmp_path):
    theirs = byte_level(pre)
    size = len(theirs) + 5
    ours = models.load_tokenizer(file_of(written(theirs, pre=pre, rows=size), tmp_path / "t.gguf"))
    same(ours, theirs, (*PROBES, *MORE))
    assert len(ours) == len(theirs)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)
    for prompt in (False, True):
        arguments = {"tokenize": False, "add_generation_prompt": prompt}
        assert ours.apply_chat_template(CHAT, **arguments) == theirs.apply_chat_template(CHAT, **arguments)
    ours.save_pretrained(tmp_path / "saved")
    same(models.load_tokenizer(tmp_path / "saved"), theirs, (*PROBES, *MORE))


def test_each_way_to_cut_gives_other_ids():
    text = "They'RE 12345, e\u0301 \n\n ok"
    assert len({tuple(byte_level(pre).encode(text, add_special_tokens=False)) for pre in CUTS}) == len(CUTS)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_ids_are_those_of_the_folder(prefix, tmp_path):
    theirs, scores = sentencepiece(prefix=prefix)
    ours = models.load_tokenizer(file_of(written(theirs, scores=scores, prefix=prefix), tmp_path / "t.gguf"))
    same(ours, theirs, (*PROBES, *MORE, "a</s>b c", "</s> d"))
    assert ours.encode("a")[0] == 1
    assert any(len(token) > 3 for token in theirs.tokenize("Once upon a time the quick brown fox"))


def test_phi3s_special_tokens_take_the_space_after_them_away(tmp_path):
    theirs, scores = sentencepiece()
    theirs.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    scores = [*scores, 0.0]
    ids = []
    for name in ("Phi-3 mini", "another"):
        file = file_of(
            written(theirs, scores=scores), tmp_path / "t.gguf", lambda w, name=name: w.add_name(name)
        )
        ids.append(models.load_tokenizer(file).encode("<|user|>\nquick"))
    assert len(ids[0]) < len(ids[1])


def test_several_templates_keep_their_names(tmp_path):
    def add(writer):
        writer.add_chat_template(
            [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
        )

    tokenizer = byte_level()
    tokenizer.chat_template = None
    ours = models.load_tokenizer(file_of(written(tokenizer, pre="gpt-2"), tmp_path / "t.gguf", add))
    assert ours.chat_template == {"default": "D", "tool_use": "T"}


def keys(**values):
    def add(writer):
        for name, value in values.items():
            key = name.replace("__", ".")
            writer.kv_data[0].pop(key, None)
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            elif value is not None:
                writer.add_array(key, value)

    return add


@pytest.mark.parametrize(
    ("add", "expected"),
    [
        (keys(tokenizer__ggml__pre="falcon"), r"tokenizer\.ggml\.pre is 'falcon', which is not supported"),
        (keys(tokenizer__ggml__pre=None), r"tokenizer\.ggml\.pre is None, which is not supported"),
        (keys(tokenizer__ggml__model="bert"), r"tokenizer\.ggml\.model is 'bert'; expected gpt2 or llama"),
        (keys(tokenizer__ggml__model=None), r"no tokenizer; expected tokenizer\.ggml\.model"),
        (keys(tokenizer__ggml__tokens=["a", "b"]), r"token_type has \d+ entries for 2 tokens"),
        (keys(tokenizer__ggml__merges=["a zz"]), r"merges: 0 \('a zz'\) is no pair of tokens"),
        (
            keys(tokenizer__ggml__remove_extra_whitespaces=True),
            r"remove_extra_whitespaces is True; only False",
        ),
        (
            keys(tokenizer__ggml__bos_token_id=None, tokenizer__ggml__add_bos_token=True),
            "bos_token_id is missing",
        ),
    ],
)
def test_what_cannot_be_known_is_refused_by_name(add, expected, tmp_path):
    file = file_of(written(byte_level(), pre="gpt-2"), tmp_path / "t.gguf", add)
    with pytest.raises(ModelError, match=expected) as error:
        models.load_tokenizer(file)
    assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)


def test_equal_scores_are_refused(tmp_path):
    theirs, scores = sentencepiece()
    with pytest.raises(ModelError, match="have the same score, so the order of merges is not known"):
        models.load_tokenizer(file_of(written(theirs, scores=[-1000.0] * len(scores)), tmp_path / "t.gguf"))
