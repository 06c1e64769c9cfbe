"""Reward functions written for TRL and Tunix run as they are, beside those of ours."""

import asyncio
import re
import threading
from dataclasses import replace

import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.rewards import RewardRequest, TrainerState, WeightedMix, evaluate_reward

TEXTS = RewardRequest(
    prompts=["Solve 2x + 3 = 7.", "Add two numbers.", "What is 3 * 4?"],
    completions=[r"It is \boxed{2}.", "a + b", r"\boxed{11}"],
    prompt_ids=[[1], [2], [3]],
    completion_ids=[[4], [5, 6], [7, 8, 9]],
    columns={"ground_truth": ["2", None, "12"], "task": ["math", "coding", "math"]},
    width=3,
)
CHATS = replace(
    TEXTS,
    completions=["<think>2 + 2</think><answer>4</answer>", "4", "<think></think>"],
    messages=[[{"role": "user", "content": prompt}] for prompt in TEXTS.prompts],
)


def scores_of(reward, request=TEXTS, **options):
    return evaluate_reward(reward, request, **options).scores.tolist()


# What TRL's page "GRPO Trainer" has under "Using a custom reward function", each in words of our own.


def tokens_long(completions_ids, **kwargs):
    return [float(len(ids)) for ids in completions_ids]


def letters_long(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def thought_and_answered(completions, **kwargs):
    pattern = r"^<think>.*?</think><answer>.*?</answer>$"
    return [1.0 if re.match(pattern, completion[0]["content"]) else 0.0 for completion in completions]


def boxed_is_right(completions, ground_truth, **kwargs):
    boxed = [re.search(r"\\boxed\{(.*?)\}", completion) for completion in completions]
    found = [match.group(1) if match else "" for match in boxed]
    return [1.0 if one == truth else 0.0 for one, truth in zip(found, ground_truth, strict=True)]


def of_task(name, right):
    def reward(prompts, completions, task, **kwargs):
        return [
            None if t != name else 1.0 if right in completion else -1.0
            for t, completion in zip(task, completions, strict=True)
        ]

    return reward


async def not_empty(prompts, completions, **kwargs):
    await asyncio.sleep(0.01)
    return [1.0 if completion else 0.0 for completion in completions]


@pytest.mark.parametrize(
    ("reward", "request_", "scores"),
    [
        (tokens_long, TEXTS, [1, 2, 3]),
        (letters_long, TEXTS, [16, 5, 10]),
        (thought_and_answered, CHATS, [1, 0, 0]),
        (boxed_is_right, TEXTS, [1, 0, 0]),
        (not_empty, replace(TEXTS, completions=["a", "", "b"]), [1, 0, 1]),
    ],
)
def test_the_examples_of_trl_run_unchanged(reward, request_, scores):
    assert scores_of(reward, request_) == scores


def test_functions_of_several_tasks_share_the_rows_and_none_leaves_a_row_to_the_others():
    request = replace(TEXTS, columns={**TEXTS.columns, "task": ["math", "coding", "prose"]})
    mix = WeightedMix(
        {
            "math": of_task("math", "2"),
            "coding": of_task("coding", "-"),
            "length": lambda p, c, **_: [None] * 3,
        },
        {"math": 2.0, "coding": 0.5},
    )
    found = evaluate_reward(mix, request)
    np.testing.assert_array_equal(found.valid, [True, True, False])
    np.testing.assert_array_equal(found.scores, [2.0, -0.5, 0])


def test_functions_of_tunix_take_texts_and_columns_as_keywords():
    def close(prompts, completions, **kwargs):
        return [
            0.0 if truth is None else 1.5 if truth in completion else -1.0
            for completion, truth in zip(completions, kwargs["ground_truth"], strict=True)
        ]

    assert scores_of(close) == [1.5, 0, -1]
    texts = replace(CHATS, completions=TEXTS.completions)
    assert scores_of(close, texts, texts=True) == [1.5, 0, -1]


def test_where_prompts_are_messages_both_are_and_a_text_stays_one():
    def reward(prompts, completions, **kwargs):
        assert prompts == [
            [{"role": "user", "content": TEXTS.prompts[0]}],
            "Add two numbers.",
            None or prompts[2],
        ]
        assert completions[0] == [{"role": "assistant", "content": CHATS.completions[0]}]
        return [1.0 if isinstance(c, str) else 2.0 for c in completions]

    messages = [CHATS.messages[0], None, CHATS.messages[2]]
    assert scores_of(reward, replace(CHATS, messages=messages)) == [2, 1, 2]


def test_a_function_of_ours_gets_texts_whatever_prompts_are():
    def ours(prompts, completions, *, completion_ids, columns):
        return [
            len(p) + 100 * len(c) + 1000 * len(i)
            for p, c, i in zip(prompts, completions, completion_ids, strict=True)
        ]

    expected = scores_of(ours)
    assert scores_of(ours, replace(CHATS, completions=TEXTS.completions)) == expected
    assert (
        scores_of(lambda p, c, **_: ours(p, c, **{k: _[k] for k in ("completion_ids", "columns")}))
        == expected
    )


def test_only_what_a_function_names_is_handed_to_it():
    assert scores_of(lambda prompts, completions: [1.0, 2.0, 3.0]) == [1, 2, 3]
    assert scores_of(lambda task: [float(t == "math") for t in task]) == [1, 0, 1]
    assert scores_of(lambda p, c, /, task: [float(len(x)) for x in c]) == [16, 5, 10]
    assert scores_of(lambda *both: [float(len(x)) for x in both[1]]) == [16, 5, 10]


def test_a_column_that_the_data_lacks_is_named():
    def reward(completions, solution, **kwargs):
        return [0.0] * len(completions)

    with pytest.raises(UserError, match=r"reward mine: parameter 'solution' .* columns: ground_truth, task"):
        evaluate_reward(reward, TEXTS, name="mine")


def test_the_state_of_the_trainer_tells_how_far_training_is():
    def reward(completions, trainer_state, **kwargs):
        return [trainer_state.global_step / trainer_state.max_steps] * len(completions)

    assert scores_of(reward, replace(TEXTS, update=6, updates=10)) == [0.5] * 3
    assert TrainerState(global_step=0, max_steps=10).global_step == 0


def test_what_a_function_logs_goes_to_metrics_and_samples():
    def reward(completions, log_extra, log_metric, **kwargs):
        log_extra("first", [c[:1] for c in completions])
        log_metric("accuracy", 0.25)
        log_metric("accuracy", 0.75)
        return [0.0] * len(completions)

    request = replace(TEXTS, shown={})
    assert evaluate_reward(reward, request).metrics == {"accuracy": 0.5}
    assert request.shown == {"first": ["I", "a", "\\"]}
    mixed = evaluate_reward(WeightedMix({"f": reward}), replace(TEXTS, shown={}))
    assert mixed.metrics == {"f/accuracy": 0.5, "f": 0.0}


def test_as_many_values_as_completions_can_be_shown():
    def reward(completions, log_extra, **kwargs):
        log_extra("first", ["a"])

    with pytest.raises(UserError, match=r"reward reward: log_extra\('first'\): 1 values for 3 completions"):
        evaluate_reward(reward, TEXTS)


def test_coroutine_functions_run_side_by_side_and_beside_others():
    # Each passes only while the others are there too.
    barrier = threading.Barrier(3, timeout=20)

    async def slow(completions, **kwargs):
        await asyncio.get_running_loop().run_in_executor(None, barrier.wait)
        return [1.0] * len(completions)

    def plain(completions, **kwargs):
        barrier.wait()
        return [1.0] * len(completions)

    assert scores_of(WeightedMix({"a": plain, "b": slow, "c": slow})) == [3, 3, 3]


def test_a_coroutine_function_works_inside_a_running_loop():
    async def notebook():
        return scores_of(not_empty)

    assert asyncio.run(notebook()) == [1, 1, 1]
    assert scores_of(lambda prompts, completions: not_empty(prompts, completions)) == [1, 1, 1]


def test_a_coroutine_that_raises_is_told_by_its_own_lines():
    async def failing(completions, **kwargs):
        raise KeyError("x")

    with pytest.raises(UserError, match=r"reward failing: KeyError: 'x' \(.*test_calls\.py:\d+\)") as found:
        evaluate_reward(failing, TEXTS)
    assert found.value.user_traceback.count("File") == 1
