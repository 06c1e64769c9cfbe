"""Who samples: the interface of a rollout engine, and the settings of one."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from jaxalign.models.layers import Adapter, Params
from jaxalign.rollout.generate import Completions


class Engine(Protocol):
    """What a trainer asks of whoever samples for it; `Sampler` and `ServerEngine` are two."""

    # Typed loosely: an engine may name the arguments that it takes, or take all as `**Unpack[SamplingArguments]`.
    def generate(self, prompts: Sequence[Sequence[int]], *args: Any, **sampling: Any) -> Completions:
        """Completions of the prompts under the weights of the last `update`.

        It is called with the keyword arguments of `SamplingArguments`, and with no other.
        """
        ...

    def update(self, params: Params, *, adapter: Adapter | None = None) -> None:
        """New weights, and a LoRA adapter where it is not merged into them; used from the next `generate` on."""
        ...


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Who samples.

    Attributes:
      kind: local (this process), vllm or sglang (a server that loads the policy's weights before each rollout), or
        openai (a server of the OpenAI completions API, whose weights stay as they are).
      url: the server, as http://host:port.
      model: the model's name there; empty takes the only one it has.
      api_key_env: environment variable with the server's API key; empty for none.
      folder: where weights are written for the server, which must find them under the same path; empty takes the
        run folder.
      weights: what a LoRA run gives the server: merged (all weights) or adapter (a PEFT folder, which the server
        must have been started for).
      concurrency: requests under way at once.
      timeout: seconds to wait for an answer.
      retries: how often a request is sent again where the server cannot be reached, waiting longer each time.
      logp_tolerance: largest mean difference of the server's and the training log-probs, nats a token: above it
        the run stops before its first update, and warns later on.
      allow_stale: train on samples of weights that are not the policy's (kind openai).
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
                "rollout.engine.kind=openai never loads the policy's new weights, so its samples grow stale; "
                "take vllm or sglang, or accept it with rollout.engine.allow_stale=true"
            )
        if self.kind == "openai" and self.weights == "adapter":
            raise ValueError("rollout.engine.weights=adapter needs rollout.engine.kind vllm or sglang")

    @property
    def api_key(self) -> str:
        """The key in the environment, or empty."""
        return os.environ.get(self.api_key_env, "") if self.api_key_env else ""
