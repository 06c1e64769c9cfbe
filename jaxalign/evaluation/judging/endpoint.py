"""A client of an OpenAI-compatible chat-completions endpoint: retries, a cache, and a count of what was spent.

How the API key is kept: see `sender`.
"""

import json
import random
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any

from jaxalign.errors import UserError
from jaxalign.evaluation.judging.endpoint_config import EndpointConfig
from jaxalign.evaluation.judging.reply_cache import ReplyCache, request_key
from jaxalign.evaluation.judging.sender import Sender

Message = Mapping[str, Any]

PER_PRICE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A reply.

    Attributes:
      text: what the model said; empty where it said nothing.
      finish_reason: stop, length, ...; may be empty.
      prompt_tokens, completion_tokens: as the server counts them; None where it does not.
      cached: no request was sent for it.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cached: bool = False


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What an `Endpoint` has spent since it was made.

    Attributes:
      requests: replies that the server gave.
      cached: conversations that needed no request.
      retries: requests sent again.
      prompt_tokens, completion_tokens: of the replies that came with a count.
      uncounted: replies without one, so that tokens and cost are too low.
      cost: by the prices of the configuration; None without them.
    """

    requests: int = 0
    cached: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    cost: float | None = None


class Endpoint:
    """Asks an endpoint; a context manager, or `close` it. Calls of several threads wait for one another.

    Raises:
      DataError, UserError: the cache, see `ReplyCache`.
    """

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        self._cache = ReplyCache(config.cache)
        self._sender = Sender(config)
        self._stopped = threading.Event()
        self._lock, self._one_call = threading.Lock(), threading.Lock()
        self._spent = Usage()

    def __enter__(self) -> "Endpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets other processes use the cache."""
        self._cache.close()

    @property
    def usage(self) -> Usage:
        """What was spent so far."""
        spent, config = self._spent, self.config
        if config.prompt_price is None or config.completion_price is None:
            return spent
        paid = spent.prompt_tokens * config.prompt_price + spent.completion_tokens * config.completion_price
        return replace(spent, cost=paid / PER_PRICE)

    def ask(self, conversations: Sequence[Sequence[Message]]) -> list[str]:
        """The text of each reply; see `replies`."""
        return [reply.text for reply in self.replies(conversations)]

    def replies(self, conversations: Sequence[Sequence[Message]]) -> list[Reply]:
        """A reply to each conversation, in order; equal conversations get one reply.

        Each reply is in the cache as soon as it is there. The first failure ends all: requests that run are awaited
        (they are paid for), no other is sent.

        Raises:
          UserError: the endpoint refuses, or does not answer after all retries: one line with address and status.
        """
        with self._one_call:
            return self._replies([self._body(conversation) for conversation in conversations])

    def _replies(self, bodies: Sequence[dict[str, Any]]) -> list[Reply]:
        keys = [request_key(body) for body in bodies]
        new = {key: body for key, body in zip(keys, bodies, strict=True) if self._cache.get(key) is None}
        self._count(cached=len(keys) - len(new))
        self._stopped.clear()
        pool = ThreadPoolExecutor(max(1, min(self.config.concurrency, len(new))))
        try:
            for future in as_completed([pool.submit(self._fetch, key, body) for key, body in new.items()]):
                future.result()
        except BaseException:
            self._stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            pool.shutdown()
        return [self._kept(key, cached=key not in new) for key in keys]

    def _body(self, conversation: Sequence[Message]) -> dict[str, Any]:
        messages = [dict(message) for message in conversation]
        return {**self.config.parameters, "model": self.config.model, "messages": messages}

    def _kept(self, key: str, *, cached: bool) -> Reply:
        row = self._cache.get(key)
        assert row is not None
        return Reply(
            text=row["text"],
            finish_reason=row.get("finish_reason") or "",
            prompt_tokens=row.get("prompt_tokens"),
            completion_tokens=row.get("completion_tokens"),
            cached=cached,
        )

    def _fetch(self, key: str, body: Mapping[str, Any]) -> None:
        """Asks until there is a reply, and keeps it."""
        data, config, tries = json.dumps(body).encode(), self.config, 0
        while not self._stopped.is_set():
            reason, asked_to_wait, answer = self._sender.once(data)
            if answer is not None:
                self._keep(key, answer)
                return
            tries += 1
            if asked_to_wait > config.longest_wait:
                reason += f"; it asks to wait {asked_to_wait:.0f} seconds, more than longest_wait"
            if tries > config.retries or asked_to_wait > config.longest_wait:
                raise UserError(f"{config.url}: no reply ({reason}; tries: {tries})")
            self._count(retries=1)
            wait = min(config.backoff * 2 ** (tries - 1), config.longest_wait) * random.uniform(0.5, 1.0)
            # Never sooner than asked, and not all at the same moment.
            self._stopped.wait(asked_to_wait + wait)

    def _keep(self, key: str, answer: Mapping[str, Any]) -> None:
        try:
            choice = answer["choices"][0]
            text = choice["message"].get("content")
            reason = choice.get("finish_reason")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise UserError(
                f"{self.config.url}: expected choices with a message, as of chat completions"
            ) from None
        if not isinstance(text, (str, type(None))):
            raise UserError(f"{self.config.url}: expected a text in the message, got {type(text).__name__}")
        counted = answer.get("usage")
        counts = [
            counted.get(name) if isinstance(counted, dict) else None
            for name in ("prompt_tokens", "completion_tokens")
        ]
        prompt, completion = (n if isinstance(n, int) and n >= 0 else None for n in counts)
        row = {
            "model": self.config.model,
            "text": text or "",
            "finish_reason": reason if isinstance(reason, str) else "",
            "prompt_tokens": prompt,
            "completion_tokens": completion,
        }
        self._count(
            requests=1,
            prompt_tokens=prompt or 0,
            completion_tokens=completion or 0,
            uncounted=int(prompt is None or completion is None),
        )
        self._cache.put(key, row)

    def _count(self, **more: int) -> None:
        with self._lock:
            self._spent = replace(self._spent, **{n: getattr(self._spent, n) + x for n, x in more.items()})
