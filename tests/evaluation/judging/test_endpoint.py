"""An endpoint is asked as often as needed and no oftener, and the key is seen by it alone."""

import email.utils
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxalign.errors import ConfigError, UserError
from jaxalign.evaluation.judging.endpoint import Endpoint, EndpointConfig
from tests.evaluation.judging.chat_server import ChatServer, completion

KEY = "sk-very-secret-42"
FAST = {"backoff": 0.01, "timeout": 5.0, "retries": 3}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("no_proxy", "*")


def config(server, **changes):
    return EndpointConfig(**({"base_url": server.base_url, "model": "judge", **FAST} | changes))


def talk(*texts):
    return [[{"role": "user", "content": text}] for text in texts]


def echo(number, body):
    return 200, completion(f"re: {body['messages'][-1]['content']}"), {}


def first_then(*answers):
    """Such answers to the first requests, and a good one to the rest."""

    def answer(number, body):
        return answers[number] if number < len(answers) else echo(number, body)

    return answer


def failure(server, **changes):
    """What the endpoint says when it gives up: one line, without the key."""
    with Endpoint(config(server, **changes)) as endpoint, pytest.raises(UserError) as error:
        endpoint.ask(talk("hi"))
    said = str(error.value)
    assert said.startswith(f"{server.base_url}/chat/completions: ") and "\n" not in said and KEY not in said
    return said


def test_replies_come_in_the_order_of_the_questions():
    def answer(number, body):
        time.sleep(0.02 if body["messages"][-1]["content"] == "a" else 0.0)
        return echo(number, body)

    with ChatServer(answer) as server, Endpoint(config(server)) as endpoint:
        assert endpoint.ask(talk("a", "b", "c")) == ["re: a", "re: b", "re: c"]
        path, headers, _ = server.requests[0]
        assert path == "/v1/chat/completions"
        assert headers["Authorization"] == f"Bearer {KEY}" and headers["User-Agent"].startswith("jaxalign/")
        expected = {"model": "judge", "temperature": 0.0, "max_tokens": 1024}
        assert all(body | {"messages": 0} == expected | {"messages": 0} for body in server.bodies)


def test_parameters_are_the_users_own():
    with ChatServer(echo) as server, Endpoint(config(server, parameters={"seed": 3})) as endpoint:
        endpoint.ask(talk("a"))
        assert server.bodies == [{"model": "judge", "seed": 3, "messages": talk("a")[0]}]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_busy_server_is_asked_again(status):
    answer = first_then((status, {"error": {"message": "busy"}}, {}))
    with ChatServer(answer) as server, Endpoint(config(server)) as endpoint:
        assert endpoint.ask(talk("a")) == ["re: a"]
        assert (endpoint.usage.requests, endpoint.usage.retries, len(server.requests)) == (1, 1, 2)


@pytest.mark.parametrize(
    "header",
    [lambda: "0.4", lambda: email.utils.formatdate(time.time() + 2, usegmt=True)],
    ids=["seconds", "date"],
)
def test_a_server_that_asks_for_time_is_given_it(header):
    arrived = []

    def answer(number, body):
        arrived.append(time.time())
        return (429, {}, {"Retry-After": header()}) if number == 0 else echo(number, body)

    with ChatServer(answer) as server, Endpoint(config(server)) as endpoint:
        assert endpoint.ask(talk("a")) == ["re: a"]
    # A date has whole seconds.
    assert 0.4 <= arrived[1] - arrived[0] < 3


def test_a_server_that_asks_for_too_much_time_is_given_up():
    with ChatServer(first_then((429, {"error": "slow down"}, {"Retry-After": "3600"}))) as server:
        said = failure(server, longest_wait=60.0)
        assert len(server.requests) == 1
    assert "HTTP 429: slow down; it asks to wait 3600 seconds, more than longest_wait; tries: 1" in said


def test_waits_grow_and_differ(monkeypatch):
    waits = []
    with ChatServer(lambda number, body: (500, {}, {})) as server:
        endpoint = Endpoint(config(server, retries=6, backoff=1.0, longest_wait=10.0))
        monkeypatch.setattr(endpoint._stopped, "wait", lambda seconds: waits.append(seconds))
        with pytest.raises(UserError, match="tries: 7"):
            endpoint.ask(talk("a"))
    parts = [wait / whole for wait, whole in zip(waits, [1, 2, 4, 8, 10, 10], strict=True)]
    assert all(0.5 <= part <= 1 for part in parts) and len(set(parts)) > 1


def test_a_server_that_keeps_failing_is_named_with_its_status():
    with ChatServer(lambda number, body: (503, {"error": {"message": f"no\nroom for {KEY}"}}, {})) as server:
        said = failure(server)
        assert len(server.requests) == 4
    assert said.endswith("no reply (HTTP 503: no room for ***; tries: 4)")


def test_a_silent_server_is_left_after_the_timeout():
    done = threading.Event()

    def answer(number, body):
        done.wait(5)
        return echo(number, body)

    with ChatServer(answer) as server:
        said = failure(server, timeout=0.05, retries=1)
        assert len(server.requests) == 2
        done.set()
    assert "no reply (no answer within 0.05 seconds; tries: 2)" in said


def test_a_server_that_is_not_there_is_named():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = EndpointConfig(base_url=f"http://127.0.0.1:{port}/v1/", model="m", **FAST)
    with (
        Endpoint(settings) as endpoint,
        pytest.raises(UserError, match=rf"^http://127.0.0.1:{port}/v1/chat/com.*tries: 4"),
    ):
        endpoint.ask(talk("hi"))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((200, "<html>\nproxy", {}), "no reply (expected JSON, got '<html> proxy'; tries: 4)"),
        ((200, '{"choices": [{"mess', {}), "expected JSON, got "),
        ((200, {"error": {"message": "upstream is down"}}, {}), "no reply (upstream is down; tries: 4)"),
        ((200, {"object": "list"}, {}), "expected choices with a message, as of chat completions"),
        ((200, [1], {}), "expected choices with a message"),
        ((200, {"choices": []}, {}), "expected choices with a message"),
        ((200, {"choices": [{"message": None}]}, {}), "expected choices with a message"),
        ((200, {"choices": [{"message": {"content": [1]}}]}, {}), "expected a text in the message, got list"),
        ((200, completion("cut"), {"Content-Length": "4000"}), "no reply (IncompleteRead("),
        ((400, {"error": {"message": "no such parameter"}}, {}), "HTTP 400: no such parameter"),
        ((404, "", {}), "HTTP 404: no message"),
        (
            (401, {"error": {"message": f"bad key {KEY}"}}, {}),
            "HTTP 401: bad key ***; check the API key in OPENAI_API_KEY",
        ),
    ],
)
def test_an_answer_that_is_none_is_told(answer, said):
    def closing(number, body):
        status, text, headers = answer
        return status, text, headers

    with ChatServer(closing) as server:
        found = failure(server, timeout=0.3 if "cut" in str(answer) else 5.0)
        assert said in found or ("IncompleteRead" in said and "no answer within" in found)
        assert len(server.requests) == (4 if "tries: 4" in found else 1)


def test_json_that_was_broken_once_is_asked_for_again():
    with ChatServer(first_then((200, "{", {}))) as server, Endpoint(config(server)) as endpoint:
        assert endpoint.ask(talk("a")) == ["re: a"]


def test_a_redirect_does_not_carry_the_key_on():
    with ChatServer(echo) as other:
        target = f"{other.base_url}/chat/completions"
        for status in (301, 302, 307, 308):
            with ChatServer(lambda number, body, s=status: (s, {}, {"Location": target})) as server:
                assert f"HTTP {status}" in failure(server)
        assert other.requests == []


def test_without_a_key_none_is_sent(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with ChatServer(first_then((401, {}, {}))) as server:
        assert "no API key was sent (OPENAI_API_KEY is empty)" in failure(server)
        with Endpoint(config(server)) as endpoint:
            endpoint.ask(talk("a"))
        assert "Authorization" not in server.requests[-1][1]
    monkeypatch.setenv("MINE", " other \n")
    with ChatServer(echo) as server, Endpoint(config(server, api_key_env="MINE")) as endpoint:
        endpoint.ask(talk("a"))
        assert server.requests[0][1]["Authorization"] == "Bearer other"


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "ümlaut"])
def test_a_key_that_cannot_be_sent_is_not_shown(monkeypatch, key):
    monkeypatch.setenv("MINE", key)
    with ChatServer(echo) as server, Endpoint(config(server, api_key_env="MINE")) as endpoint:
        with pytest.raises(
            ConfigError, match="environment variable MINE: expected an API key of ASCII"
        ) as error:
            endpoint.ask(talk("a"))
        assert key not in str(error.value) and server.requests == []


def test_what_is_in_the_cache_is_not_asked_again(tmp_path):
    cache = str(tmp_path / "replies.jsonl")
    with ChatServer(echo) as server:
        with Endpoint(config(server, cache=cache)) as endpoint:
            first = endpoint.replies(talk("a", "b", "a"))
            assert len(server.requests) == 2
            assert [reply.cached for reply in first] == [False, False, False]
            assert (endpoint.usage.requests, endpoint.usage.cached) == (2, 1)
        # Another address, with the same model.
        with ChatServer(echo) as moved, Endpoint(config(moved, cache=cache)) as endpoint:
            again = endpoint.replies(talk("b", "a", "c"))
            assert [reply.text for reply in again] == ["re: b", "re: a", "re: c"]
            assert [reply.cached for reply in again] == [True, True, False]
            assert len(moved.requests) == 1 and endpoint.usage.cached == 2
            assert endpoint.usage.prompt_tokens == 10  # of the new one alone
        for changes in ({"model": "other"}, {"parameters": {}}):
            with Endpoint(config(server, cache=cache, **changes)) as endpoint:
                assert endpoint.replies(talk("a"))[0].cached is False
    text = Path(cache).read_text()
    assert KEY not in text and "Bearer" not in text and text.count("\n") == 5


def test_a_run_that_was_killed_pays_nothing_twice(tmp_path):
    cache = tmp_path / "replies.jsonl"
    questions = talk(*"abcdef")
    with (
        ChatServer(lambda number, body: echo(number, body) if number < 4 else (400, {}, {})) as server,
        Endpoint(config(server, cache=str(cache), concurrency=1)) as endpoint,
        pytest.raises(UserError),
    ):
        endpoint.ask(questions)
    lines = cache.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    # The kill comes while the fourth is written.
    cache.write_bytes(b"".join(lines[:3]) + lines[3][:25])
    with ChatServer(echo) as server, Endpoint(config(server, cache=str(cache))) as endpoint:
        assert endpoint.ask(questions) == [f"re: {letter}" for letter in "abcdef"]
        assert sorted(body["messages"][0]["content"] for body in server.bodies) == ["d", "e", "f"]


def test_requests_that_run_when_another_fails_are_kept_and_no_more_are_sent(tmp_path):
    both = threading.Barrier(2)

    def answer(number, body):
        content = body["messages"][-1]["content"]
        if content in "ab":
            both.wait(5)
        if content == "a":
            return 400, {"error": "refused"}, {}
        time.sleep(0.1)
        return echo(number, body)

    cache = tmp_path / "replies.jsonl"
    with ChatServer(answer) as server, Endpoint(config(server, cache=str(cache), concurrency=2)) as endpoint:
        with pytest.raises(UserError, match="HTTP 400: refused"):
            endpoint.ask(talk(*"abcdefgh"))
        assert len(server.requests) <= 4
    assert '"re: b"' in cache.read_text()


def test_as_many_requests_run_at_once_as_allowed_and_no_more():
    three = threading.Barrier(3)

    def answer(number, body):
        three.wait(5)  # broken, and the test with it, where fewer come
        return echo(number, body)

    with ChatServer(answer) as server, Endpoint(config(server, concurrency=3)) as endpoint:
        endpoint.ask(talk(*map(str, range(12))))
        assert server.most_at_once == 3


def test_tokens_and_cost_are_counted():
    def answer(number, body):
        reply = completion("x", prompt_tokens=1000, completion_tokens=10)
        if body["messages"][-1]["content"] == "b":
            del reply["usage"]
        return 200, reply, {}

    prices = {"prompt_price": 2.0, "completion_price": 50.0}
    with ChatServer(answer) as server:
        with Endpoint(config(server, **prices)) as endpoint:
            replies = endpoint.replies(talk("a", "b", "c"))
            usage = endpoint.usage
        assert (usage.requests, usage.prompt_tokens, usage.completion_tokens, usage.uncounted) == (
            3,
            2000,
            20,
            1,
        )
        assert usage.cost == pytest.approx((2000 * 2 + 20 * 50) / 1e6)
        assert (replies[0].prompt_tokens, replies[1].prompt_tokens) == (1000, None)
        with Endpoint(config(server)) as endpoint:
            endpoint.ask(talk("a"))
            assert endpoint.usage.cost is None and endpoint.usage.prompt_tokens == 1000


def test_a_model_that_says_nothing_has_said_so():
    with (
        ChatServer(lambda number, body: (200, completion(None), {})) as server,
        Endpoint(config(server)) as endpoint,
    ):
        assert endpoint.ask(talk("a")) == [""]


def test_nothing_is_asked_of_nobody():
    with ChatServer(echo) as server, Endpoint(config(server)) as endpoint:
        assert endpoint.ask([]) == [] and server.requests == []


def test_the_key_stands_in_no_repr():
    with ChatServer(echo) as server, Endpoint(config(server)) as endpoint:
        endpoint.ask(talk("a"))
        assert KEY not in repr(endpoint) + repr(endpoint.config) + repr(vars(endpoint))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_url": "api.openai.com/v1"}, "base_url must be http://host:port/v1"),
        ({"base_url": "file:///etc/passwd"}, "base_url must be http://host:port/v1"),
        ({"base_url": "http://host:port/v1"}, "base_url must be http://host:port/v1"),
        ({"base_url": "https://me:pass@host/v1"}, "base_url must hold no user, password, query"),
        ({"base_url": "https://host/v1?key=x"}, "base_url must hold no user, password, query"),
        ({"model": ""}, "model must name a model"),
        ({"timeout": 0.0}, "timeout must be positive, got 0.0"),
        ({"longest_wait": -1.0}, "longest_wait must be positive"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"retries": -1}, "retries at least 0"),
        ({"parameters": {"messages": []}}, "parameters must not hold messages"),
        ({"parameters": {"n": 2}}, "parameters must not hold n"),
        ({"prompt_price": 1.0}, "expected both prices"),
        ({"prompt_price": 1.0, "completion_price": -1.0}, "expected both prices, not negative"),
    ],
)
def test_a_wrong_setting_is_named(changes, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        EndpointConfig(**({"base_url": "https://host/v1", "model": "m"} | changes))


@pytest.mark.long
def test_a_process_that_is_killed_leaves_what_it_paid_for(tmp_path):
    cache = tmp_path / "replies.jsonl"
    letters = "abcdefghijklmnop"

    def answer(number, body):
        time.sleep(0.05)
        return echo(number, body)

    program = (
        "import sys; from jaxalign.evaluation.judging.endpoint import Endpoint, EndpointConfig\n"
        "config = EndpointConfig(base_url=sys.argv[1], model='judge', cache=sys.argv[2], concurrency=2)\n"
        f"Endpoint(config).ask([[{{'role': 'user', 'content': letter}}] for letter in {letters!r}])"
    )
    with ChatServer(answer) as server:
        run = subprocess.Popen([sys.executable, "-c", program, server.base_url, str(cache)])
        while run.poll() is None and len(server.requests) < 6:
            time.sleep(0.005)
        run.kill()
        assert run.wait() == -signal.SIGKILL
        time.sleep(0.2)
        first = [body["messages"][0]["content"] for body in server.bodies]
        kept = {json.loads(line)["text"][-1] for line in cache.read_text().splitlines()}
        assert 3 <= len(kept) < len(letters)
        with Endpoint(config(server, cache=str(cache))) as endpoint:
            assert endpoint.ask(talk(*letters)) == [f"re: {letter}" for letter in letters]
        second = [body["messages"][0]["content"] for body in server.bodies][len(first) :]
        assert set(second) == set(letters) - kept and len(second) == len(set(second))
