import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from jaxalign import models
from jaxalign.cli import main as cli
from jaxalign.cli.chat import ChatConfig, Conversation, chat
from jaxalign.errors import ConfigError, DataError, ModelError, UserError
from jaxalign.inference import loading
from jaxalign.inference.generate import GenerateConfig, complete, generate
from jaxalign.inference.loading import ChatModel, Stream, load_speaker, model_folder, run_data
from jaxalign.kernels import matmul
from jaxalign.models.memory import bytes_of, sized
from jaxalign.models.tensor_dtypes import device_dtype
from jaxalign.rollout import SamplingConfig, decode

SHORT = SamplingConfig(max_new_tokens=6)


@pytest.fixture(scope="module")
def chat_model(tiny_model_folder):
    return load_speaker(str(tiny_model_folder))


@pytest.fixture
def run_folder(tiny_model_folder, tmp_path):
    """A run folder as training leaves it, whose data was written with turn markers."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "metadata.json").write_text("{}")
    (run / "config.yaml").write_text(
        yaml.safe_dump({"data": {"template": "markers", "human": "Q:", "assistant": "A:"}})
    )
    (run / "export").symlink_to(tiny_model_folder)
    return run


def test_completions_come_in_prompt_order_with_samples_together(tiny_model_folder):
    config = GenerateConfig(
        model=str(tiny_model_folder),
        prompt=("one", "two"),
        sampling=replace(SHORT, num_samples=2),
        batch_size=1,
    )
    rows = generate(config)
    assert [row["prompt"] for row in rows] == ["one", "one", "two", "two"]
    assert rows[0]["completion"] != rows[1]["completion"]
    assert all(1 <= row["tokens"] <= 6 and row["logp"] < 0 for row in rows)


def test_batch_size_does_not_change_what_is_drawn(tiny_model_folder):
    config = GenerateConfig(model=str(tiny_model_folder), prompt=("one", "two", "three"), sampling=SHORT)
    one, all_ = (generate(replace(config, batch_size=size)) for size in (1, 3))
    assert [row["completion"] for row in one] == [row["completion"] for row in all_]


def test_seed_changes_what_is_drawn(chat_model):
    config = GenerateConfig(sampling=SHORT)
    assert complete(chat_model, ["one"], config) == complete(chat_model, ["one"], config)
    assert complete(chat_model, ["one"], config) != complete(chat_model, ["one"], replace(config, seed=1))


def test_logp_is_that_of_the_completion_under_the_model(chat_model):
    row = complete(chat_model, ["one"], GenerateConfig(sampling=SHORT))[0]
    prompt = chat_model.encode("one")
    from jaxalign import models

    done = chat_model.sampler.generate(
        [prompt], key=__import__("jax").random.key(0), **SHORT.arguments(), row_ids=[0]
    )
    tokens = prompt + done.token_lists()[0]
    model = models.merge(chat_model.sampler.definition, chat_model.sampler.params)
    logits = np.asarray(model(np.asarray([tokens]), lengths=np.asarray([len(tokens)])))[0]
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = sum(logps[i - 1, tokens[i]] for i in range(len(prompt), len(tokens)))
    assert row["logp"] == pytest.approx(expected, abs=1e-3)


def test_file_of_prompts_is_read_and_results_are_written_whole(tiny_model_folder, tmp_path, capsys):
    rows = [{"prompt": "one"}, {"prompt": [{"role": "user", "content": "two"}]}, {"prompt": "three"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "deep" / "out.jsonl"
    arguments = ["--model", str(tiny_model_folder), "--file", str(tmp_path / "in.jsonl"), "--limit=2"]
    assert cli.main(["generate", *arguments, "--output", str(out), "--sampling.max_new_tokens=4"]) == 0
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in written] == ["one", [{"role": "user", "content": "two"}]]
    assert [p.name for p in out.parent.iterdir()] == ["out.jsonl"]
    assert "2 completions" in capsys.readouterr().out


def test_chat_rows_are_asked_up_to_the_last_answer(chat_model):
    from jaxalign.data import Demonstration, Message
    from jaxalign.inference.generate import prompt_of

    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    assert [turn["content"] for turn in prompt_of(Demonstration(turns, None))] == ["a", "b", "c"]


def test_rows_of_text_are_prompts_to_continue_and_labelled_rows_are_prompts(tmp_path):
    from jaxalign.inference.generate import GenerateConfig, _questions_of_file

    rows = [{"text": "Once"}], [{"prompt": "P", "response_1": "a", "score": 3}]
    for row, prompt in zip(rows, ("Once", "P"), strict=True):
        (tmp_path / "rows.jsonl").write_text(json.dumps(row[0]))
        [question] = _questions_of_file(GenerateConfig(model="m", file=str(tmp_path / "rows.jsonl")))
        assert (question.turns, question.layout) == ((prompt,), "")


def test_prompts_are_written_as_the_run_that_made_the_model_did(run_folder, tiny_model_folder):
    told = load_speaker(str(run_folder))
    assert told.format.template == "markers"
    assert told.tokenizer.decode(told.encode("hi")) == "Q: hiA:"
    plain = load_speaker(str(tiny_model_folder))
    assert plain.tokenizer.decode(plain.encode("hi")) == "hi"
    assert run_data(str(tiny_model_folder)) == {}


def test_template_of_the_tokenizer_is_used_where_there_is_one(tiny_model_folder, byte_tokenizer, tmp_path):
    from jaxalign.inference.loading import format_of

    assert format_of(byte_tokenizer, "auto", "x").template == "plain"
    with_template = type(byte_tokenizer).from_pretrained(str(tiny_model_folder))
    with_template.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert format_of(with_template, "auto", "x").template == "tokenizer"
    assert format_of(with_template, "plain", "x").template == "plain"


def test_system_message_comes_first(tiny_model_folder):
    chat_model = load_speaker(str(tiny_model_folder), template="markers")
    assert chat_model.tokenizer.decode(chat_model.encode("hi", "Be kind.")).startswith("Be kind.")


def test_continuation_keeps_the_space_between_prompt_and_completion(chat_model):
    prompt, completion = (
        chat_model.encode("one"),
        chat_model.tokenizer(" two", add_special_tokens=False)["input_ids"],
    )
    assert chat_model.continuation(prompt, completion) == " two"


def test_run_folder_stands_for_its_export(run_folder, tmp_path):
    assert model_folder(str(run_folder)) == str(run_folder / "export")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "metadata.json").write_text("{}")
    with pytest.raises(ModelError, match="no export/ yet"):
        model_folder(str(empty))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prompt": ()}, ConfigError, "expected --prompt"),
        ({"model": ""}, ConfigError, "--model: expected a Hugging Face folder"),
        ({"file": "none.jsonl"}, DataError, "none.jsonl"),
        ({"prompt": ("long " * 20,)}, UserError, "context of 64"),
        ({"output": "."}, ConfigError, "is a folder"),
    ],
)
def test_mistake_is_named_in_one_line(tiny_model_folder, changes, error, message):
    config = GenerateConfig(model=str(tiny_model_folder), prompt=("one",), sampling=SHORT)
    with pytest.raises(error, match=message) as caught:
        generate(replace(config, **changes))
    assert "\n" not in str(caught.value)


def test_failed_write_leaves_nothing_behind(tiny_model_folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    config = GenerateConfig(
        model=str(tiny_model_folder), prompt=("one",), sampling=SHORT, output=str(tmp_path / "o.jsonl")
    )
    with pytest.raises(OSError, match="No space"):
        generate(config)
    assert list(tmp_path.iterdir()) == []


def test_chat_answers_each_turn_and_obeys_its_commands(tiny_model_folder):
    said = []
    config = ChatConfig(
        model=str(tiny_model_folder), sampling=replace(SHORT, max_new_tokens=3), template="markers"
    )
    chat(
        config,
        lines=["hello\n", "\n", "/undo\n", "/help\n", "again\n", "/quit\n", "never\n"],
        write=said.append,
    )
    assert len(said) == 3
    assert said[1].startswith("/reset")


def test_undone_turn_is_gone_and_reset_forgets_all(chat_model):
    talk = Conversation(chat_model, ChatConfig(sampling=SHORT))
    talk.answer("one")
    talk.answer("two")
    talk.undo()
    assert talk.turns[0]["content"] == "one"
    assert len(talk.turns) == 2
    talk.reset()
    assert talk.turns == []


def test_plain_conversation_continues_its_own_text(chat_model):
    talk = Conversation(chat_model, ChatConfig(sampling=SHORT))
    reply = talk.answer("one")
    assert talk._said([*talk.turns, {"role": "user", "content": "two"}]) == "one" + reply + "two"


def test_oldest_turns_leave_a_full_context(chat_model):
    talk = Conversation(chat_model, ChatConfig(sampling=SHORT))
    talk.turns = [
        {"role": "user", "content": "x" * 50},
        {"role": "assistant", "content": "y" * 10},
    ]
    ids = talk._ids([*talk.turns, {"role": "user", "content": "last"}])
    assert chat_model.tokenizer.decode(ids) == "last"


def test_turn_longer_than_the_context_is_said_and_not_kept(tiny_model_folder):
    said = []
    config = ChatConfig(model=str(tiny_model_folder), sampling=SHORT)
    chat(config, lines=["x" * 100, "short"], write=said.append)
    assert "100 tokens, but the context of 64 tokens leaves room for 58" in said[0]
    assert len(said) == 2


def test_a_completion_is_written_while_it_is_made_and_is_the_same(tiny_model_folder, capsys):
    config = GenerateConfig(
        model=str(tiny_model_folder), prompt=("one",), sampling=SamplingConfig(max_new_tokens=30)
    )
    chat_model = load_speaker(str(tiny_model_folder))
    whole, pieces = complete(chat_model, ["one"], config)[0], []
    assert complete(chat_model, ["one"], config, write=pieces.append) == [whole]
    assert "".join(pieces) == whole["completion"].strip()
    assert sum(map(bool, pieces)) > 2
    assert generate(config) == [whole]
    shown = capsys.readouterr().out
    assert (
        shown
        == f"> one\n{whole['completion'].strip()}\n[{whole['finish_reason']}, 30 tokens, logp {whole['logp']}]\n\n"
    )


def test_a_stream_holds_back_what_is_no_character_yet_and_says_all_of_a_text_that_changes(byte_tokenizer):
    class Sampler:
        block = 64

    ids = byte_tokenizer.encode("né tu", add_special_tokens=False)
    chat_model = ChatModel(Sampler(), byte_tokenizer, None, 64)
    pieces = []
    stream = Stream(chat_model, [], pieces.append)
    for count in range(1, len(ids) + 1):
        stream(np.asarray([ids]), [count])
    assert "".join(pieces) == "né tu" and pieces[:3] == ["n", "", "é"]
    stream.end("né tua")
    assert pieces[-1] == "a"
    stream.end("other")
    assert pieces[-1] == "\nother"
    assert chat_model.sampler.block < 64
    # What is said of an interruption does not stand behind half an answer.
    with pytest.raises(KeyboardInterrupt), stream:
        raise KeyboardInterrupt
    assert pieces[-1] == "\n"


def test_chat_prints_an_answer_as_it_is_made(tiny_model_folder, capsys):
    config = ChatConfig(model=str(tiny_model_folder), sampling=SamplingConfig(max_new_tokens=20))
    answers = []
    chat(config, lines=["one", "two"], write=answers.append)
    chat(config, lines=["one", "two"])
    assert capsys.readouterr().out == "".join(answer + "\n" for answer in answers)


@pytest.mark.long
@pytest.mark.parametrize("cache", ["same", "int8"])
def test_the_start_says_the_bytes_that_are_then_taken(cache, tiny_model_folder, capsys, monkeypatch):
    taken = []

    def watched(name):
        function = getattr(decode, name)

        def run(*args, **options):
            found = function(*args, **options)
            taken.append(bytes_of(found.keys, found.values))
            return found

        monkeypatch.setattr(decode, name, run)

    for name in ("new_cache", "rearranged"):
        watched(name)
    sampling = SamplingConfig(max_new_tokens=20, num_samples=3, stop_tokens=())
    # The second prompt is the longest, and is read in another batch.
    settings = {"prompt": ("one", "t" * 30), "batch_size": 1, "model": str(tiny_model_folder)}
    generate(GenerateConfig(sampling=sampling, cache=cache, **settings))
    shown = capsys.readouterr()
    size = bytes_of(models.load_pretrained(tiny_model_folder).params)
    lines = shown.err.splitlines()
    assert lines[0].startswith(f"model: {tiny_model_folder} (llama, ")
    assert lines[0].endswith(f" parameters, {sized(size)} in float32)")
    assert lines[1] == "devices: 1 of 8 cpu"
    assert lines[2].startswith(
        f"cache: {sized(max(taken))} of keys and values (3 completions, with prompt up to 50 tokens); "
    )
    assert "cache:" not in shown.out


def test_of_8_bit_weights_no_floats_stay(tiny_model_folder, live_bytes):
    begun = live_bytes(collected=True)
    chat_model = load_speaker(str(tiny_model_folder), weights="int8")
    rounded = bytes_of(models.load_pretrained(tiny_model_folder, weights="int8").params)
    assert bytes_of(chat_model.sampler.params) == rounded
    assert live_bytes(collected=True) - begun < 1.1 * rounded


def test_weights_are_bfloat16_where_the_device_likes_it_and_nothing_else_is_said(
    tiny_model_folder, monkeypatch
):
    gpu = SimpleNamespace(platform="gpu")
    monkeypatch.setattr(loading, "device_dtype", lambda asked, device: device_dtype(asked, gpu))
    monkeypatch.setattr(matmul, "cpu_flags", lambda: frozenset({"amx_bf16"}))
    lines = []
    for options in ({}, {"param_dtype": "float32"}):
        chat_model = load_speaker(str(tiny_model_folder), tell=lines.append, **options)
        assert chat_model.sampler.config.param_dtype == options.get("param_dtype", "bfloat16")
        assert chat_model.sampler.config.compute_dtype == "bfloat16"
    assert "rounded from float32, which --param_dtype=float32 would not do)" in lines[0]
    assert lines[2].endswith("in float32; products in bfloat16 (--compute_dtype=auto: a cpu))")
    load_speaker(str(tiny_model_folder), compute_dtype="float32", tell=lines.append)
    assert "; products in float32; rounded from float32" in lines[4]
