"""A process reward model's rewards: where steps end, what each earns, and that nothing else matters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from jaxalign import models
from jaxalign.errors import ConfigError, UserError
from jaxalign.models.heads import HeadConfig
from jaxalign.rewards import ModelReward, ProcessReward, RewardRequest, WeightedMix, evaluate_reward
from jaxalign.rewards.process import StepSplitter, step_rewards
from tests.data.conftest import byte_tokenizer as merging_tokenizer
from tests.data.conftest import spaced_tokenizer

STOP = 257


@pytest.fixture(scope="module")
def process_model(tiny_model_folder):
    model = models.load_pretrained(tiny_model_folder)
    steps = models.StepConfig(separator=";")
    return models.create_scalar_model(model, HeadConfig(init_std=1.0), key=jax.random.key(1), steps=steps)


def asked(tokenizer, *rows, width=12):
    """A request for (prompt, completion ids) rows."""
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for _, ids in rows]
    prompts = [prompt for prompt, _ in rows]
    return RewardRequest(
        prompts, texts, [tokenizer(p)["input_ids"] for p in prompts], [ids for _, ids in rows], {}, width
    )


def logits_at(model, ids, ends):
    tokens = jnp.asarray([ids])
    return np.asarray(model.per_token(tokens, lengths=jnp.asarray([len(ids)])))[0, ends]


def test_each_step_earns_its_probability_at_its_last_token(process_model, byte_tokenizer):
    ids = byte_tokenizer("ab;c;de")["input_ids"] + [STOP]
    request = asked(byte_tokenizer, ("Q", ids), ("Long one", byte_tokenizer("f")["input_ids"]))
    reward = ProcessReward(process_model, byte_tokenizer, score="probability", batch_size=3, pad_multiple=8)
    found = evaluate_reward(reward, request)
    # The model reads every step with its separator, the last one too, and not the stop token.
    row = byte_tokenizer("Qab;c;de;")["input_ids"]
    p = 1 / (1 + np.exp(-logits_at(process_model, row, [3, 5, 8])))
    expected = np.zeros((2, 12))
    expected[0, [2, 4, 7]] = p
    expected[1, 0] = 1 / (1 + np.exp(-logits_at(process_model, byte_tokenizer("Long onef;")["input_ids"], 9)))
    np.testing.assert_allclose(found.token_rewards, expected, rtol=1e-4)
    np.testing.assert_array_equal(found.steps, expected != 0)
    assert found.metrics["steps"] == 2
    assert found.metrics["lowest_step"] == pytest.approx((p.min() + expected[1, 0]) / 2, rel=1e-4)


def test_what_a_step_earns_by_hand():
    logits = np.log(
        np.asarray([0.8, 0.5, 0.9, 0.2], np.float32) / np.asarray([0.2, 0.5, 0.1, 0.8], np.float32)
    )
    by_hand = {
        "logit": logits,
        "probability": [0.8, 0.5, 0.9, 0.2],
        "difference": [0.8, -0.3, 0.4, -0.7],
        "minimum": [0.8, -0.3, 0.0, -0.3],
    }
    for kind, expected in by_hand.items():
        np.testing.assert_allclose(step_rewards(logits, kind), expected, atol=1e-6, err_msg=kind)
    assert step_rewards(logits, "difference").sum() == pytest.approx(0.2, abs=1e-6)
    assert step_rewards(logits, "minimum").sum() == pytest.approx(0.2, abs=1e-6)
    assert step_rewards(np.zeros(0, np.float32), "minimum").shape == (0,)
    # Repeating a right step is worth a probability each time, and else nothing.
    often = np.concatenate([logits, logits[3:], logits[3:]])
    assert step_rewards(often, "probability").sum() > step_rewards(logits, "probability").sum()
    assert step_rewards(often, "minimum").sum() == pytest.approx(0.2, abs=1e-6)
    assert np.isfinite(step_rewards(np.asarray([-1e4, 1e4], np.float32), "minimum")).all()


@pytest.mark.parametrize(
    ("text", "separator", "steps"),
    [
        ("ab\ncd", "\n", [("ab", 2), ("cd", 4)]),
        ("ab\ncd<eos>", "\n", [("ab", 2), ("cd", 5)]),
        ("ab\ncd\n<eos>", "\n", [("ab", 2), ("cd", 6)]),  # the last step ends at the last token
        ("ab\n\ncd", "\n", [("ab", 2), ("cd", 4)]),  # one token of two newlines, and no step between them
        ("ab\n\ncd", "\n\n", [("ab", 2), ("cd", 4)]),
        ("ohio", "h", [("o", 1), ("io", 2)]),  # "hi" is one token: the separator ends inside it
        ("\nab", "\n", [("ab", 2)]),
        (" \n \n", "\n", []),
        ("<eos>", "\n", []),
        ("é\nüß", "\n", [("é", 2), ("üß", 6)]),  # two tokens a letter
        ("éhiü", "h", [("é", 2), ("iü", 4)]),
    ],
)
def test_steps_are_found_in_whatever_tokens_were_sampled(text, separator, steps):
    tokenizer = merging_tokenizer()
    assert StepSplitter(tokenizer, separator)(tokenizer(text)["input_ids"]) == steps


def test_space_marks_keep_their_spaces():
    tokenizer = spaced_tokenizer()
    # "<s>", the mark, "s", "o", ".\n", the mark with "a", "b"
    ids = tokenizer("so.\n ab")["input_ids"]
    assert len(ids) == 7
    assert StepSplitter(tokenizer, "\n")(ids) == [(" so.", 4), (" ab", 6)]


def test_a_vocabulary_without_letters_has_its_steps_too():
    core = Tokenizer(WordLevel({"<pad>": 0, "1": 1, "2": 2, ";": 3}, unk_token="<pad>"))
    core.pre_tokenizer = WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<pad>", eos_token="<pad>")
    assert StepSplitter(words, " ;")([1, 2, 3, 2, 3, 1, 0]) == [(" 1 2", 2), (" 2", 4), (" 1", 6)]


def test_the_model_reads_steps_as_it_was_taught_whatever_tokens_were_sampled(process_model):
    tokenizer = merging_tokenizer()
    scores = []
    for ids in (tokenizer("ohio")["input_ids"], [i for c in "ohio" for i in tokenizer(c)["input_ids"]]):
        reward = ProcessReward(process_model, tokenizer, separator="h", score="logit")
        scores.append(evaluate_reward(reward, asked(tokenizer, ("q", ids))).token_rewards)
    merged, spelled = scores
    np.testing.assert_array_equal(np.flatnonzero(merged), [1, 2])
    np.testing.assert_array_equal(np.flatnonzero(spelled), [1, 3])
    np.testing.assert_array_equal(merged[merged != 0], spelled[spelled != 0])


def test_a_row_beyond_the_context_loses_its_beginning(process_model, byte_tokenizer):
    ids = byte_tokenizer("ab;cd")["input_ids"]
    long = asked(byte_tokenizer, ("x" * 100, ids))
    short = asked(byte_tokenizer, ("x" * 58, ids))  # 58 + 6 tokens fill the context of 64
    reward = ProcessReward(process_model, byte_tokenizer, score="logit")
    np.testing.assert_allclose(reward.score(long).token_rewards, reward.score(short).token_rewards, rtol=1e-5)


def test_a_model_without_a_separator_and_one_of_another_vocabulary_are_refused(process_model, byte_tokenizer):
    bare = models.ScalarModel(
        process_model.config, process_model.head_config, process_model.params, models.StepConfig()
    )
    with pytest.raises(ConfigError, match=r"reward\.separator: .* does not name its separator"):
        ProcessReward(bare, byte_tokenizer)
    assert ProcessReward(bare, byte_tokenizer, separator="\n").separator == "\n"
    with pytest.raises(UserError, match="its vocabulary has 259 tokens"):
        ProcessReward(process_model, byte_tokenizer, vocabulary=300)
    with pytest.raises(UserError, match="it scores the steps of a completion, not the whole"):
        ModelReward(process_model)


def test_a_mix_ends_a_step_where_any_part_does(process_model, byte_tokenizer):
    request = asked(byte_tokenizer, ("Q", byte_tokenizer("ab;cd")["input_ids"]))
    dense = np.zeros((1, 12), np.float32)
    dense[0, 1] = 0.5
    parts = {
        "model": ProcessReward(process_model, byte_tokenizer, score="probability"),
        "dense": lambda *_, **__: dense,
        "row": lambda *_, **__: [2.0],
    }
    mixed = evaluate_reward(WeightedMix(parts, {"model": 0.0, "dense": 2.0}), request)
    # A weight of 0 takes the model's rewards away, not its steps.
    np.testing.assert_array_equal(np.flatnonzero(mixed.steps), [1, 2, 4])
    assert mixed.token_rewards.sum() == 1.0
    assert mixed.scores == [2.0]
    only = evaluate_reward(WeightedMix({"row": parts["row"]}), request)
    assert only.steps is None
