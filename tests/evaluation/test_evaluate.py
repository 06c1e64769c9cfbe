"""The command on a tiny model: every kind of task, going on after a stop, judges, and what users get wrong."""

import json
import math
import shutil

import jax
import numpy as np
import pytest

from jaxalign import models
from jaxalign.cli import main as cli
from jaxalign.errors import ConfigError, DataError
from jaxalign.evaluation import asking
from jaxalign.evaluation.evaluate import evaluate
from jaxalign.evaluation.evaluate_config import AnswerConfig, EvaluateConfig
from jaxalign.evaluation.judging.config import JudgeConfig
from jaxalign.evaluation.likelihood import ContinuationScorer
from jaxalign.evaluation.text_likelihood import TextScorer
from jaxalign.training.core.reward_source import RewardSource
from tests.evaluation.judging.chat_server import ChatServer, completion

PUBMED = [
    {"question": f"Is {i} even?", "contexts": [f"{i} was studied."], "final_decision": ("yes", "no")[i % 2]}
    for i in range(7)
]
GSM8K = [{"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(6)]
PROMPTS = [{"prompt": f"Say {i}.", "chosen": f"{i} it is", "rejected": "no"} for i in range(5)]
TEXTS = [{"text": f"Once upon a time there was a number {i}."} for i in range(4)]
ALPACA = [{"instruction": f"Tell me about {i}.", "output": "a" * (i + 1), "dataset": "x"} for i in range(6)]


@pytest.fixture
def files(tmp_path):
    """Writes rows: `files(name, rows)` -> path."""

    def made(name, rows):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return made


@pytest.fixture
def config(tiny_model_folder, tmp_path):
    """`config(tasks, **settings)`, of the tiny model."""

    def made(tasks, **settings):
        settings = {"sampling": AnswerConfig(max_new_tokens=6), "template": "plain"} | settings
        return EvaluateConfig(
            **{"model": str(tiny_model_folder), "tasks": tasks, "output": str(tmp_path / "out")} | settings
        )

    return made


def items_of(folder, task):
    return [json.loads(line) for line in (folder / "items" / f"{task}.jsonl").read_text().splitlines()]


def test_of_choices_the_likeliest_is_the_answer_and_guesses_are_told_beside_it(
    config, files, tmp_path, tiny_model_folder, byte_tokenizer
):
    file = files("pubmed", PUBMED)
    found = evaluate(config({"pubmedqa": file}))["tasks"]["pubmedqa"]
    items = items_of(tmp_path / "out", "pubmedqa")
    scorer = TextScorer(ContinuationScorer(models.load_pretrained(tiny_model_folder)), byte_tokenizer)
    for item, row in zip(items, PUBMED, strict=True):
        pairs = [(item["prompt"], choice) for choice in (" yes", " no", " maybe")]
        assert item["logps"] == pytest.approx(scorer.score(pairs).logps, abs=1e-4)
        assert item["right"] == [("yes", "no", "maybe").index(row["final_decision"])]
    accuracy = found["metrics"]["accuracy"]
    assert accuracy["value"] == np.mean([item["scores"]["accuracy"] for item in items])
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert accuracy["chance"] == pytest.approx(1 / 3) and accuracy["count"] == 7
    assert json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["pubmedqa"] == found


def test_texts_have_the_perplexity_of_all_their_tokens(config, files, tiny_model_folder, byte_tokenizer):
    found = evaluate(config({"text": files("texts", TEXTS)}))["tasks"]["text"]["metrics"]
    scorer = TextScorer(ContinuationScorer(models.load_pretrained(tiny_model_folder)), byte_tokenizer)
    logps, tokens = scorer.rolling([row["text"] for row in TEXTS])
    assert found["perplexity"]["value"] == pytest.approx(math.exp(-logps.sum() / tokens.sum()), rel=1e-4)
    # A token of this tokenizer is a byte.
    bits = -logps.sum() / tokens.sum() / math.log(2)
    assert found["bits_per_byte"]["value"] == pytest.approx(bits, rel=1e-4)


def test_answers_to_prompts_are_measured_in_every_way_that_is_asked_for(
    config, files, tmp_path, tiny_model_folder, capsys
):
    (tmp_path / "own.py").write_text(
        "def letters(prompts, completions, **columns):\n    return [float(len(c)) for c in completions]\n"
    )
    (tmp_path / "words.txt").write_text("it\n")
    settings = config(
        {"prompts-few": files("prompts", PROMPTS)},
        reference=str(tiny_model_folder),
        reward=RewardSource(functions=(f"{tmp_path}/own.py:letters",)),
        encoder=str(tiny_model_folder),
        words=str(tmp_path / "words.txt"),
        training=(files("training", [{"text": "nothing that is asked"}]),),
    )
    task = evaluate(settings)["tasks"]["prompts-few"]
    items, metrics = items_of(tmp_path / "out", "prompts-few"), task["metrics"]
    assert [item["references"] for item in items] == [[row["chosen"]] for row in PROMPTS]
    assert metrics["reward"]["value"] == np.mean([len(item["answers"][0]) for item in items])
    # The model is its own reference.
    assert metrics["kl"]["value"] == pytest.approx(0, abs=1e-5)
    assert 0 < metrics["entropy"]["value"] < math.log(259)
    assert {
        "bleu",
        "rougeL",
        "similarity",
        "listed_word",
        "distinct_1",
        "self_bleu",
        "tokens",
    } <= metrics.keys()
    assert "prompts-few: no question shares 13 words in a row" in capsys.readouterr().err
    assert any("kl is along answers that were not sampled" in note for note in task["notes"])


def test_several_answers_give_their_mean_and_pass_at_k(config, files, tmp_path):
    settings = config(
        {"gsm8k": files("gsm8k", GSM8K)},
        sampling=AnswerConfig(max_new_tokens=6, temperature=1.0, num_samples=3),
    )
    metrics = evaluate(settings)["tasks"]["gsm8k"]["metrics"]
    items = items_of(tmp_path / "out", "gsm8k")
    assert all(len(item["answers"]) == 3 for item in items)
    assert metrics["flexible_pass@3"]["value"] >= metrics["flexible"]["value"]
    assert "stopped_pass@3" not in metrics


def test_a_reward_of_0_or_1_has_pass_at_k(config, files, tmp_path):
    (tmp_path / "own.py").write_text(
        "def even(prompts, completions, **columns):\n    return [float(len(c) % 2 == 0) for c in completions]\n"
    )
    settings = config(
        {"prompts": files("prompts", PROMPTS)},
        reward=RewardSource(functions=(f"{tmp_path}/own.py:even",)),
        sampling=AnswerConfig(max_new_tokens=6, temperature=1.0, num_samples=2),
    )
    metrics = evaluate(settings)["tasks"]["prompts"]["metrics"]
    right = [
        [len(text) % 2 == 0 for text in item["answers"]] for item in items_of(tmp_path / "out", "prompts")
    ]
    assert metrics["reward"]["value"] == np.mean(right)
    assert metrics["reward_pass@2"]["value"] == np.mean(np.any(right, axis=1))


def test_questions_that_stand_in_a_training_file_are_counted_without_what_all_begin_with(config, files):
    long = "if a train of nine wagons leaves at noon and meets another one at two how many {} are there"
    rows = [{"question": long.format(word), "answer": "#### 1"} for word in ("geese", "ducks", "hens")]
    seen = files("seen", [{"chat": [{"content": "Well: " + long.format("ducks").upper()}]}])
    shots = files("shots", GSM8K[:1])
    settings = config(
        {"gsm8k": files("gsm8k", rows)}, training=(seen, shots), shots={"gsm8k": shots}, num_shots=1
    )
    (note,) = [note for note in evaluate(settings)["tasks"]["gsm8k"]["notes"] if "13 words" in note]
    # The words before the one that differs are more than 13 too.
    assert note.startswith("3 of the 3 questions share 13 words in a row") and "if a train of nine" in note


def test_a_stopped_evaluation_goes_on_and_ends_as_if_it_had_not_been_stopped(
    config, files, tmp_path, monkeypatch
):
    tasks = {"pubmedqa": files("pubmed", PUBMED), "gsm8k": files("gsm8k", GSM8K)}
    sampling = AnswerConfig(max_new_tokens=6, temperature=1.0)
    settings = {"batch_size": 2, "sampling": sampling}
    whole = evaluate(config(tasks, **settings, output=str(tmp_path / "whole")))
    add, calls = asking.Counter.add, []

    def stop_in_the_second_task(self, count):
        calls.append(self.task)
        if calls.count("gsm8k") == 2:
            raise KeyboardInterrupt
        add(self, count)

    monkeypatch.setattr(asking.Counter, "add", stop_in_the_second_task)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config(tasks, **settings))
    monkeypatch.undo()
    kept = tmp_path / "out" / "answers" / "gsm8k.jsonl"
    before = kept.read_text()
    assert 0 < len(before.splitlines()) - 1 < len(GSM8K)
    kept.write_text(before + '{"index": 5, "answ')  # a kill in the middle of a line
    again = evaluate(config(tasks, **settings))
    assert kept.read_text().startswith(before)
    for task in tasks:
        assert again["tasks"][task]["metrics"] == whole["tasks"][task]["metrics"]


def test_answers_that_are_there_are_not_asked_for_again(config, files, monkeypatch, capsys):
    tasks = {"gsm8k": files("gsm8k", GSM8K)}
    first = evaluate(config(tasks, limit=4))
    monkeypatch.setattr(asking, "ask_written", lambda *args, **options: pytest.fail("asked again"))
    assert evaluate(config(tasks, limit=4))["tasks"]["gsm8k"]["metrics"] == first["tasks"]["gsm8k"]["metrics"]
    assert "gsm8k: 4 of 4 answers are there" in capsys.readouterr().err


def test_a_folder_with_other_answers_is_refused_by_what_differs(config, files, tmp_path):
    tasks = {"gsm8k": files("gsm8k", GSM8K)}
    evaluate(config(tasks))
    with pytest.raises(
        ConfigError, match=r"gsm8k.jsonl: holds answers with sampling.max_new_tokens=6, asked"
    ):
        evaluate(config(tasks, sampling=AnswerConfig(max_new_tokens=7)))
    files("gsm8k", GSM8K[:5])
    with pytest.raises(ConfigError, match="holds answers with file sha256="):
        evaluate(config(tasks))


def test_a_model_that_was_trained_further_has_other_answers_and_a_copy_the_same(
    config, files, tiny_model_folder, tmp_path, monkeypatch
):
    tasks = {"gsm8k": files("gsm8k", GSM8K)}
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    evaluate(config(tasks, model=str(folder), limit=2))
    shutil.rmtree(folder)
    shutil.copytree(tiny_model_folder, folder, copy_function=shutil.copy)  # with other times
    with monkeypatch.context() as patch:
        patch.setattr(asking, "ask_written", lambda *args, **options: pytest.fail("asked again"))
        evaluate(config(tasks, model=str(folder), limit=2))
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ConfigError, match="holds answers with model files="):
        evaluate(config(tasks, model=str(folder), limit=2))


def test_solved_problems_stand_before_each_question(config, files, tmp_path):
    settings = config(
        {"gsm8k": files("gsm8k", GSM8K)}, shots={"gsm8k": files("shots", GSM8K[::-1])}, num_shots=1, limit=1
    )
    evaluate(settings)
    prompt = items_of(tmp_path / "out", "gsm8k")[0]["prompt"]
    assert prompt.startswith("Question: What is 5 and 5?\nAnswer: It is 10.\n#### 10\n\nQuestion: What is 0")


def choosing(letter):
    return lambda number, body: (200, completion(f"So [[{letter}]]"), {})


@pytest.mark.parametrize("letter", ["A", "C"])
def test_a_judge_behind_an_endpoint_compares_with_the_baselines_answers(config, files, tmp_path, letter):
    with ChatServer(choosing(letter)) as server:
        judge = JudgeConfig(model=server.base_url, name="judge", retries=0)
        settings = config({"alpaca_eval": files("alpaca", ALPACA)}, judge=judge)
        task = evaluate(settings)["tasks"]["alpaca_eval"]
        again = evaluate(settings)["tasks"]["alpaca_eval"]
        assert len(server.requests) == len(ALPACA)
    assert again["metrics"] == task["metrics"]
    wins = [item["scores"]["win_rate"] for item in items_of(tmp_path / "out", "alpaca_eval")]
    shown = [item["judge"]["first_shown"] for item in items_of(tmp_path / "out", "alpaca_eval")]
    if letter == "C":
        assert wins == [0.5] * 6
    else:  # it takes what it sees first
        assert wins == [float(side == "model") for side in shown] and 0 < sum(wins) < 6
    assert task["metrics"]["win_rate"]["value"] == np.mean(wins)
    assert 0 <= task["metrics"]["length_controlled"]["value"] <= 1
    assert "judge at http" in task["judge"] and "not the leaderboard's figure" in " ".join(task["notes"])


@pytest.fixture
def reward_folder(tmp_path, byte_tokenizer, tiny_model_folder):
    """A random reward model on the tiny model."""
    trunk = models.load_pretrained(tiny_model_folder)
    reward = models.create_scalar_model(trunk, models.HeadConfig(init_std=1.0), key=jax.random.key(3))
    return models.save_reward_model(reward, tmp_path / "reward", tokenizer=byte_tokenizer)


def test_a_reward_model_judges_by_its_scores(config, files, tmp_path, reward_folder):
    judge = JudgeConfig(model=str(reward_folder))
    tasks = {"alpaca_eval": files("alpaca", ALPACA), "prompts": files("prompts", PROMPTS)}
    metrics = evaluate(config(tasks, judge=judge))["tasks"]
    reward, score = models.load_reward_model(reward_folder), []
    words = models.load_tokenizer(reward_folder)
    for item, row in zip(items_of(tmp_path / "out", "alpaca_eval"), ALPACA, strict=True):
        texts = [item["answers"][0], row["output"]]
        ids = [words(row["instruction"])["input_ids"] + words(text)["input_ids"] for text in texts]
        ours, theirs = (float(reward(np.asarray([one]), lengths=np.asarray([len(one)]))[0]) for one in ids)
        score.append(float(ours > theirs))
    assert metrics["alpaca_eval"]["metrics"]["win_rate"]["value"] == np.mean(score)
    assert metrics["prompts"]["metrics"]["rating"]["count"] == len(PROMPTS)
    settings = config({"mt_bench": "x"}, judge=JudgeConfig(model=str(reward_folder), prompts="p.jsonl"))
    with pytest.raises(ConfigError, match="needs a judge that writes ratings"):
        evaluate(settings)


def test_verdicts_that_cannot_be_read_are_counted_and_no_rate_counts_them(config, files, tmp_path):
    def answer(number, body):
        return 200, completion("[[A]]" if number % 2 else "both are fine"), {}

    with ChatServer(answer) as server:
        judge = JudgeConfig(model=server.base_url, name="judge", retries=0, concurrency=1)
        task = evaluate(config({"alpaca_eval": files("alpaca", ALPACA)}, judge=judge))["tasks"]["alpaca_eval"]
    assert task["metrics"]["win_rate"]["count"] == 3
    assert "3 of the judge's 6 texts had no verdict" in task["notes"]


def test_mt_bench_has_both_turns_rated(config, files, tmp_path):
    questions = [
        {"question_id": i, "category": ("writing", "roleplay")[i % 2], "turns": [f"Hi {i}?", "And?"]}
        for i in range(4)
    ]
    fields = "{question} {answer}", "{question_1} {answer_1} {question_2} {answer_2}"
    prompts = [
        {"name": name, "prompt_template": text, "system_prompt": "", "output_format": "[[rating]]"}
        for name, text in zip(("single-v1", "single-v1-multi-turn"), fields, strict=True)
    ]
    with ChatServer(lambda number, body: (200, completion("[[7]]"), {})) as server:
        judge = JudgeConfig(
            model=server.base_url, name="judge", retries=0, prompts=files("judge_prompts", prompts)
        )
        task = evaluate(config({"mt_bench": files("questions", questions)}, judge=judge))["tasks"]["mt_bench"]
        asked = [body["messages"][-1]["content"] for body in server.bodies]
    items = items_of(tmp_path / "out", "mt_bench")
    assert task["metrics"]["rating"]["value"] == 7 and task["metrics"]["rating_turn_2"]["count"] == 4
    assert task["groups"].keys() == {"writing", "roleplay"}
    assert [item["scores"]["rating"] for item in items] == [7.0] * 4
    assert sum(text.startswith("Hi ") and "And?" in text for text in asked) == 4


def test_a_model_behind_an_endpoint_is_asked_for_written_answers(config, files, tmp_path):
    def answer(number, body):
        return 200, completion("#### 4 Question: more", completion_tokens=9), {}

    with ChatServer(answer) as server:
        endpoint = {"model": server.base_url, "endpoint_model": "them"}
        task = evaluate(config({"gsm8k": files("gsm8k", GSM8K)}, **endpoint))["tasks"]["gsm8k"]
        assert server.bodies[0]["model"] == "them" and server.bodies[0]["max_tokens"] == 6
        with pytest.raises(ConfigError, match=r"tasks.pubmedqa: needs log-probs, which an endpoint does not"):
            evaluate(config({"pubmedqa": files("pubmed", PUBMED)}, **endpoint))
    items = items_of(tmp_path / "out", "gsm8k")
    assert [item["answers"] for item in items] == [["#### 4 "]] * 6
    assert task["metrics"]["strict"]["value"] == pytest.approx(1 / 6)
    assert task["metrics"]["tokens"]["value"] == 9


def test_the_model_is_not_its_own_judge(config, files, tiny_model_folder):
    settings = config(
        {"alpaca_eval": files("alpaca", ALPACA)}, judge=JudgeConfig(model=str(tiny_model_folder))
    )
    with pytest.raises(ConfigError, match="is the model that it is to judge"):
        evaluate(settings)


@pytest.mark.parametrize(
    ("tasks", "settings", "message"),
    [
        ({}, {}, r"--tasks: expected at least one, as --tasks.gsm8k=FILE; there are truthfulqa_mc1"),
        ({"gsm9k": "x"}, {}, r"tasks.gsm9k: no such task; there are truthfulqa_mc1"),
        ({"gsm8k": "x"}, {"shots": {"mc1": "y"}}, r"shots.mc1: there is no such task in tasks"),
        ({"gsm8k-../x": "x"}, {}, r"tasks.gsm8k-../x: expected letters, digits, - and _ after gsm8k-"),
        ({"medqa": "x"}, {"shots": {"medqa": "y"}}, r"shots.medqa: this task takes no solved problems"),
        ({"alpaca_eval": "x"}, {}, r"tasks.alpaca_eval: expected a judge in judge.model"),
        (
            {"mt_bench": "x"},
            {"judge": JudgeConfig(model="y")},
            r"tasks.mt_bench: expected MT-bench's judge prompts in judge.prompts",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_model_is_loaded(config, tasks, settings, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(config(tasks, **settings, model="nowhere"))


@pytest.mark.parametrize("key", ["reference", "words", "toxicity", "encoder", "system"])
def test_a_setting_that_no_task_reads_is_refused(config, files, key):
    with pytest.raises(ConfigError, match=rf"^{key}: none of the tasks \(pubmedqa\) reads it$"):
        evaluate(config({"pubmedqa": files("pubmed", PUBMED)}, **{key: "x"}))


def test_a_text_is_read_from_its_field_alone(config, files):
    with pytest.raises(DataError, match=r"texts.jsonl:1: expected a text in 'text', got nothing"):
        evaluate(config({"text": files("texts", [{"story": "Once."}])}))


def test_a_file_that_is_missing_or_wrong_is_named(config, files):
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        evaluate(config({"gsm8k": "nowhere.jsonl"}))
    bad = files("bad", [GSM8K[0], {"question": "no answer?"}])
    with pytest.raises(DataError, match=r"bad.jsonl:2: expected a text in 'answer'"):
        evaluate(config({"gsm8k": bad}))


def test_the_command_prints_a_table_and_ends_with_the_report(
    config, files, tmp_path, tiny_model_folder, capsys
):
    file = files("pubmed", PUBMED)
    status = cli.main(
        ["evaluate", str(tiny_model_folder), f"--tasks.pubmedqa={file}", f"--output={tmp_path / 'out'}"]
    )
    out = capsys.readouterr().out
    assert status == 0 and "pubmedqa" in out and "accuracy" in out
    assert "report.html" in out and (tmp_path / "out" / "report.html").exists()


def test_greedy_answers_are_not_sampled_several_times():
    with pytest.raises(ValueError, match=r"num_samples=2: greedy answers are all alike"):
        AnswerConfig(num_samples=2)


PAIRS = [{"prompt": f"Say {i}.", "chosen": f"{i} it is, sir", "rejected": f"no{'o' * i}"} for i in range(8)]


def test_a_reward_model_is_measured_on_pairs(config, files, tmp_path, byte_tokenizer, reward_folder):
    reward = models.load_reward_model(reward_folder)
    settings = config({"pairs": files("pairs", PAIRS)}, model=str(reward_folder))
    metrics = evaluate(settings)["tasks"]["pairs"]["metrics"]
    margins = []
    for row in PAIRS:
        both = [
            byte_tokenizer(row["prompt"])["input_ids"] + byte_tokenizer(row[side])["input_ids"]
            for side in ("chosen", "rejected")
        ]
        chosen, rejected = (
            float(reward(np.asarray([ids]), lengths=np.asarray([len(ids)]))[0]) for ids in both
        )
        margins.append(chosen - rejected)
    items = items_of(tmp_path / "out", "pairs")
    assert [item["scores"]["margin"] for item in items] == pytest.approx(margins, abs=1e-4)
    assert metrics["accuracy"]["value"] == np.mean(np.asarray(margins) > 0)
    assert metrics["nats"]["value"] == pytest.approx(
        np.mean(np.log1p(np.exp(-np.asarray(margins)))), abs=1e-4
    )
    assert metrics["longer_chosen"]["value"] == 1.0
    with pytest.raises(ConfigError, match=r"tasks.gsm8k: .* is a reward model, which scores pairs alone"):
        evaluate(config({"gsm8k": files("gsm8k", GSM8K)}, model=str(reward_folder)))


def test_a_policy_is_measured_on_pairs_by_its_log_probs_less_the_references(
    config, files, tmp_path, tiny_model_folder
):
    file = files("pairs", PAIRS)
    alone = evaluate(config({"pairs": file}, output=str(tmp_path / "alone")))["tasks"]["pairs"]["metrics"]
    assert "nats" not in alone and 0 <= alone["accuracy"]["value"] <= 1
    # The model is its own reference.
    same = evaluate(config({"pairs": file}, reference=str(tiny_model_folder)))["tasks"]["pairs"]
    assert "nothing to compute from: length_correlation" in same["notes"]
    margins = [item["scores"]["margin"] for item in items_of(tmp_path / "out", "pairs")]
    assert margins == pytest.approx([0.0] * len(PAIRS), abs=1e-4)


def test_a_patient_with_a_doctor_is_a_model(config, files, tmp_path, make_doctor, tiny_model_folder):
    doctor = make_doctor("kind")
    tasks = {"pubmedqa": files("pubmed", PUBMED), "prompts": files("prompts", PROMPTS)}
    alone = evaluate(config(tasks, output=str(tmp_path / "alone")))
    settings = config(tasks, model="", doctor=(str(doctor),), reference=str(tiny_model_folder))
    guided = evaluate(settings)
    assert guided["model"].endswith("kind")
    found = [items_of(tmp_path / name, "pubmedqa")[0]["logps"] for name in ("alone", "out")]
    assert max(abs(a - b) for a, b in zip(*found, strict=True)) > 1e-3
    assert guided["tasks"]["prompts"]["metrics"]["kl"]["value"] > 1e-3
    assert "kl" not in alone["tasks"]["prompts"]["metrics"]


def test_of_a_pair_that_is_too_long_the_prompts_beginning_is_left_out(config, files, tmp_path):
    long = [{"prompt": "x" * 40 + "Say it.", "chosen": "yes sir", "rejected": "no"}]
    short = [{"prompt": "ay it.", "chosen": "yes sir", "rejected": "no"}]
    cut = evaluate(config({"pairs": files("long", long)}, context=13, output=str(tmp_path / "cut")))
    assert cut["tasks"]["pairs"]["notes"][0] == "1 pairs were longer than the context, and cut"
    kept = json.loads((tmp_path / "cut" / "answers" / "pairs.jsonl").read_text().splitlines()[1])
    assert kept["tokens"] == [7, 2]
    # Of the chosen answer's row 6 tokens of the prompt are left.
    evaluate(config({"pairs": files("short", short)}, output=str(tmp_path / "whole")))
    whole = json.loads((tmp_path / "whole" / "answers" / "pairs.jsonl").read_text().splitlines()[1])
    assert kept["scores"][0] == pytest.approx(whole["scores"][0], abs=1e-4)
