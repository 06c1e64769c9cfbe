import json

import pytest

from jaxalign import models
from jaxalign.cli import check as checks
from jaxalign.cli import main as cli
from jaxalign.cli.check import CheckConfig, check, data, histogram, hub_access
from jaxalign.data import DataConfig
from jaxalign.errors import DataError, ModelError
from jaxalign.models.memory import bytes_of, sized


@pytest.fixture
def pairs(tmp_path):
    """Two preference rows; the second is a tie of length 40 with the first's prompt."""
    rows = [
        {"prompt": "Hi", "chosen": "good", "rejected": "bad!!"},
        {"prompt": "Hi", "chosen": "g" * 20, "rejected": "b" * 20},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config_for(path, **changes):
    return CheckConfig(data=DataConfig(train=(path,), template="plain"), **changes)


def test_environment_names_versions_memory_and_devices(capsys):
    check(CheckConfig())
    shown = capsys.readouterr().out
    for word in ("python", "jax ", "flax", "transformers", "GiB memory", "8 x cpu", "hub token"):
        assert word in shown


def test_hub_token_is_told_but_never_printed(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret123")
    check(CheckConfig())
    shown = capsys.readouterr()
    assert "hub token     present" in shown.out
    assert "secret" not in shown.out + shown.err


def test_model_folder_is_described(tiny_model_folder, capsys):
    assert cli.main(["check", "--model", str(tiny_model_folder)]) == 0
    shown = capsys.readouterr().out
    assert "llama, 2 layers, width 16, 2 heads, 1 for keys and values" in shown
    assert "vocabulary 259, context 64 tokens" in shown


def test_bytes_of_model_cache_and_doctors_are_told(make_doctor, tiny_model_folder, capsys):
    adapter, whole = make_doctor("safe", adapter=True), make_doctor("kind", seed=2)
    doctors = f"--doctor=[{adapter}, {whole}]"
    assert cli.main(["check", doctors]) == 0
    shown = capsys.readouterr().out
    params = models.load_pretrained(tiny_model_folder).params
    count, size, rounded = (
        models.params_count(params),
        bytes_of(params),
        bytes_of(models.quantize_params(params)),
    )
    sizes = f"{sized(size)} in float32, {sized(size / 2)} in bfloat16, {sized(rounded)} in int8"
    assert f"memory        {count:,} parameters: {sizes}\n" in shown
    # Two layers, keys and values of one head of 8.
    assert "cache         per token: 0.1 KiB in float32, 0.1 KiB in bfloat16, 0.0 KiB in int8\n" in shown
    assert f"doctor        {adapter / 'export'} (safe): an adapter of " in shown
    assert f"doctor        {whole / 'export'} (kind): {count:,} parameters: {sizes}\n" in shown
    assert cli.main(["check", f"--doctor={tiny_model_folder}"]) == 2
    assert "doctor.json" in capsys.readouterr().err


def test_rows_are_shown_as_tokens_with_their_mask(pairs, byte_tokenizer):
    lines = list(data(config_for(pairs, rows=1), byte_tokenizer))
    text = "\n".join(lines)
    assert "format preference\n" in text
    assert "as comparison: 2 rows read, 2 used; 0 longer than data.max_length = 1024" in text
    assert "row 1 of 2: 7 tokens, 5 in the loss" in text
    assert "loss       5  'good</s>'" in text
    assert "masked     2  'Hi'" in text
    assert "loss       6  'bad!!</s>'" in text


def test_rows_over_the_limit_are_counted_but_stay_in_the_histogram(pairs, byte_tokenizer):
    config = CheckConfig(data=DataConfig(train=(pairs,), template="plain", max_length=10))
    text = "\n".join(data(config, byte_tokenizer))
    assert "1 longer than data.max_length = 10" in text
    assert "longest 23" in text


def test_looking_at_data_leaves_nothing_in_the_cache(pairs, byte_tokenizer, tmp_path):
    data_config = DataConfig(train=(pairs,), template="plain", cache=str(tmp_path / "cache"))
    assert "2 rows read, 2 used" in "\n".join(data(CheckConfig(data=data_config), byte_tokenizer))
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_a_limit_is_of_training_files_with_and_without_a_tokenizer(pairs, byte_tokenizer, tmp_path):
    held = tmp_path / "held.jsonl"
    held.write_text(
        '{"prompt": "1", "chosen": "a", "rejected": "b"}\n{"prompt": "2", "chosen": "a", "rejected": "b"}\n'
    )
    config = CheckConfig(data=DataConfig(train=(pairs,), validation=(str(held),), template="plain", limit=1))
    shown = list(data(config))
    assert "2 rows read, 1 used, filtered: 1 over data.limit" in shown[0]
    assert sum("2 rows read, 2 used" in line for line in shown) == 1
    text = "\n".join(data(config, byte_tokenizer))
    assert "4 rows read, 3 used, filtered: 1 over data.limit" in text


def test_of_a_stream_the_first_window_is_shown_as_such(tmp_path, byte_tokenizer):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"prompt": "{i}", "completion": "a{i}"}}\n' for i in range(5000)))
    config = CheckConfig(
        data=DataConfig(
            train=(str(path),), template="plain", streaming=True, window=10, validation_fraction=0.0
        )
    )
    text = "\n".join(data(config, byte_tokenizer))
    assert "as demonstration: the first window of the stream: 10 rows read, 10 used" in text


def test_data_is_shown_as_text_without_a_tokenizer(pairs):
    text = "\n".join(data(config_for(pairs)))
    assert "length in characters" in text
    assert "good" in text
    assert "set --model or --tokenizer" in text


def test_data_flag_reads_the_file_as_in_training(pairs, tiny_model_folder, capsys):
    arguments = ["check", "--data", pairs, "--model", str(tiny_model_folder), "--kind=demonstration"]
    assert cli.main([*arguments, "--data.template=plain"]) == 0
    assert "as demonstration: 2 rows read, 2 used" in capsys.readouterr().out


def test_filtered_rows_are_counted_by_reason(pairs, byte_tokenizer):
    text = "\n".join(data(config_for(pairs, kind="ranking", rows=0), None))
    assert "2 rows read, 2 used" in text
    with pytest.raises(DataError, match=r"not a ranking but a comparison"):
        list(data(config_for(pairs, kind="ranking"), byte_tokenizer))


def test_bad_row_is_named_by_file_and_line(pairs, capsys):
    with open(pairs, "a") as file:
        file.write('{"prompt": \n')
    assert cli.main(["check", "--data", pairs]) == 2
    assert f"{pairs}:3: not valid JSON" in capsys.readouterr().err
    assert cli.main(["check", "--data", pairs, "--on-bad-row=skip"]) == 0
    assert "3 rows read, 2 used, filtered: 1 malformed line" in capsys.readouterr().out


def test_tokenizer_of_another_model_is_refused(tiny_model_folder, pairs, tmp_path, byte_tokenizer, capsys):
    larger = type(byte_tokenizer).from_pretrained(str(tiny_model_folder))
    larger.add_tokens(["<more>"])
    larger.save_pretrained(tmp_path / "larger")
    arguments = ["--model", str(tiny_model_folder), "--tokenizer", str(tmp_path / "larger"), "--data", pairs]
    assert cli.main(["check", *arguments]) == 2
    assert "260" in capsys.readouterr().err


def test_histogram_counts_every_row_once():
    lines = list(histogram([1, 2, 3, 3, 9], "tokens", width=10))
    assert lines[0] == "  length in tokens: shortest 1, half 3, 90% 9, 99% 9, longest 9"
    assert [line.split()[3] for line in lines[1:]] == ["1", "3", "0", "1"]
    assert lines[2].endswith("#" * 10)
    assert list(histogram([], "tokens")) == []


class Api:
    """A hub that answers with what the test chose."""

    answer: Exception | None = None

    def model_info(self, name, revision=None, timeout=None):
        if self.answer is not None:
            raise self.answer
        return type("Info", (), {"sha": "0123456789abcdef"})()

    def auth_check(self, name):
        return None


def hub_error(name):
    """An error of the hub's own kind; its constructor wants a whole HTTP response, which no test needs."""
    from huggingface_hub import errors

    cls = getattr(errors, name)
    return cls.__new__(cls, "no")


def test_hub_is_not_asked_when_offline():
    assert "offline" in hub_access("owner/name")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "accessible (revision 0123456789ab)"),
        ("GatedRepoError", "gated"),
        ("RevisionNotFoundError", "has no revision"),
        (ConnectionError("token hf_secret refused"), "cannot be reached (ConnectionError)"),
    ],
)
def test_hub_access_is_one_phrase_without_secrets(monkeypatch, answer, words):
    import huggingface_hub
    from huggingface_hub import constants

    error = hub_error(answer) if isinstance(answer, str) else answer
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", type("Fake", (Api,), {"answer": error}))
    phrase = hub_access("owner/name")
    assert words in phrase
    assert "secret" not in phrase


@pytest.mark.parametrize("answer", ["RepositoryNotFoundError", "HFValidationError"])
def test_model_that_is_nowhere_is_the_users_mistake(monkeypatch, answer):
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", type("Fake", (Api,), {"answer": hub_error(answer)}))
    with pytest.raises(ModelError, match=r"owner/name: neither a folder"):
        list(checks.model("owner/name"))


def test_columns_that_nothing_reads_and_what_ends_an_answer_are_shown(tmp_path, byte_tokenizer):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "Hi", "completion": "yes", "id": 3}, {"prompt": "Ho", "completion": "no"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for tokenizer in (None, byte_tokenizer):
        assert "unused columns: id (1 rows)" in "\n".join(data(config_for(str(path)), tokenizer))
    text = "\n".join(data(config_for(str(path)), byte_tokenizer))
    assert "template: plain; a completion ends with '</s>' (257)" in text


def test_token_ids_of_labels_are_decoded_by_their_tokenizer(tmp_path, tiny_model_folder):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps([{"query": [72, 105], "sample0": [65], "sample1": [66], "best": 1}]))
    config = DataConfig(train=(str(path),), label_tokenizer=str(tiny_model_folder))
    text = "\n".join(data(CheckConfig(data=config)))
    assert "format best_of_n, 1 rows read, 1 used" in text
    with pytest.raises(DataError, match=r"set data\.label_tokenizer"):
        list(data(CheckConfig(data=DataConfig(train=(str(path),)))))
