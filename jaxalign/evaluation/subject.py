"""A model under evaluation: it finds texts likely or unlikely, and writes answers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax

from jaxalign import models
from jaxalign.data.records import Message
from jaxalign.errors import ConfigError
from jaxalign.evaluation.judging.endpoint import Endpoint
from jaxalign.evaluation.judging.endpoint_config import EndpointConfig
from jaxalign.evaluation.likelihood import ContinuationScorer
from jaxalign.evaluation.text_likelihood import TextScorer
from jaxalign.inference.loading import ChatModel, UntilTexts

# Of a text, which is continued as it is; or of turns, for the chat template.
Asked = str | tuple[Message, ...]


@dataclass(frozen=True)
class Answer:
    """A completion.

    Attributes:
      text: up to where it ended.
      tokens: token ids, the one that ended it included; () where they are not known.
      count: how many tokens; None where it is not known.
      logp: summed log-prob of them under the model, nats; NaN where it is not known.
      finish_reason: `stop` or `length`.
      prompt_cut: tokens at the beginning of the prompt that the context had no room for.
    """

    text: str
    tokens: tuple[int, ...]
    count: int | None
    logp: float
    finish_reason: str
    prompt_cut: int = 0


@dataclass(frozen=True)
class Subject:
    """A model under evaluation.

    Attributes:
      chat_model: the model, its tokenizer and its chat format.
      batch_size: texts at once.
    """

    chat_model: ChatModel
    batch_size: int = 16

    @property
    def model(self) -> Any:
        """The model alone."""
        sampler = self.chat_model.sampler
        return models.merge(sampler.definition, sampler.params)

    @cached_property
    def texts(self) -> TextScorer:
        """Scores texts under it."""
        scorer = ContinuationScorer(
            self.model, batch_size=2 * self.batch_size, context=self.chat_model.context
        )
        return TextScorer(scorer, self.chat_model.tokenizer)

    def encode(self, asked: Asked) -> list[int]:
        """Token ids: of a text with what the tokenizer puts before it, of turns up to where the answer begins."""
        if isinstance(asked, str):
            return self.texts.encode(asked)
        return self.chat_model.format.prompt_ids(asked)

    def answers(
        self,
        asked: Sequence[Asked],
        *,
        sampling: Mapping[str, Any],
        stops: Sequence[Sequence[str]] = (),
        seed: int = 0,
        places: Sequence[int] | None = None,
    ) -> Iterator[tuple[list[int], list[list[Answer]]]]:
        """Answers, batch by batch: the longest prompts first.

        Args:
          asked: N questions.
          sampling: as of `SamplingConfig.arguments`; `max_new_tokens`, `temperature`, `num_samples` and so on.
          stops: of each, the texts that its answers end before; empty where none has any.
          seed: of the sampling.
          places: N numbers by which each question has randomness of its own, whatever the others; 0 to N-1 if None.

        Yields:
          The places in `asked` of a batch, and the samples of each.

        Raises:
          ConfigError: the context has no room for a prompt beside the answer.
        """
        ids = [self.encode(one) for one in asked]
        samples, room = (
            int(sampling["num_samples"]),
            self.chat_model.context - int(sampling["max_new_tokens"]),
        )
        if room < 1:
            raise ConfigError(
                f"max_new_tokens={sampling['max_new_tokens']}: leaves no room for a prompt in the context of "
                f"{self.chat_model.context} tokens"
            )
        places = range(len(asked)) if places is None else places
        order = sorted(range(len(asked)), key=lambda i: (-len(ids[i]), i))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            prompts = [ids[i][-room:] for i in batch]
            until = UntilTexts(
                self.chat_model, prompts, [stops[i] if stops else () for i in batch], copies=samples
            )
            done = self.chat_model.sampler.generate(
                prompts,
                key=jax.random.key(seed),
                row_ids=[places[i] * samples + k for i in batch for k in range(samples)],
                on_tokens=until if any(until.texts) else None,
                **sampling,
            )
            texts, tokens = until.cut(done), done.token_lists()
            answers = [
                Answer(
                    text=texts[row],
                    tokens=tuple(int(token) for token in tokens[row]),
                    count=len(tokens[row]),
                    logp=float(done.logps[row][done.mask[row]].sum()),
                    finish_reason=str(done.finish_reason[row]),
                    prompt_cut=max(0, len(ids[batch[row // samples]]) - room),
                )
                for row in range(len(texts))
            ]
            yield batch, [answers[i : i + samples] for i in range(0, len(answers), samples)]


class EndpointSubject:
    """A model behind an OpenAI-compatible endpoint: it writes answers to conversations, and tells no log-probs.

    Args:
      settings: of the endpoint; `max_tokens`, `temperature` and `top_p` of its parameters are set by each task.
      batch_size: conversations that are asked before their answers are kept.

    Attributes:
      chat_model: None.
    """

    chat_model = None

    def __init__(self, settings: EndpointConfig, batch_size: int = 16) -> None:
        self._settings, self.batch_size = settings, batch_size

    def answers(
        self,
        asked: Sequence[Asked],
        *,
        sampling: Mapping[str, Any],
        stops: Sequence[Sequence[str]] = (),
        seed: int = 0,
        places: Sequence[int] | None = None,
    ) -> Iterator[tuple[list[int], list[list[Answer]]]]:
        """See `Subject.answers`; a text is asked as a user's turn, and of one sample each.

        Raises:
          ConfigError: several samples.
          UserError: the endpoint refuses or fails.
        """
        del places
        if sampling["num_samples"] != 1:
            raise ConfigError("sampling.num_samples: a model at an endpoint is asked once for each question")
        parameters = {
            "max_tokens": sampling["max_new_tokens"],
            "temperature": sampling["temperature"],
            "top_p": sampling["top_p"],
            **({"seed": seed} if sampling["temperature"] else {}),
        }
        settings = replace(self._settings, parameters={**self._settings.parameters, **parameters})
        with Endpoint(settings) as endpoint:
            for start in range(0, len(asked), self.batch_size):
                batch = list(range(start, min(start + self.batch_size, len(asked))))
                turns = [(Message("user", x),) if isinstance(x := asked[i], str) else x for i in batch]
                conversations = [[{"role": t.role, "content": t.content} for t in one] for one in turns]
                answers = []
                for i, reply in zip(batch, endpoint.replies(conversations), strict=True):
                    ends = [at for end in (stops[i] if stops else ()) if (at := reply.text.find(end)) >= 0]
                    reason = "length" if reply.finish_reason == "length" and not ends else "stop"
                    text = reply.text[: min(ends)] if ends else reply.text
                    answers.append([Answer(text, (), reply.completion_tokens, math.nan, reason)])
                yield batch, answers
