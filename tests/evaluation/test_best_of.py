"""Best-of-n: the answer with the highest reward is kept, and its KL has a bound."""

import json
import math

import numpy as np
import pytest

from jaxalign.evaluation.best_of import BestOf, best_of_kl
from jaxalign.evaluation.evaluate import evaluate
from jaxalign.evaluation.evaluate_config import AnswerConfig, EvaluateConfig
from jaxalign.evaluation.subject import Answer
from jaxalign.training.core.reward_source import RewardSource


class Scripted:
    """A subject that answers question i with the texts of its list, so many at once."""

    chat_model = None

    def __init__(self, texts):
        self.texts = texts

    def answers(self, asked, *, sampling, **options):
        for i in reversed(range(len(asked))):
            assert len(self.texts[i]) == sampling["num_samples"]
            yield [i], [[Answer(text, (), None, math.nan, "stop") for text in self.texts[i]]]


def letters(prompts, completions, **columns):
    return [None if c == "none" else float(len(c)) for c in completions]


def kept(texts, n, samples=1):
    subject = BestOf(Scripted(texts), letters, n)
    found = {}
    for batch, answers in subject.answers(["q"] * len(texts), sampling={"num_samples": samples}):
        found |= {i: [a.text for a in own] for i, own in zip(batch, answers, strict=True)}
    return [found[i] for i in range(len(texts))]


def test_of_n_answers_the_one_with_the_highest_reward_is_kept():
    assert kept([["a", "ccc", "bb"], ["none", "x", ""]], 3) == [["ccc"], ["x"]]


def test_a_tie_goes_to_the_first_and_several_answers_choose_apart():
    assert kept([["ab", "cd", "e", "fgh"]], 2, samples=2) == [["ab", "fgh"]]


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_the_bound_is_the_kl_where_all_answers_differ_in_reward(n):
    # The best of n uniform draws has density n u^(n-1); KL = E[log density].
    u = (np.arange(2_000_000) + 0.5) / 2_000_000
    density = n * u ** (n - 1)
    assert best_of_kl(n) == pytest.approx(float(np.mean(density * np.log(density))), abs=1e-4)


def test_without_an_answer_there_is_no_bound():
    with pytest.raises(ValueError, match="n must be 1 or more"):
        best_of_kl(0)


def test_evaluated_answers_are_the_best_of_as_many_as_asked_for(tiny_model_folder, tmp_path):
    (tmp_path / "own.py").write_text(
        "def letters(prompts, completions, **columns):\n    return [float(len(c)) for c in completions]\n"
    )
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(4)))
    source = RewardSource(functions=(f"{tmp_path}/own.py:letters",))

    def figures(best_of, name):
        config = EvaluateConfig(
            model=str(tiny_model_folder),
            tasks={"prompts": str(tmp_path / "p.jsonl")},
            sampling=AnswerConfig(max_new_tokens=6, temperature=1.0),
            template="plain",
            reward=source,
            gold=source,
            best_of=best_of,
            reference=str(tiny_model_folder),
            output=str(tmp_path / name),
        )
        return evaluate(config)["tasks"]["prompts"]

    one, best = figures(1, "one"), figures(8, "best")
    assert best["metrics"]["reward"]["value"] > one["metrics"]["reward"]["value"]
    assert best["metrics"]["gold"]["value"] == best["metrics"]["reward"]["value"]
    assert "kl" in one["metrics"] and "kl" not in best["metrics"]
    assert any("at most 1.2 nats" in note for note in best["notes"])


def test_without_a_reward_none_is_the_best():
    with pytest.raises(ValueError, match="best_of: expected a reward"):
        EvaluateConfig(model="m", best_of=4, sampling=AnswerConfig(temperature=1.0))
