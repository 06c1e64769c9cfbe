"""An evaluation by generation asks, scores and writes what it should, with randomness of its own."""

import random
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxalign.data import Example
from jaxalign.errors import UserError
from jaxalign.rewards import RewardRequest, Rewards, WeightedMix
from jaxalign.rollout import SamplingConfig
from jaxalign.runs import records
from jaxalign.training.core.eval_config import GenerateEvalConfig
from jaxalign.training.core.generate_evaluation import GenerateEvaluation, scores_of


def example(number):
    text = f"p{number}"
    return Example(
        rows=(),
        masks=(),
        prompt_tokens=(number,),
        prompt_text=text,
        prompt=text,
        columns={"answer": number},
    )


class Engine:
    """Completions of known lengths; prompt 7 has texts of its own."""

    def __init__(self):
        self.asked = []

    def generate(self, prompts, **arguments):
        self.asked.append((prompts, arguments))
        count = len(prompts) * arguments["num_samples"]
        return SimpleNamespace(
            tokens=np.zeros((count, 3), np.int32),
            lengths=np.arange(count) % 3 + 1,
            finish_reason=["stop", "length"] * (count // 2),
            texts=lambda tokenizer: [f"{tokenizer}{index}" for index in range(count)],
            token_lists=lambda: [[0] * (index % 3 + 1) for index in range(count)],
        )


class Generator:
    """A generator of which only what an evaluation asks is there."""

    eos_ids = (5,)

    def __init__(self):
        self.engine, self.calls = Engine(), []

    def refresh(self, trained):
        self.calls.append(trained)
        return self.engine

    def release(self):
        self.calls.append("released")


def evaluation(tmp_path, *, sampling=None, **parts):
    config = GenerateEvalConfig(
        every=1, sampling=sampling or SamplingConfig(max_new_tokens=3, num_samples=2), judge="unused.py:f"
    )
    settings = {
        "config": config,
        "run": SimpleNamespace(config=SimpleNamespace(seed=4), folder=tmp_path),
        "examples": [example(3), example(7)],
        "generator": Generator(),
        "key": jax.random.key(1),
        "tokenizer": "t",
        "updates": 9,
    }
    return GenerateEvaluation(**(settings | parts))


def test_rewards_are_asked_about_every_answer_with_the_columns_of_its_prompt(tmp_path):
    seen = []

    def scores(request, key):
        seen.append(request)
        request.shown["note"] = list("abcd")
        return {"": np.array([1.0, np.nan, 0.0, 1.0]), "part": np.arange(4.0)}

    made = evaluation(tmp_path, scores=scores)
    found, rows = made("weights", 6)
    request = seen[0]
    assert request.prompts == ["p3", "p3", "p7", "p7"]
    assert request.columns == {"answer": [3, 3, 7, 7]}
    assert (request.update, request.updates) == (7, 9)
    assert made.generator.calls == ["weights", "released"]
    (prompts, arguments), *_ = made.generator.engine.asked
    assert prompts == [[3], [7]]
    assert (arguments["num_samples"], arguments["max_new_tokens"]) == (2, 3)
    assert arguments["stop_tokens"] == (5,)
    assert found["reward"] == (1 + 0.5) / 2
    assert found["prompts"] == 2
    # 1 2 3 1 tokens; every other one ends by itself.
    assert found["length"] == (1.5 + 2) / 2
    assert found["stop_rate"] == 0.5
    assert rows[1] == {
        "source": "eval.generate",
        "number": 0,
        "sample": 1,
        "note": "b",
        "prompt": "p3",
        "completion": "t1",
        "score": None,
        "score/part": 1.0,
    }


def test_every_evaluation_draws_by_the_same_key_and_its_own_stop_tokens(tmp_path):
    sampling = SamplingConfig(max_new_tokens=3, num_samples=1, stop_tokens=(8, 9))
    made = evaluation(tmp_path, sampling=sampling)
    _, rows = made("a", 0)
    made("b", 40)
    (_, first), (_, second) = made.generator.engine.asked
    assert jax.random.key_data(first["key"]).tolist() == jax.random.key_data(second["key"]).tolist()
    assert first["stop_tokens"] == (8, 9)
    assert "sample" not in rows[0]
    assert "score" not in rows[0]


def test_a_reward_draws_the_same_at_the_same_step_and_training_never_notices(tmp_path):
    drawn = []

    def scores(request, key):
        drawn.append((random.random(), np.random.random()))  # noqa: NPY002
        return {}

    made = evaluation(tmp_path, scores=scores)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    expected = random.random(), np.random.random()  # noqa: NPY002
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    for step in (2, 4, 2):
        made("weights", step)
    assert (random.random(), np.random.random()) == expected  # noqa: NPY002
    assert drawn[0] == drawn[2] != drawn[1]


def judged(prompts, first, second, *, columns):
    """Prefers the text with the larger number."""
    pairs = [(int(a[1:]), int(b[1:])) for a, b in zip(first, second, strict=True)]
    return [None if a == b else a > b for a, b in pairs]


def test_a_judge_compares_with_the_first_answers_and_a_resumed_run_reads_them_back(tmp_path):
    rows = [
        {"step": step, "source": "eval.generate", "completion": f"t{number}", "dimension": dimension}
        for dimension in ("safety", "wit")
        for step, answers in ((2, (9, 9, 1, 3)), (5, (0, 0, 0, 0)))
        for number in (answers if dimension == "wit" else (7,) * 4)
    ]
    records.append(tmp_path / "samples.jsonl", [{"step": 2, "completion": "a sample"}, *rows])
    made = evaluation(tmp_path, judge=judged, tag={"dimension": "wit"})
    found, answers = made("weights", 8)
    # 0 1 2 3 against 9 9 1 3: one wins, one ties.
    assert found["win_rate"] == 1.5 / 4
    assert {row["dimension"] for row in answers} == {"wit"}
    fresh = evaluation(tmp_path / "nothing", judge=judged)
    assert fresh("weights", 0)[0]["win_rate"] == 0.5
    records.append(
        tmp_path / "samples.jsonl", [{"step": 2, "source": "eval.generate", "completion": "t", "dimension": "wit"}]
    )  # fmt: skip
    with pytest.raises(UserError, match=r"expected 4 answers of the first evaluation, .* found 5"):
        evaluation(tmp_path, judge=judged, tag={"dimension": "wit"})("weights", 8)


@pytest.mark.parametrize("changes", [{"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}])
def test_the_kl_is_left_out_of_answers_that_are_not_the_models_own_distribution(tmp_path, changes):
    def kl(trained, rows):
        return np.ones(len(rows.lengths))

    def found(**sampling):
        config = SamplingConfig(max_new_tokens=3, num_samples=2, **sampling)
        return evaluation(tmp_path, kl=kl, sampling=config)("weights", 1)[0]

    assert found()["kl"] == 1.0
    assert "kl" not in found(**changes)


def asked():
    return RewardRequest(["p"] * 3, ["a", "bb", "ccc"], [[1]] * 3, [[1], [1, 1], [1, 1, 1]], {}, 3)


def test_the_parts_of_a_mix_are_scored_once_and_add_up_by_weight():
    calls = []

    def length(prompts, completions, **_):
        calls.append("length")
        return [float(len(text)) for text in completions]

    def second(prompts, completions, **_):
        return [None, 1.0, None]

    def tokens(prompts, completions, **_):
        return Rewards(token_rewards=np.tril(np.ones((3, 3), np.float32)))

    mix = WeightedMix({"length": length, "second": second, "tokens": tokens}, {"length": 2.0, "tokens": -1.0})
    found = scores_of(mix, asked())
    assert list(found) == ["", "length", "second", "tokens"]
    assert found["length"].tolist() == [1, 2, 3]
    assert np.isnan(found["second"]).tolist() == [True, False, True]
    assert found["tokens"].tolist() == [1, 2, 3]
    assert found[""].tolist() == [2 - 1, 4 + 1 - 2, 6 - 3]
    assert calls == ["length"]
    whole = mix.score(asked())
    assert (whole.scores + whole.token_rewards.sum(1)).tolist() == found[""].tolist()


def test_a_single_reward_has_no_parts():
    found = scores_of(lambda prompts, completions, **_: [1.0, None, 2.0], asked())
    assert list(found) == [""]
    np.testing.assert_array_equal(found[""], [1.0, np.nan, 2.0])
