"""Which judge an evaluation asks, and how it is made."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxalign.data.records import Message
from jaxalign.errors import ConfigError
from jaxalign.evaluation.judging.endpoint import Endpoint
from jaxalign.evaluation.judging.endpoint_config import EndpointConfig
from jaxalign.evaluation.judging.identity import ModelSource, same_model
from jaxalign.evaluation.judging.judges import ModelJudge, RewardModelJudge
from jaxalign.evaluation.judging.reply_cache import ReplyCache, request_key
from jaxalign.evaluation.pair_scoring import reward_subject
from jaxalign.evaluation.subject import Subject
from jaxalign.inference.loading import load_speaker
from jaxalign.models.folders import model_folder
from jaxalign.models.reward_folders import is_reward_model


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """A judge of answers.

    Attributes:
      model: the judge: the folder, run or hub id of a chat model, or of a reward model, which compares by its scores;
        or the address of an OpenAI-compatible endpoint, as https://host/v1 or http://host:port/v1; empty for none.
      name: name of the model at an endpoint.
      prompts: file of MT-bench's judge prompts (judge_prompts.jsonl), for the task mt_bench.
      references: file of reference answers to MT-bench's questions of mathematics, reasoning and coding.
      api_key_env: environment variable that holds an endpoint's API key.
      max_new_tokens: maximum length of what the judge writes, in tokens.
      timeout: seconds to wait for an endpoint.
      retries: times that a request is sent again when an endpoint is busy, fails or does not answer.
      concurrency: requests to an endpoint at the same time.
      prompt_price: of a million tokens in prompts, in any currency; null counts tokens alone.
      completion_price: of a million tokens in answers, in the same.
    """

    model: str = ""
    name: str = ""
    prompts: str = ""
    references: str = ""
    api_key_env: str = "OPENAI_API_KEY"
    max_new_tokens: int = 1024
    timeout: float = 120.0
    retries: int = 6
    concurrency: int = 8
    prompt_price: float | None = None
    completion_price: float | None = None

    def __post_init__(self) -> None:
        if self.remote and not self.name:
            raise ValueError("judge.name: expected the name of the model at the endpoint")
        if self.name and not self.remote:
            raise ValueError("judge.name: names a model at an endpoint; judge.model is none (http...)")
        if self.max_new_tokens < 1:
            raise ValueError(f"judge.max_new_tokens must be 1 or more, got {self.max_new_tokens}")
        if self.remote:
            self.endpoint("")

    @property
    def remote(self) -> bool:
        """Whether the judge is an endpoint."""
        return self.model.startswith(("http://", "https://"))

    @property
    def source(self) -> ModelSource:
        """Where the judge comes from."""
        if self.remote:
            return ModelSource(base_url=self.model, model=self.name)
        return ModelSource(path=model_folder(self.model))

    def endpoint(self, cache: str) -> EndpointConfig:
        """The endpoint, whose replies are kept in a file."""
        return EndpointConfig(
            base_url=self.model,
            model=self.name,
            api_key_env=self.api_key_env,
            parameters={"temperature": 0.0, "max_tokens": self.max_new_tokens},
            timeout=self.timeout,
            retries=self.retries,
            concurrency=self.concurrency,
            cache=cache,
            prompt_price=self.prompt_price,
            completion_price=self.completion_price,
        )


class Judge:
    """A judge that is asked; a context manager, or `close` it. Replies are kept in a file.

    Args:
      config: which judge.
      judged: where the model comes from that it judges.
      cache: the file of replies.
      loading: further arguments of `load_speaker`, for a judge that is loaded here.
      batch_size: conversations that such a judge reads at once.

    Raises:
      ConfigError: no judge is named, or it is the model that it judges.
      UserError: a model that cannot be loaded; a cache that another process holds.
    """

    def __init__(
        self,
        config: JudgeConfig,
        *,
        judged: ModelSource,
        cache: Path,
        loading: Mapping[str, Any] | None = None,
        batch_size: int = 16,
    ) -> None:
        if not config.model:
            raise ConfigError(
                "judge.model: expected a judge: a model's folder, or the address of an endpoint"
            )
        if same_model(config.source, judged):
            raise ConfigError(
                f"judge.model={config.model}: is the model that it is to judge; models favour what they wrote"
            )
        self.config, self._stack = config, ExitStack()
        self._endpoint: Endpoint | None = None
        self._reward: RewardModelJudge | None = None
        if config.remote:
            self._endpoint = self._stack.enter_context(Endpoint(config.endpoint(str(cache))))
            return
        if is_reward_model(config.source.path):
            scorer = reward_subject(config.source.path, template="auto", context=0, batch_size=batch_size)
            self._reward = RewardModelJudge(scorer.reward, chat=scorer.format)
            return
        self._cache = ReplyCache(str(cache))
        self._stack.callback(self._cache.close)
        self._subject = Subject(load_speaker(config.model, **(loading or {})), batch_size)

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets other processes use the file of replies."""
        self._stack.close()

    @property
    def pairs(self) -> ModelJudge | RewardModelJudge:
        """The judge as one of pairs and of single answers: a chat model by our own prompts, a reward by its scores."""
        return ModelJudge(self.ask) if self._reward is None else self._reward

    @property
    def about(self) -> str:
        """The judge's name, and what it has cost."""
        if self._endpoint is None:
            return self.config.model
        usage = self._endpoint.usage
        cost = "" if usage.cost is None else f", cost {usage.cost:.4g}"
        tokens = usage.prompt_tokens + usage.completion_tokens
        return (
            f"{self.config.name} at {self.config.model} ({usage.requests} requests, {usage.cached} from the cache, "
            f"{tokens:,} tokens{cost})"
        )

    def ask(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[str]:
        """What the judge says to each conversation, greedily.

        Raises:
          ConfigError: the judge is a reward model, which says nothing.
        """
        if self._reward is not None:
            raise ConfigError(f"judge.model={self.config.model}: is a reward model, which writes no ratings")
        if self._endpoint is not None:
            return self._endpoint.ask(conversations)
        keys = [request_key(self._body(conversation)) for conversation in conversations]
        new = {key: i for i, key in enumerate(keys) if self._cache.get(key) is None}
        asked = [
            tuple(Message(turn["role"], turn["content"]) for turn in conversations[i]) for i in new.values()
        ]
        names = list(new)
        sampling = {"max_new_tokens": self.config.max_new_tokens, "temperature": 0.0, "num_samples": 1}
        for batch, answers in self._subject.answers(asked, sampling=sampling) if asked else ():
            for place, (answer,) in zip(batch, answers, strict=True):
                self._cache.put(names[place], {"text": answer.text})
        return [str((self._cache.get(key) or {})["text"]) for key in keys]

    def _body(self, conversation: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in conversation]
        return {"model": self.config.model, "messages": turns, "max_tokens": self.config.max_new_tokens}
