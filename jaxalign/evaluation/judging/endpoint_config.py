"""An OpenAI-compatible chat-completions endpoint, and how it is asked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

PATH = "/chat/completions"
# What the client decides itself.
RESERVED = ("model", "messages", "stream", "n")


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """An endpoint and how it is asked.

    Attributes:
      base_url: address up to /chat/completions, as https://api.openai.com/v1 or http://host:port/v1.
      model: name of the model there.
      api_key_env: environment variable that holds the API key; where it is empty or not set, none is sent.
      parameters: further fields of each request; some models take max_completion_tokens and no temperature.
      timeout: seconds to wait for the server at each step of a reply.
      retries: times that a request is sent again when the server is busy, fails or does not answer.
      backoff: seconds before the first of them; each next one waits twice as long, less a random part of up to half.
      longest_wait: seconds that are waited at most; a server that asks for more is given up.
      concurrency: requests at the same time.
      cache: file of replies, see `ReplyCache`. The address is no part of a reply's key: give each server its own file
        unless they serve the same model.
      prompt_price, completion_price: of a million tokens, in any one currency; None counts tokens alone.
    """

    base_url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0.0, "max_tokens": 1024})
    timeout: float = 120.0
    retries: int = 6
    backoff: float = 1.0
    longest_wait: float = 120.0
    concurrency: int = 8
    cache: str = ""
    prompt_price: float | None = None
    completion_price: float | None = None

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.base_url)
            known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            parts, known = None, False
        if parts is None or not known:
            raise ValueError(
                f"base_url must be http://host:port/v1 or https://host/v1, got {self.base_url!r}"
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "base_url must hold no user, password, query or fragment, for it is shown in messages; the key comes "
                "from api_key_env"
            )
        if not self.model:
            raise ValueError("model must name a model of the endpoint, got an empty name")
        for name in ("timeout", "backoff", "longest_wait"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.concurrency < 1 or self.retries < 0:
            raise ValueError(
                f"concurrency must be at least 1 and retries at least 0, got {self.concurrency} and {self.retries}"
            )
        reserved = [name for name in RESERVED if name in self.parameters]
        if reserved:
            raise ValueError(f"parameters must not hold {reserved[0]}")
        prices = [self.prompt_price, self.completion_price]
        if prices.count(None) == 1 or any(price is not None and not price >= 0 for price in prices):
            raise ValueError(f"expected both prices, not negative, or none, got {prices[0]} and {prices[1]}")

    @property
    def url(self) -> str:
        """Where requests go."""
        return self.base_url.rstrip("/") + PATH
