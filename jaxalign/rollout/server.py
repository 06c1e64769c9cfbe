"""Rollouts from a vLLM or SGLang server, or another one with the OpenAI completions API.

Prompts go out as token ids, and token ids with their log-probs come back: nothing is tokenized again. Before a
rollout the policy's weights are written to a folder which the server loads.

Of several processes the first talks to the server, and what it hears or raises all hear and raise. All must call the
same methods in the same order, for each holds a part of the weights.
"""

import math
import secrets
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import jax
import numpy as np

from jaxalign import models
from jaxalign.errors import UserError
from jaxalign.models.composite import ModelDefinition
from jaxalign.models.layers import Adapter, Params
from jaxalign.models.lora import LoraConfig
from jaxalign.processes import by_first, first
from jaxalign.rollout.config import CheckedSampling, SamplingArguments, checked_sampling
from jaxalign.rollout.engine import EngineConfig
from jaxalign.rollout.generate import Completions
from jaxalign.rollout.json_client import JsonClient
from jaxalign.rollout.reload import SERVERS

ADAPTER_PREFIX = "jaxalign-"
PATH = "/v1/completions"


@dataclass(frozen=True)
class Request:
    """One request: some or all samples of a prompt, in consecutive rows from `row` on."""

    row: int
    samples: int
    body: dict[str, Any]


class ServerEngine:
    """Samples on a server; an `Engine`.

    The server's log-probs stand for both `logps` and `sampling_logps` of `Completions`: with top-k, top-p or min-p
    they are one of the two, depending on the server, and not the other.

    Args:
      config: which server.
      definition: the model's static part, from `models.split`.
      folder: where weights are written; made when needed, and removed by `close`.
      lora: the adapter's settings, where `update` is given one.
      backoff: seconds before the first retry.
    """

    def __init__(
        self,
        config: EngineConfig,
        definition: ModelDefinition,
        folder: Path,
        *,
        lora: LoraConfig | None = None,
        backoff: float = 0.5,
    ) -> None:
        self._config, self._definition, self._lora = config, definition, lora
        self._server = SERVERS[config.kind]
        self._folder = folder.resolve()
        self._client = JsonClient(
            config.url,
            api_key=config.api_key,
            timeout=config.timeout,
            retries=config.retries,
            backoff=backoff,
        )
        self._model = ""
        self._adapter = ""
        self._version = 0
        self._name = ADAPTER_PREFIX + secrets.token_hex(4)

    def connect(self) -> None:
        """Finds the server and its model.

        Raises:
          UserError: no server, or no such model.
        """
        self._model = by_first(self._found_model)

    def _found_model(self) -> str:
        answer = self._client.get("/v1/models")
        try:
            names = [str(card["id"]) for card in answer["data"]]
        except (KeyError, TypeError):
            raise UserError(f"{self._client.url}/v1/models: expected a list of models") from None
        names = [name for name in names if not name.startswith(ADAPTER_PREFIX)]
        wanted = self._config.model
        if wanted not in names and (wanted or len(names) != 1):
            raise UserError(
                f"rollout.engine.model: {self._client.url} serves {', '.join(names) or 'no model'}; "
                f"{'there is no ' + wanted if wanted else 'name one of them'}"
            )
        return wanted or names[0]

    # --- weights ----------------------------------------------------------------------------

    def update(self, params: Params, *, adapter: Adapter | None = None) -> None:
        """Writes the weights (or only the adapter, where one is given) and has the server load them.

        Of several processes the first writes; its host holds the tensors of one file at a time.

        Raises:
          UserError: the server does not load them.
        """
        if self._server.load is None:
            return
        if first() and not self._version:  # what a run that was killed has left
            shutil.rmtree(self._folder, ignore_errors=True)
        self._version += 1
        folder = self._folder / f"weights-{self._version}"
        if adapter is None:
            models.save_pretrained(models.merge(self._definition, params), folder)
            load = self._server.load
            by_first(lambda: load(self._client, folder))
        else:
            assert self._lora is not None, "an adapter needs its settings"
            models.save_adapter(adapter, folder, self._lora, self._definition.config)
            by_first(lambda: self._load_adapter(folder))
        if first():
            shutil.rmtree(self._folder / f"weights-{self._version - 1}", ignore_errors=True)

    def _load_adapter(self, folder: Path) -> None:
        # A name of its own, so that nothing which the server keeps by name is of older weights.
        name, old = f"{self._name}-{self._version}", self._adapter
        self._server.load_adapter(self._client, name, folder)
        self._adapter = name
        if old:
            self._server.unload_adapter(self._client, old)

    def close(self) -> None:
        """Removes what was written, and the adapter from the server where it still answers."""
        if not first():
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._adapter:
            # One try: a server that is gone has nothing to free.
            once = JsonClient(self._client.url, api_key=self._config.api_key, timeout=10.0, retries=0)
            with suppress(UserError):
                self._server.unload_adapter(once, self._adapter)
            self._adapter = ""

    # --- sampling ---------------------------------------------------------------------------

    def generate(
        self, prompts: Sequence[Sequence[int]], **sampling: Unpack[SamplingArguments]
    ) -> Completions:
        """Samples completions; see `SamplingArguments`.

        A request's seed depends on the key and on the id of its first row alone.

        Raises:
          UserError: an empty prompt; a server that is not there, refuses, or answers with anything but token ids
            of the vocabulary with their log-probs, up to a stop token or the full length.
          TypeError, ValueError: see `config.checked_sampling`.
        """
        if not self._model:
            self.connect()
        checked = checked_sampling(sampling, prompts=len(prompts), eos_ids=self._definition.config.eos_ids)
        seeds = row_seeds(checked.key, checked.row_ids)
        return by_first(lambda: self._sampled(prompts, checked, seeds))

    def _sampled(
        self, prompts: Sequence[Sequence[int]], checked: CheckedSampling, seeds: np.ndarray
    ) -> Completions:
        max_new_tokens, num_samples = checked.max_new_tokens, checked.num_samples
        total, stops = len(prompts) * num_samples, tuple(checked.stop_tokens.tolist())
        at_once = num_samples if self._server.samples_at_once else 1
        requests = []
        for index, prompt in enumerate(prompts):
            if not len(prompt):
                raise UserError(f"prompt {index} has no tokens")
            for row in range(index * num_samples, (index + 1) * num_samples, at_once):
                chosen = tuple(x[index].item() for x in checked.numbers)
                body = self._body(prompt, chosen, stops, max_new_tokens, at_once, int(seeds[row]))
                requests.append(Request(row, at_once, body))
        answers = self._all(requests)
        tokens = np.zeros((total, max_new_tokens), np.int32)
        logps = np.zeros((total, max_new_tokens), np.float32)
        lengths, reasons = np.zeros(total, np.int32), [""] * total
        for request, answer in zip(requests, answers, strict=True):
            for row, choice in enumerate(self._choices(request, answer), start=request.row):
                ids, values, reasons[row] = self._completion(choice, stops, max_new_tokens)
                lengths[row] = len(ids)
                tokens[row, : len(ids)], logps[row, : len(ids)] = ids, values
        mask = np.arange(max_new_tokens)[None, :] < lengths[:, None]
        return Completions(
            tokens=tokens,
            mask=mask,
            lengths=lengths,
            logps=logps,
            sampling_logps=logps.copy(),
            finish_reason=reasons,
        )

    def _body(
        self,
        prompt: Sequence[int],
        settings: tuple[float, int, float, float],
        stops: tuple[int, ...],
        max_new_tokens: int,
        samples: int,
        seed: int,
    ) -> dict[str, Any]:
        temperature, top_k, top_p, min_p = settings
        ignore_eos = self._server.stops_despite_ignore_eos or not stops
        body = {
            "model": self._model,
            "prompt": [int(token) for token in prompt],
            "max_tokens": max_new_tokens,
            "n": samples,
            "seed": seed,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k or -1,
            "min_p": min_p,
            # Said though they are the defaults: servers take others from the model's generation_config.json.
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": list(stops),
            "ignore_eos": ignore_eos,
            "logprobs": 0,  # the sampled token's, and no others
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "skip_special_tokens": False,
        }
        if self._adapter:
            body[self._server.adapter_field] = self._adapter
        return body

    def _all(self, requests: Sequence[Request]) -> list[Any]:
        """The answers in order; the first failure ends all."""
        pool = ThreadPoolExecutor(max(1, min(self._config.concurrency, len(requests))))
        try:
            futures = [pool.submit(self._client.post, PATH, request.body) for request in requests]
            for future in as_completed(futures):
                future.result()
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            self._client.abort()
            raise
        finally:
            pool.shutdown()
            self._client.reopen()

    def _choices(self, request: Request, answer: Any) -> list[dict[str, Any]]:
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise UserError(f"{self._where}: requested {request.samples} completions, got no list")
        if len(choices) != request.samples:
            raise UserError(f"{self._where}: requested {request.samples} completions, got {len(choices)}")
        return sorted(choices, key=lambda choice: choice.get("index", 0))

    def _completion(
        self, choice: dict[str, Any], stops: tuple[int, ...], limit: int
    ) -> tuple[list[int], list[float], str]:
        """Token ids, their log-probs and the finish reason of a choice, checked."""
        where, reason = self._where, choice.get("finish_reason")
        tokens, values = _token_ids(choice), _logprobs(choice).get("token_logprobs")
        if tokens is None:
            raise UserError(
                f"{where}: the reply has no token ids; the server must support return_token_ids (vLLM from 0.10.2, "
                "SGLang from mid-2026)"
            )
        if not values or len(values) != len(tokens):
            raise UserError(
                f"{where}: the reply has {len(tokens)} token ids and {len(values or [])} log-probs; expected one "
                "each"
            )
        if not all(isinstance(x, (int, float)) and math.isfinite(x) for x in values):
            raise UserError(f"{where}: the reply has a log-prob that is not finite")
        size = self._definition.config.vocab_size
        outside = [token for token in tokens if not 0 <= token < size]
        if outside:
            raise UserError(
                f"{where}: the server sampled token {outside[0]}; the policy's vocabulary has {size}"
            )
        if reason not in ("stop", "length"):
            raise UserError(f"{where}: a completion ended with {reason!r}, expected stop or length")
        ended = [place for place, token in enumerate(tokens) if token in stops]
        if ended and ended[0] != len(tokens) - 1:
            raise UserError(
                f"{where}: the server continued after stop token {tokens[ended[0]]}; it must support stop_token_ids"
            )
        if reason == "stop" and not ended:
            raise UserError(
                f"{where}: the server stopped after token {tokens[-1]}, which is not a stop token; add it to "
                "sampling.stop_tokens"
            )
        if not ended and len(tokens) != limit:
            raise UserError(
                f"{where}: a completion was cut after {len(tokens)} of {limit} tokens; the server's context is "
                "too short"
            )
        return tokens, values, "stop" if ended else "length"

    @property
    def _where(self) -> str:
        return f"{self._client.url}{PATH}"


def row_seeds(key: jax.Array, row_ids: np.ndarray) -> np.ndarray:
    """A number in [0, 2^31) a row, int64 [N]: of the key and the row id alone."""
    bits = jax.vmap(lambda row: jax.random.bits(jax.random.fold_in(key, row)))(row_ids.astype(np.int32))
    return np.asarray(bits).astype(np.int64) >> 1


def _logprobs(choice: dict[str, Any]) -> dict[str, Any]:
    logprobs = choice.get("logprobs")
    return logprobs if isinstance(logprobs, dict) else {}


def _token_ids(choice: dict[str, Any]) -> list[int] | None:
    """`token_ids`, or the numbers in log-prob tokens written as `token_id:17`."""
    tokens = choice.get("token_ids")
    if isinstance(tokens, list) and all(type(token) is int for token in tokens):
        return tokens
    written = _logprobs(choice).get("tokens") or []
    numbers = [str(token).removeprefix("token_id:") for token in written]
    if numbers and all(n.isdigit() and n != str(t) for n, t in zip(numbers, written, strict=True)):
        return [int(number) for number in numbers]
    return None
