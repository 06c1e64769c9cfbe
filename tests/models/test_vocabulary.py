"""Two tokenizers are told apart by their maps of token strings to ids, and one is found in the other by bytes."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxalign import models
from jaxalign.errors import ModelError
from jaxalign.models.vocabulary import (
    added_differences,
    check_same_vocabulary,
    only_added_differ,
    token_bytes,
    vocabulary_map,
    vocabulary_size,
)

SHARED = Path(os.environ.get("JAXALIGN_SHARED", Path(__file__).parents[3] / "shared")) / "data"
LINES = ["the cat sat on the mat", "A cat, a hat; naïve 🦊!", "the end of the story.\nThe other cat"] * 5


def words(*tokens):
    """A tokenizer of whole words, made here; ids in the order given."""
    from tokenizers import Tokenizer
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(tokens)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(kinds.WordLevel(vocab=vocabulary, unk_token=tokens[0]))
    )


def test_the_same_map_passes_however_it_was_made(tiny_model_folder, byte_tokenizer):
    check_same_vocabulary(byte_tokenizer, models.load_tokenizer(tiny_model_folder))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            ("a", "b", "c"),
            ("a", "c", "b"),
            "3 and 3 tokens; .* id 1, 'b' for the doctor and 'c' for the patient",
        ),
        (("a", "b"), ("a", "b", "c"), "2 and 3 tokens; .* id 2, no token for the doctor and 'c' for the pat"),
        (("a", "b", "c"), ("a", "b"), "3 and 2 tokens; .* id 2, 'c' for the doctor and no token for the pat"),
        (("x", "b", "c"), ("a", "b", "d"), "id 0, 'x' for the doctor and 'a' for the patient"),
    ],
)
def test_difference_is_named_by_both_sizes_and_the_lowest_id(first, second, message):
    with pytest.raises(ModelError, match=message) as caught:
        check_same_vocabulary(words(*first), words(*second))
    assert "\n" not in str(caught.value)


def test_the_message_has_the_names_given():
    with pytest.raises(ModelError, match=r"tokenizers of judge and policy .* 'a' for the judge"):
        check_same_vocabulary(words("a"), words("b"), ("judge", "policy"))


def test_map_has_the_doctors_id_of_each_token_and_none_where_it_has_none():
    ids = vocabulary_map(words("a", "b", "c", "d"), words("d", "x", "a"))
    assert ids.dtype == np.int32
    assert ids.tolist() == [2, -1, -1, 0]


def wrapped(fast, **special):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=fast, **special)


@pytest.fixture(scope="module")
def gpt():
    """Byte-level BPE as GPT-2's, learned here; its end is its beginning and its unknown token too."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers import models as kinds

    fast = Tokenizer(kinds.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(LINES, trainer)
    return wrapped(fast, bos_token="<|end|>", eos_token="<|end|>", unk_token="<|end|>")


def sentencepiece(*tokens, special=("<unk>", "<s>", "</s>"), decoder=None, **roles):
    """A tokenizer as Llama's of special tokens, all bytes and the tokens given, in that order."""
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers import models as kinds

    texts = [*special, *(f"<0x{value:02X}>" for value in range(256)), *tokens]
    vocabulary = {text: index for index, text in enumerate(texts)}
    fast = Tokenizer(kinds.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token=special[0]))
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    fast.decoder = decoder or decoders.Sequence(steps)
    return wrapped(fast, **({"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"} | roles))


def pairs(patient, doctor):
    """The text of each mapped token of the patient, and of its partner."""
    one, other = ({index: text for text, index in t.get_vocab().items()} for t in (patient, doctor))
    ids = vocabulary_map(patient, doctor)
    return {one[index]: other[int(found)] for index, found in enumerate(ids) if found >= 0}


def test_a_space_is_a_space_however_it_is_spelled(gpt):
    llama = sentencepiece("▁", "▁the", "the", "▁cat", "▁dog", "t", "A", "▁hat", ",")
    found = pairs(llama, gpt)
    assert found.items() >= {"▁": "Ġ", "▁the": "Ġthe", "t": "t", "A": "A", "▁cat": "Ġcat", ",": ","}.items()
    assert found["<0x0A>"] == "Ċ" and found["<0xF0>"] == "ð" and "▁dog" not in found
    back = pairs(gpt, llama)
    assert back.items() >= {"Ġ": "▁", "Ġthe": "▁the", "Ċ": "<0x0A>", "A": "A", "ð": "<0xF0>"}.items()
    # All bytes, and the words that both have.
    assert len(back) >= 256 + len({"Ġthe", "Ġcat"}) + 1


def test_tokens_write_the_bytes_of_the_text_and_their_partners_the_same(gpt):
    llama = sentencepiece("▁", *"thecasonm", "▁the", "the")
    for text in LINES:
        for words, expected in ((gpt, text), (llama, " " + text)):
            written, tokens = token_bytes(words), words.tokenize(text, add_special_tokens=False)
            assert b"".join(written[token] for token in tokens) == expected.encode()
    for one, other in ((gpt, llama), (llama, gpt)):
        written, partners = token_bytes(one), token_bytes(other)
        special = {*one.all_special_tokens}
        assert all(written[x] == partners[y] for x, y in pairs(one, other).items() if x not in special)


def test_special_tokens_go_by_what_they_are_for(gpt):
    llama = sentencepiece("▁the", special=("<unk>", "<s>", "</s>", "<pad>", "<mask>"), pad_token="<pad>")
    # What GPT-2 names as unknown is its end: no partner of what is unknown or fills.
    assert {k: v for k, v in pairs(llama, gpt).items() if v == "<|end|>"} == {
        "<s>": "<|end|>",
        "</s>": "<|end|>",
    }
    assert pairs(gpt, llama)["<|end|>"] == "</s>"


def test_special_tokens_without_a_role_go_by_their_text_and_never_to_ordinary_ones():
    marks = ("<unk>", "<s>", "</s>", "<|user|>", "<|tool|>")
    patient = sentencepiece("▁a", "b", special=marks, additional_special_tokens=["<|user|>", "<|tool|>"])
    doctor = sentencepiece(
        "b", "<|tool|>", "▁a", special=("</s>", "<|user|>", "<s>", "<unk>"),
        additional_special_tokens=["<|user|>"],
    )  # fmt: skip
    found = pairs(patient, doctor)
    assert found["<|user|>"] == "<|user|>" and found["</s>"] == "</s>" and "<|tool|>" not in found
    # Nor does an ordinary token have a special one.
    assert "<|tool|>" not in pairs(doctor, patient)


def test_of_several_tokens_that_write_the_same_the_same_text_then_the_plain_then_the_first_is_taken(gpt):
    llama = sentencepiece("▁x", "A", "x", "<0x20>")
    assert pairs(gpt, llama)["A"] == "A"
    found = pairs(sentencepiece("x", "A", "▁"), llama)
    assert (found["A"], found["<0x41>"], found["x"], found["<0x78>"]) == ("A", "<0x41>", "x", "<0x78>")
    assert found["▁"] == "<0x20>"
    assert {pairs(llama, gpt)[x] for x in ("A", "<0x41>")} == {"A"}


def test_what_marks_a_space_is_read_off_the_decoder_and_plain_words_go_by_their_text(gpt):
    plain = words("Ġthe", "the", "<0x41>")
    assert pairs(plain, gpt) == {"the": "the"}
    assert token_bytes(plain)["<0x41>"] == b"<0x41>"
    from tokenizers import decoders

    fallback = decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback()])
    for decoder, byte in ((decoders.Metaspace(), b"<0x41>"), (fallback, b"A")):
        written = token_bytes(sentencepiece("▁the", decoder=decoder))
        assert (written["▁the"], written["<0x41>"]) == (b" the", byte)


def test_pieces_that_go_on_a_word_are_told_from_those_that_begin_one(gpt):
    from tokenizers import Tokenizer, decoders
    from tokenizers import models as kinds

    vocabulary = {text: index for index, text in enumerate(["[UNK]", "the", "##the", ",", "##t"])}
    fast = Tokenizer(kinds.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    fast.decoder = decoders.WordPiece()
    found = pairs(wrapped(fast, unk_token="[UNK]"), gpt)
    assert found == {"the": "Ġthe", "##the": "the", ",": ",", "##t": "t"}


def test_without_a_decoder_the_letters_of_the_vocabulary_say_how_it_is_spelled(gpt):
    bare = SimpleNamespace(get_vocab=gpt.get_vocab)
    assert token_bytes(bare) == token_bytes(gpt)
    llama = sentencepiece("▁the", "the")
    assert token_bytes(SimpleNamespace(get_vocab=llama.get_vocab)) == token_bytes(llama)


def test_added_text_with_letters_that_no_byte_has_is_plain(byte_tokenizer, tiny_model_folder):
    more = models.load_tokenizer(tiny_model_folder)
    more.add_tokens(["a  b"])
    written = token_bytes(more)
    assert written["a  b"] == b"a  b" and written["Ġ"] == b" "


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared tokenizers are not here")
def test_nearly_all_of_a_small_llama_is_found_in_gpt2():
    llama = models.load_tokenizer(SHARED / "models" / "stories260K")
    gpt2 = models.load_tokenizer(SHARED / "tokenizers" / "gpt2")
    assert (vocabulary_map(llama, gpt2) >= 0).sum() == 504  # of 512; 151 go by exact text
    assert (vocabulary_map(gpt2, llama) >= 0).sum() == 415


# --- tokenizers that differ in added tokens alone


def more(folder, *texts, special=True):
    tokenizer = models.load_tokenizer(folder)
    tokenizer.add_tokens([*texts], special_tokens=special)
    return tokenizer


@pytest.mark.parametrize("special", [True, False])
def test_what_a_doctor_has_been_given_beside_the_patients_tokens_is_no_difference(
    byte_tokenizer, tiny_model_folder, special
):
    doctor = more(tiny_model_folder, "<new>", special=special)
    assert (vocabulary_size(byte_tokenizer), vocabulary_size(doctor)) == (259, 260)
    check_same_vocabulary(doctor, byte_tokenizer)
    assert vocabulary_map(byte_tokenizer, doctor).tolist() == [*range(259)]
    # The other way the doctor would read what it does not know.
    with pytest.raises(ModelError, match="id 259, no token for the doctor and '<new>' for the patient"):
        check_same_vocabulary(byte_tokenizer, doctor)
    assert only_added_differ(doctor, byte_tokenizer) and only_added_differ(byte_tokenizer, doctor)
    assert vocabulary_map(doctor, byte_tokenizer).tolist() == [*range(259), -1]


def renamed(tokenizer, **texts):
    """A tokenizer of bytes whose special tokens have other texts, by role."""
    from tokenizers import Tokenizer

    body = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {role: getattr(tokenizer, f"{role}_token") for role in ("bos", "eos", "pad")}
    for role, text in texts.items():
        vocabulary = body["model"]["vocab"]
        vocabulary[text] = vocabulary.pop(special[role])
        for token in body["added_tokens"]:
            token["content"] = text if token["content"] == special[role] else token["content"]
    return wrapped(
        Tokenizer.from_str(json.dumps(body)), **{f"{k}_token": v for k, v in (special | texts).items()}
    )


def test_a_special_token_of_another_name_is_the_one_of_its_role(byte_tokenizer):
    other = renamed(byte_tokenizer, pad="<|pad|>", eos="<|im_end|>")
    for one, two in ((other, byte_tokenizer), (byte_tokenizer, other)):
        check_same_vocabulary(one, two)
        assert vocabulary_map(one, two).tolist() == [*range(259)]
    assert added_differences(byte_tokenizer, other) == (
        "the patient's '</s>' (id 257) is the doctor's '<|im_end|>' (id 257), "
        "the patient's '<pad>' (id 258) is the doctor's '<|pad|>' (id 258)"
    )


def test_what_differs_is_listed_with_ids_and_the_rest_is_counted(byte_tokenizer, tiny_model_folder):
    doctor = more(tiny_model_folder, "<x>", "<y>")
    patient = more(tiny_model_folder, "<y>", "<z>")
    assert vocabulary_map(patient, doctor).tolist() == [*range(259), 260, -1]
    assert added_differences(patient, doctor) == (
        "the patient's '<y>' (id 259) is the doctor's '<y>' (id 260), the patient's '<z>' (id 260) is none of the "
        "doctor's, the doctor's '<x>' (id 259) is none of the patient's"
    )
    with pytest.raises(ModelError, match="id 259, '<x>' for the doctor and '<y>' for the patient"):
        check_same_vocabulary(doctor, patient)
    many = more(tiny_model_folder, *(f"<{n}>" for n in range(20)))
    line = added_differences(byte_tokenizer, many)
    assert line.count("none of the patient's") == 6 and line.endswith(", and 14 more")


def test_an_ordinary_token_that_differs_is_no_added_one(byte_tokenizer, gpt):
    assert not only_added_differ(words("a", "b"), words("a", "b", "c"))
    assert not only_added_differ(words("a", "b", "c"), words("a", "c", "b"))
    assert not only_added_differ(byte_tokenizer, gpt)


def test_tokenizers_with_nothing_in_common_cannot_be_mapped():
    with pytest.raises(ModelError, match=r"\(2 and 3 tokens\) have no token in common"):
        vocabulary_map(words("a", "b"), words("x", "y", "z"))
