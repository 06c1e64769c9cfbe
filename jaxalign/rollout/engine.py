"""The interface of a rollout engine, and the settings of one."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from jaxalign.models.layers import Adapter, Params
from jaxalign.rollout.generate import Completions


class Engine(Protocol):
    """The interface through which a trainer samples; `Sampler` and `ServerEngine` implement it."""

    # Typed loosely: an engine may name the arguments that it takes, or take all as `**Unpack[SamplingArguments]`.
    def generate(self, prompts: Sequence[Sequence[int]], *args: Any, **sampling: Any) -> Completions:
        """Completions of the prompts under the weights of the last `update`.

        It is called with the keyword arguments of `SamplingArguments`, and with no other.
        """
        ...

    def update(self, params: Params, *, adapter: Adapter | None = None) -> None:
        """Sets new weights, and a LoRA adapter unless it is merged into them; the next `generate` uses them."""
        ...


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The engine that samples completions.

    Attributes:
      kind: local (this process), vllm or sglang (a server that loads the policy's weights before each rollout) or
        openai (a server of the OpenAI completions API, whose weights never change).
      url: address of the server, as http://host:port.
      model: name of the model on the server; empty uses the only one it serves.
      api_key_env: environment variable that holds the server's API key; empty sends none.
      folder: folder to write weights to, which the server must see under the same path; empty uses the run folder.
      weights: what a LoRA run sends to the server: merged (all weights) or adapter (a PEFT folder; the server must be
        started with LoRA enabled).
      concurrency: maximum number of simultaneous requests.
      timeout: seconds to wait for a reply.
      retries: number of times to resend a request to an unreachable server, waiting longer each time.
      logp_tolerance: maximum mean difference, in nats per token, between the server's and the policy's log-probs:
        above it the run stops before its first update, and warns after later ones.
      allow_stale: train on samples from weights other than the policy's (kind=openai).
    """

    kind: Literal["local", "vllm", "sglang", "openai"] = "local"
    url: str = ""
    model: str = ""
    api_key_env: str = ""
    folder: str = ""
    weights: Literal["merged", "adapter"] = "merged"
    concurrency: int = 64
    timeout: float = 600.0
    retries: int = 5
    logp_tolerance: float = 0.05
    allow_stale: bool = False

    def __post_init__(self) -> None:
        if self.kind == "local":
            if self.url:
                raise ValueError(
                    f"rollout.engine.url={self.url} needs rollout.engine.kind vllm, sglang or openai"
                )
            return
        scheme, _, host = self.url.partition("://")
        if scheme not in ("http", "https") or not host.strip("/"):
            raise ValueError(
                f"rollout.engine.url must be http://host:port for rollout.engine.kind={self.kind}, got {self.url!r}"
            )
        for name in ("concurrency", "timeout", "logp_tolerance"):
            if not getattr(self, name) > 0:
                raise ValueError(f"rollout.engine.{name} must be positive, got {getattr(self, name)}")
        if self.retries < 0:
            raise ValueError(f"rollout.engine.retries must not be negative, got {self.retries}")
        if self.kind == "openai" and not self.allow_stale:
            raise ValueError(
                "rollout.engine.kind=openai never loads the policy's new weights, so its samples grow stale; use "
                "vllm or sglang, or allow it with rollout.engine.allow_stale=true"
            )
        if self.kind == "openai" and self.weights == "adapter":
            raise ValueError("rollout.engine.weights=adapter needs rollout.engine.kind vllm or sglang")

    @property
    def api_key(self) -> str:
        """The key in the environment, or empty."""
        return os.environ.get(self.api_key_env, "") if self.api_key_env else ""
