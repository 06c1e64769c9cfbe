"""Arguments of lm-evaluation-harness."""

import pytest

from jaxalign.errors import ConfigError
from jaxalign.evaluation.harness_arguments import device_kind, sampling_of, whole_number


def sampling(**given):
    return sampling_of(given, longest=256, stop_tokens=(7, 3, 7))


def test_answers_are_greedy_unless_the_task_says_otherwise():
    for given in ({}, {"temperature": 0.0}, {"do_sample": False, "temperature": 0.7, "top_p": 0.5}):
        found, until = sampling(**given)
        assert (found.temperature, found.top_p, found.max_new_tokens, until) == (0.0, 1.0, 256, ())
        assert found.stop_tokens == (3, 7)


def test_answers_are_sampled_where_it_is_said_or_a_temperature_is_given():
    assert sampling(do_sample=True)[0].temperature == 1.0
    assert sampling(temperature=0.5)[0].temperature == 0.5
    found = sampling(do_sample=True, temperature="0.5", top_k="3", top_p=0.9, min_p=0.1)[0]
    assert (found.temperature, found.top_k, found.top_p, found.min_p) == (0.5, 3, 0.9, 0.1)


def test_of_several_lengths_the_first_counts():
    assert sampling(max_gen_toks=3, max_new_tokens=4)[0].max_new_tokens == 3
    assert sampling(max_completion_tokens=6, max_tokens=5)[0].max_new_tokens == 5
    assert sampling(max_gen_toks=None, max_completion_tokens="6")[0].max_new_tokens == 6


def test_texts_that_end_an_answer_are_one_or_several():
    assert sampling(until="x")[1] == ("x",)
    assert sampling(until=["x", "", "yz"])[1] == ("x", "yz")
    assert sampling(until=[])[1] == sampling(until=None)[1] == ()


def test_values_that_change_nothing_are_taken():
    assert sampling(num_beams=1, repetition_penalty=1.0, length_penalty=None) == sampling()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_beams": 4}, "num_beams=4 is not supported"),
        ({"stop": ["x"]}, "stop=.'x'. is not supported"),
        ({"temperature": -1.0, "do_sample": True}, "temperature"),
        ({"temperature": "hot"}, "could not convert string to float: 'hot'"),
        ({"top_p": 2.0, "do_sample": True}, "top_p"),
        ({"max_gen_toks": 0}, "max_new_tokens must be 1 or more, got 0"),
    ],
)
def test_a_wrong_argument_is_named(given, words):
    with pytest.raises(ConfigError, match=f"generation_kwargs: .*{words}"):
        sampling(**given)


def test_the_task_keeps_its_arguments():
    given = {"until": ["x"], "max_gen_toks": 3}
    sampling_of(given, longest=1, stop_tokens=())
    assert given == {"until": ["x"], "max_gen_toks": 3}


def test_whole_numbers_are_read_as_text():
    assert whole_number("size", "12", 1) == whole_number("size", 12, 1) == 12
    for wrong in ("0", -1, "1.5", "", "many", True):
        with pytest.raises(ConfigError, match=f"size={wrong}: expected a whole number of at least 1"):
            whole_number("size", wrong, 1)


def test_devices_have_the_names_of_both():
    names = (None, "", "auto", "cuda:0", "cuda", "gpu", "cpu", "tpu")
    assert [device_kind(name) for name in names] == [*["auto"] * 4, "gpu", "gpu", "cpu", "tpu"]
    with pytest.raises(ConfigError, match="device=mps: expected auto, cpu, gpu, cuda or tpu"):
        device_kind("mps")
