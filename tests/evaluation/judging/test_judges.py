"""Judges answer for each pair as they were shown it, and what they did not say is counted."""

import re

import jax
import numpy as np
import pytest

from jaxalign import models
from jaxalign.data.chat import chat_format
from jaxalign.errors import ConfigError, UserError
from jaxalign.evaluation.judging import judges
from jaxalign.evaluation.judging.endpoint import Endpoint, EndpointConfig
from jaxalign.evaluation.judging.judges import EndpointJudge, ModelJudge, RewardModelJudge
from jaxalign.models.heads import HeadConfig
from jaxalign.rewards import ModelReward, evaluate_judge
from jaxalign.rewards.judge import PairwiseJudge
from tests.evaluation.judging.chat_server import ChatServer, completion

PAIRS = {"prompts": ["p", "q", "r"], "first": ["aa", "b", "cc"], "second": ["a", "bb", "cc"]}


def parts(conversation):
    """What stands between the marks of the prompt that a judge was sent."""
    (message,) = conversation
    assert message["role"] == "user"
    return dict(re.findall(r"<(\w+)>\n(.*?)\n</\1>", message["content"], re.DOTALL))


def longer(conversations):
    """A chat model that prefers the longer reply, and rates by length."""
    texts = []
    for conversation in conversations:
        found = parts(conversation)
        if "reply" in found:
            texts.append(f"So long.\n[[{len(found['reply'])}]]")
            continue
        a, b = len(found["reply_A"]), len(found["reply_B"])
        texts.append("By length.\n" + ("[[A]]" if a > b else "[[B]]" if b > a else "[[C]]"))
    return texts


def test_a_chat_model_is_shown_the_pair_and_its_verdict_is_of_the_first():
    shown = []

    def ask(conversations):
        shown.extend(map(parts, conversations))
        return longer(conversations)

    judge = ModelJudge(ask)
    assert judge(**PAIRS, columns={}) == [1.0, 0.0, 0.5]
    assert shown[1] == {"message": "q", "reply_A": "b", "reply_B": "bb"}
    assert (judge.asked, judge.unread) == (3, 0)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_that_evaluate_judge_draws_changes_no_verdict(seed):
    judge: PairwiseJudge = ModelJudge(longer)
    verdicts = evaluate_judge(judge, **PAIRS, columns={}, key=jax.random.key(seed))
    np.testing.assert_array_equal(verdicts.preference, [1, 0, 0.5])


def test_nonsense_is_no_opinion_and_is_counted():
    judge = ModelJudge(lambda conversations: ["[[A]]", "the first", "[[A]] or [[B]]"][: len(conversations)])
    assert judge(**PAIRS, columns={}) == [1.0, None, None]
    assert (judge.asked, judge.unread) == (3, 2)
    verdicts = evaluate_judge(judge, **PAIRS, columns={}, key=jax.random.key(0))
    assert verdicts.metrics["no_opinion"] == pytest.approx(2 / 3)
    assert (judge.asked, judge.unread) == (6, 4)


def test_single_answers_are_rated():
    judge = ModelJudge(longer)
    assert judge.rate(["p", "q", "r"], ["abc", "x" * 10, "x" * 11]) == [3.0, 10.0, None]
    assert (judge.asked, judge.unread) == (3, 1)


def test_braces_and_marks_in_what_is_judged_stay_text():
    shown = []

    def ask(conversations):
        shown.extend(conversation[0]["content"] for conversation in conversations)
        return ["[[C]]"]

    ModelJudge(ask)(["{second}"], ["{prompt} {0}"], ["}{"], columns={})
    assert "<message>\n{second}\n</message>" in shown[0] and "\n{prompt} {0}\n" in shown[0]
    assert "\n}{\n" in shown[0]


def test_prompts_are_the_users_own():
    asked = []

    def ask(conversations):
        asked.extend(conversation[0]["content"] for conversation in conversations)
        return ["[[A]]"] * len(conversations)

    ModelJudge(ask, pair_prompt="{prompt}: {first} | {second}?")(["p"], ["a"], ["b"], columns={})
    ModelJudge(ask, rating_prompt="{prompt}: {completion}?").rate(["p"], ["a"])
    assert asked == ["p: a | b?", "p: a?"]


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (
            {"pair_prompt": "{prompt} {first}"},
            "pair_prompt: expected a prompt with {first}, {prompt}, {second}, got {fi",
        ),
        ({"pair_prompt": "{prompt} {first} {second} {third}"}, "got {first}, {prompt}, {second}, {third}"),
        (
            {"rating_prompt": "Rate it."},
            "rating_prompt: expected a prompt with {completion}, {prompt}, got none",
        ),
        (
            {"rating_prompt": "{prompt"},
            "rating_prompt: expected a prompt with {completion}, {prompt} (expected '}'",
        ),
        ({"rating_prompt": "{} {prompt}"}, "(expected a name in each pair of braces)"),
    ],
)
def test_a_prompt_without_its_fields_is_refused(prompts, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        ModelJudge(longer, **prompts)


def test_our_prompts_ask_for_what_is_read():
    for verdict in ("[[A]]", "[[B]]", "[[C]]"):
        assert verdict in judges.PAIR_PROMPT
    assert (
        "[[5]]" in judges.RATING_PROMPT and "1 (" in judges.RATING_PROMPT and "10 (" in judges.RATING_PROMPT
    )


def test_a_model_that_answers_too_little_is_a_bug():
    with pytest.raises(ValueError, match="asked 3 times and answered 1 times"):
        ModelJudge(lambda conversations: ["[[A]]"])(**PAIRS, columns={})


def test_an_endpoint_is_asked_the_same(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")

    def answer(number, body):
        return 200, completion(longer([body["messages"]])[0]), {}

    with ChatServer(answer) as server:
        config = EndpointConfig(base_url=server.base_url, model="judge", retries=0)
        with Endpoint(config) as endpoint:
            judge = EndpointJudge(endpoint)
            assert judge(**PAIRS, columns={}) == [1.0, 0.0, 0.5]
            assert judge.rate(["p"], ["abcd"]) == [4.0]
            assert endpoint.usage.requests == len(server.requests) == judge.asked == 4


def test_of_several_processes_the_first_pays(monkeypatch):
    monkeypatch.setattr(judges, "by_first", lambda function: ["[[B]]"])  # what another process heard

    class Unasked:
        def ask(self, conversations):
            raise AssertionError

    assert EndpointJudge(Unasked())(["p"], ["a"], ["b"], columns={}) == [0.0]


# --- rewards ------------------------------------------------------------------------------------


def length(prompts, completions, *, completion_ids, columns):
    return [
        None if text == "?" else len(text) + n for text, n in zip(completions, columns["bonus"], strict=True)
    ]


def test_the_higher_reward_is_better():
    judge = RewardModelJudge(length)
    pairs = {"prompts": [""] * 4, "first": ["aa", "b", "c", "?"], "second": ["a", "bb", "d", "e"]}
    assert judge(**pairs, columns={"bonus": [0, 0, 9, 0]}) == [1.0, 0.0, 0.5, None]
    assert (judge.asked, judge.unread) == (4, 1)
    soft = RewardModelJudge(length, soft=True)(**pairs, columns={"bonus": [0, 0, 9, 0]})
    assert soft == [pytest.approx(1 / (1 + np.exp(-1))), pytest.approx(1 / (1 + np.exp(1))), 0.5, None]
    assert judge.rate(["", ""], ["abc", "?"], columns={"bonus": [1, 1]}) == [4.0, None]
    assert judge([], [], [], columns={"bonus": []}) == []


def test_rewards_far_apart_are_certain_without_a_warning():
    judge = RewardModelJudge(
        lambda prompts, completions, **_: [1e4 if c == "a" else -1e4 for c in completions], soft=True
    )
    assert judge(["", ""], ["a", "b"], ["b", "a"], columns={}) == [1.0, 0.0]


def test_rewards_of_tokens_count_too(byte_tokenizer):
    chat = chat_format(byte_tokenizer, "plain", "", "", "")
    seen = []

    class PerToken:
        def score(self, request):
            seen.extend(zip(request.prompt_ids, request.completion_ids, strict=True))
            rewards = np.zeros((len(request.completions), request.width), np.float32)
            for row, ids in enumerate(request.completion_ids):
                rewards[row, : len(ids)] = 0.25
            return rewards

    judge = RewardModelJudge(PerToken(), chat=chat)
    # Each byte a token, and the end.
    assert judge.rate(["pq"], ["abc"]) == [1.0]
    assert byte_tokenizer.decode(seen[0][0]) == "pq" and byte_tokenizer.decode(seen[0][1]) == "abc</s>"
    assert judge(["pq"], ["abc"], ["abcd"], columns={}) == [0.0]


def test_a_reward_that_reads_tokens_needs_the_chat_format(tiny_model_folder, byte_tokenizer):
    model = models.create_scalar_model(
        models.load_pretrained(tiny_model_folder), HeadConfig(init_std=1.0), key=jax.random.key(1)
    )
    reward = ModelReward(model, batch_size=4, pad_multiple=8)
    with pytest.raises(UserError, match="ModelReward reads token ids; expected the chat format"):
        RewardModelJudge(reward)
    chat = chat_format(byte_tokenizer, "plain", "", "", "")
    judge = RewardModelJudge(reward, chat=chat, soft=True)
    one, other = (reward.score_rows([list(chat.example("pq", text).ids)])[0] for text in ("abc", "abd"))
    (said,) = judge(["pq"], ["abc"], ["abd"], columns={})
    assert said == pytest.approx(1 / (1 + np.exp(other - one)), rel=1e-4) and abs(one - other) > 1e-3
    (swapped,) = judge(["pq"], ["abd"], ["abc"], columns={})
    assert said + swapped == pytest.approx(1, rel=1e-4)


def test_pairs_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="as many completions as prompts, got 1 and 2"):
        RewardModelJudge(length)(["p"], ["a"], ["b", "c"], columns={})
