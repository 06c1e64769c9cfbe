"""Rollouts of a server: the same tokens as by our own sampler, every wrong answer in one line, new weights loaded."""

import socket
import threading
import time
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxalign import models
from jaxalign.errors import UserError
from jaxalign.models.lora import LoraConfig, create_adapter
from jaxalign.rollout import EngineConfig, Sampler, ServerEngine
from jaxalign.rollout.server import row_seeds
from tests.rollout.stub_server import StubServer

PROMPTS = [[5, 6, 7], [9, 8], [4, 3, 2, 1, 8]]
KEY = jax.random.key(3)
STOP = 257


@pytest.fixture(scope="module")
def model(tiny_model_folder):
    return models.load_pretrained(tiny_model_folder)


@pytest.fixture(scope="module")
def running(tiny_model_folder):
    with StubServer(tiny_model_folder) as stub:
        yield stub


@pytest.fixture
def stub(running, model):
    """The server as if it had just been started."""
    running.alter, running.reloads, running.adapters = (lambda path, answer: answer), True, {}
    running.sampler.update(model.params)
    running.requests.clear()
    return running


@pytest.fixture
def make(model, stub, tmp_path):
    def engine(lora=None, **changes):
        config = EngineConfig(**({"kind": "vllm", "url": stub.url, "retries": 1, "timeout": 60.0} | changes))
        return ServerEngine(config, models.split(model)[0], tmp_path / "weights", lora=lora, backoff=0.01)

    return engine


def generate(engine, prompts=PROMPTS, **changes):
    arguments = {"max_new_tokens": 6, "key": KEY, "temperature": 0.8, "num_samples": 2}
    return engine.generate(prompts, **(arguments | changes))


def seeded(sampler, prompts, key, at_once, num_samples=2, **arguments):
    """What a server with this sampler gives: each request drawn by its own seed."""
    seeds, parts = row_seeds(key, np.arange(len(prompts) * num_samples)), []
    for row in range(0, len(seeds), at_once):
        done = sampler.generate(
            [prompts[row // num_samples]], key=jax.random.key(seeds[row]), num_samples=at_once, **arguments
        )
        parts.append(done)
    return parts


@pytest.mark.long
@pytest.mark.parametrize(("kind", "at_once"), [("vllm", 2), ("sglang", 1)])
def test_completions_are_those_that_the_server_drew(kind, at_once, make, model):
    done = generate(make(kind=kind), stop_tokens=(STOP, 40))
    arguments = {"max_new_tokens": 6, "temperature": 0.8, "stop_tokens": (STOP, 40)}
    parts = seeded(Sampler(model), PROMPTS, KEY, at_once, **arguments)
    assert done.token_lists() == [tokens for part in parts for tokens in part.token_lists()]
    assert done.finish_reason == [reason for part in parts for reason in part.finish_reason]
    for name in ("logps", "sampling_logps"):
        expected = np.concatenate([np.where(part.mask, getattr(part, name), 0.0) for part in parts])
        np.testing.assert_array_equal(np.where(done.mask, getattr(done, name), 0.0), expected)
    np.testing.assert_array_equal(done.mask.sum(1), done.lengths)


@pytest.mark.long
def test_every_setting_is_sent_and_none_is_left_to_the_servers_default(make, stub):
    generate(make(), temperature=0.5, top_k=7, top_p=0.9, min_p=0.1, stop_tokens=(3,))
    body = stub.bodies("/v1/completions")[0]
    expected = {
        "model": "tiny", "max_tokens": 6, "n": 2, "temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1,
        "stop_token_ids": [3], "ignore_eos": True, "repetition_penalty": 1.0, "presence_penalty": 0.0,
        "frequency_penalty": 0.0, "return_token_ids": True, "logprobs": 0,
    }  # fmt: skip
    assert {name: body[name] for name in expected} == expected
    assert sorted(body["prompt"] for body in stub.bodies("/v1/completions")) == sorted(PROMPTS)
    stub.requests.clear()
    generate(make(kind="sglang"))
    bodies = stub.bodies("/v1/completions")
    assert [body["n"] for body in bodies] == [1] * 6
    assert len({body["seed"] for body in bodies}) == 6
    # There, ignore_eos would turn off stop tokens too.
    assert (bodies[0]["top_k"], bodies[0]["ignore_eos"], bodies[0]["stop_token_ids"]) == (-1, False, [STOP])


def test_a_rows_seed_is_of_the_key_and_its_id_alone(make, stub):
    many = row_seeds(KEY, np.arange(64))
    np.testing.assert_array_equal(row_seeds(KEY, np.asarray([5, 63])), many[[5, 63]])
    assert len(set(many.tolist())) == 64
    assert not set(many.tolist()) & set(row_seeds(jax.random.key(4), np.arange(64)).tolist())
    generate(make(), row_ids=[8, 9, 0, 1, 2, 3])
    sent = {tuple(body["prompt"]): body["seed"] for body in stub.bodies("/v1/completions")}
    assert [sent[tuple(prompt)] for prompt in PROMPTS] == many[[8, 0, 2]].tolist()


def test_token_ids_written_as_text_and_choices_in_any_order_are_read(make, stub):
    expected = generate(make()).token_lists()

    def without_ids(path, answer):
        choices = answer[1].get("choices", [])
        for choice in choices:
            del choice["token_ids"]
        choices.reverse()
        return answer

    stub.alter = without_ids
    assert generate(make()).token_lists() == expected


def changed(path="/v1/completions", status=200, **fields):
    """An alteration: fields of the last choice (`logprobs__x` inside it), by function of the old value."""

    def alter(found, answer):
        if found != path:
            return answer
        choice = answer[1]["choices"][-1]
        for name, change in fields.items():
            part, _, inner = name.partition("__")
            if inner:
                choice[part][inner] = change(choice[part][inner])
            else:
                choice[part] = change(choice[part])
        return status, answer[1]

    return alter


def whole(status, answer, path="/v1/completions"):
    """An alteration: the whole answer."""
    return lambda found, old: (status, answer) if found == path else old


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (whole(200, {"choices": []}), "requested 2 completions, got 0"),
        (whole(200, {}), "requested 2 completions, got no"),
        (
            changed(token_ids=lambda x: None, logprobs__tokens=lambda x: ["a"] * len(x)),
            "no token ids; the server must support return_token_ids",
        ),
        (changed(logprobs=lambda x: None), "6 token ids and 0 log-probs"),
        (changed(logprobs__token_logprobs=lambda x: x[:-1]), "6 token ids and 5 log-probs"),
        (changed(logprobs__token_logprobs=lambda x: [*x[:-1], None]), "a log-prob that is not finite"),
        (
            changed(logprobs__token_logprobs=lambda x: [*x[:-1], float("nan")]),
            "a log-prob that is not finite",
        ),
        (
            changed(token_ids=lambda x: [*x[:-1], 259]),
            "sampled token 259; the policy's vocabulary has 259",
        ),
        (changed(token_ids=lambda x: [*x[:-1], -1]), "sampled token -1"),
        (changed(finish_reason=lambda x: "abort"), "ended with 'abort', expected stop or length"),
        (
            changed(finish_reason=lambda x: "stop"),
            "which is not a stop token; add it to sampling.stop_tokens",
        ),
        (changed(token_ids=lambda x: [257, *x[1:]]), "continued after stop token 257"),
        (
            changed(token_ids=lambda x: x[:4], logprobs__token_logprobs=lambda x: x[:4]),
            "cut after 4 of 6 tokens; the server's context is too short",
        ),
        (
            whole(400, {"error": {"message": "max_tokens is\ntoo large"}}),
            "HTTP 400: max_tokens is too large$",
        ),
        (whole(422, {"detail": [{"msg": "no such field"}]}), r'HTTP 422: \[{"msg": "no such field"}\]$'),
        (whole(503, {"message": "loading"}), r"no reply from the server \(HTTP 503: loading; tries: 2\)"),
        (whole(200, None), "requested 2 completions, got no"),
        (whole(200, {"choices": ["a", "b"]}), "requested 2 completions, got no"),
        (changed(logprobs=lambda x: [1]), "6 token ids and 0 log-probs"),
        (whole(200, {"data": []}, "/v1/models"), "serves no model; name one of them"),
        (whole(404, {"detail": "Not Found"}, "/v1/models"), "/v1/models: HTTP 404: Not Found"),
    ],
)
def test_what_a_server_does_wrong_is_one_line(alter, message, make, stub):
    stub.alter = alter
    with pytest.raises(UserError, match=message) as caught:
        generate(make(), stop_tokens=(257,), key=jax.random.key(0))
    assert "\n" not in str(caught.value)


def test_a_model_that_the_server_has_not_is_named(make):
    with pytest.raises(UserError, match="serves tiny; there is no large"):
        make(model="large").connect()


def test_a_server_that_is_not_there_is_one_line_after_the_retries(make):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(
        UserError, match=r"no reply from the server \(.*; tries: 2\); check rollout.engine.url"
    ):
        make(url=url).connect()


def test_a_lost_connection_is_tried_again(make, stub):
    lost = []

    def lose_once(path, answer):
        if path == "/v1/completions" and not lost:
            lost.append(path)
            raise ConnectionResetError  # the handler's thread ends without an answer
        return answer

    expected = generate(make()).token_lists()
    stub._http.handle_error = lambda *_: None
    stub.alter = lose_once
    assert generate(make()).token_lists() == expected
    assert lost


def test_no_answer_in_time_is_one_line(make, stub):
    release = threading.Event()
    stub.alter = lambda path, answer: release.wait(20) and answer if "completions" in path else answer
    try:
        with pytest.raises(UserError, match=r"no reply within 0.3 seconds \(rollout.engine.timeout\)"):
            generate(make(timeout=0.3, retries=0))
    finally:
        release.set()


def test_the_first_failure_ends_the_other_requests(make, stub):
    release, failed = threading.Event(), []

    def fail_or_hang(path, answer):
        if path != "/v1/completions":
            return answer
        if not failed:
            failed.append(path)
            return 400, {"message": "no"}
        release.wait(20)
        return answer

    expected = generate(make()).token_lists()
    stub.alter, started, engine = fail_or_hang, time.perf_counter(), make()
    try:
        with pytest.raises(UserError, match="HTTP 400: no"):
            generate(engine)
        assert time.perf_counter() - started < 10
    finally:
        release.set()
    # And the engine is of use again.
    stub.alter = lambda path, answer: answer
    assert generate(engine).token_lists() == expected


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_new_weights_are_those_the_server_samples_from(kind, make, model, stub, tmp_path):
    moved = jax.tree.map(lambda x: x * 1.5, model.params)
    engine = make(kind=kind)
    before = generate(engine, num_samples=1).token_lists()
    engine.update(moved)
    after = generate(engine, num_samples=1)
    sampler = Sampler(models.merge(models.split(model)[0], moved))
    parts = seeded(sampler, PROMPTS, KEY, 1, num_samples=1, max_new_tokens=6, temperature=0.8)
    assert after.token_lists() == [part.token_lists()[0] for part in parts] != before
    engine.update(model.params)
    assert generate(engine, num_samples=1).token_lists() == before
    # One folder at a time, and none in the end.
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["weights-2"]
    engine.close()
    assert not (tmp_path / "weights").exists()
    if kind == "vllm":
        assert len(stub.bodies("/reset_prefix_cache")) == 2


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_an_adapter_is_loaded_under_a_new_name_each_time(kind, make, model, stub):
    lora = LoraConfig(enabled=True, rank=2)
    adapter = create_adapter(model.config, lora, key=jax.random.key(1))
    adapter = jax.tree.map(lambda x: x + 0.3, adapter)
    engine = make(kind=kind, weights="adapter", lora=lora)
    twice = jax.tree.map(lambda x: 2 * x, adapter)
    for leaves in (adapter, twice):
        attached = models.attach(leaves, lora)
        engine.update(model.params, adapter=attached)
        sampler = Sampler(models.merge_adapter(model, attached))
        parts = seeded(sampler, PROMPTS, KEY, 1, num_samples=1, max_new_tokens=6, temperature=0.8)
        done = generate(engine, num_samples=1)
        assert done.token_lists() == [part.token_lists()[0] for part in parts]
        assert len(stub.adapters) == 1
    names = [body["lora_name"] for path, body in stub.requests if path.endswith("/load_lora_adapter")]
    assert len(set(names)) == 2
    assert not stub.bodies("/collective_rpc")
    engine.close()
    assert not stub.adapters


def test_weights_that_the_server_refuses_are_one_line(make, model, stub):
    stub.alter = whole(500, {"message": "no such file"}, "/collective_rpc")
    with pytest.raises(UserError, match="/collective_rpc: HTTP 500: no such file"):
        make().update(model.params)
    stub.alter = whole(200, {"success": False, "message": "bad shape"}, "/update_weights_from_disk")
    with pytest.raises(UserError, match="did not load the weights: bad shape"):
        make(kind="sglang").update(model.params)


def test_the_api_key_comes_from_the_environment(make, stub, monkeypatch):
    monkeypatch.setenv("STUB_KEY", "secret")
    engine = make(api_key_env="STUB_KEY")
    assert engine._client._headers["Authorization"] == "Bearer secret"
    assert "secret" not in repr(EngineConfig(kind="vllm", url=stub.url, api_key_env="STUB_KEY"))


VLLM = EngineConfig(kind="vllm", url="http://127.0.0.1:8000")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": ""}, "url must be http://host:port for rollout.engine.kind=vllm, got ''"),
        ({"url": "localhost:8000"}, "url must be http://host:port"),
        ({"kind": "local"}, "needs rollout.engine.kind vllm, sglang or openai"),
        ({"kind": "openai"}, "grow stale; use vllm or sglang, or allow it with"),
        ({"kind": "openai", "allow_stale": True, "weights": "adapter"}, "weights=adapter needs"),
        ({"timeout": 0.0}, "timeout must be positive, got 0"),
        ({"concurrency": 0}, "concurrency must be positive, got 0"),
        ({"logp_tolerance": -1.0}, "logp_tolerance must be positive, got -1"),
        ({"retries": -1}, "retries must not be negative, got -1"),
    ],
)
def test_settings_that_cannot_work_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(VLLM, **changes)
