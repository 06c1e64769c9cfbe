"""jaxalign models in lm-evaluation-harness (lm-eval 0.4.13 or newer; extra `harness`).

    python -m jaxalign.evaluation.harness --model jaxalign --model_args pretrained=DIR --tasks TASK --batch_size 16 ...

is `lm_eval` with the model `jaxalign` added: the harness lists its models in a table of its own, which other packages
can only add to from within its process. In Python:

    from jaxalign.evaluation.harness import JaxalignLM
    lm_eval.simple_evaluate(model=JaxalignLM(pretrained=DIR), tasks=[TASK])

after which `model="jaxalign"` is known too. `pretrained` is whatever `jaxalign generate` takes as a model; each
request's result is that of the harness's `hf` model of the same folder.
"""

import os
import sys
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import jax
from tqdm import tqdm

from jaxalign import models
from jaxalign.errors import ConfigError, UserError
from jaxalign.evaluation.harness_arguments import device_kind, sampling_of, whole_number
from jaxalign.evaluation.subject import Subject
from jaxalign.inference.loading import load_speaker
from jaxalign.llmdoctor.guided_folders import GuideConfig
from jaxalign.rollout import SamplingConfig

# Of `generate_until`, where a task does not say otherwise: the harness's own.
MAX_GEN_TOKS = 256


class HarnessModel:
    """A model in the harness: `JaxalignLM`, without the harness's class that it inherits from.

    Args:
      pretrained: a Hugging Face folder, GGUF file, run folder or hub id.
      tokenizer, adapter, revision: see `load_speaker`; `peft` is the harness's name for `adapter`.
      doctor: a doctor's folder (several parted by +), for which `pretrained` is the patient.
      dtype: of matrix products: float32, bfloat16 or auto.
      batch_size: texts at once; `auto`, and `auto:N`, is 16.
      max_length: the most tokens read at once; 0 takes the model's own.
      max_gen_toks: longest answer where a task does not say.
      device: auto, cpu, gpu (`cuda`) or tpu; the harness's `cuda:0`, which it says by itself, is auto.
      max_batch_size: not needed; batches are as large as `batch_size` says.

    Raises:
      UserError: a folder, a tokenizer or an argument that is wrong.
    """

    cache_hook: Any

    def __init__(
        self,
        pretrained: str = "",
        *,
        tokenizer: str = "",
        adapter: str = "",
        peft: str = "",
        revision: str = "",
        doctor: str = "",
        dtype: str = "auto",
        batch_size: int | str = 16,
        max_length: int | str = 0,
        max_gen_toks: int | str = MAX_GEN_TOKS,
        device: str | None = None,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        del max_batch_size
        if unknown:
            raise ConfigError(f"model_args: jaxalign does not know {next(iter(unknown))}")
        if not pretrained and not doctor:
            raise ConfigError("model_args: expected pretrained=, a model's folder or hub id")
        if adapter and peft:
            raise ConfigError("adapter and peft both name an adapter; set one")
        if dtype not in ("auto", "float32", "bfloat16"):
            raise ConfigError(f"dtype={dtype}: expected auto, float32 or bfloat16")
        size = str(batch_size).partition(":")[0]
        speaker = load_speaker(
            str(pretrained),
            tokenizer=tokenizer,
            adapter=adapter or peft,
            revision=revision,
            context=whole_number("max_length", max_length, 0),
            param_dtype="auto",
            compute_dtype=dtype,  # type: ignore[arg-type]
            guide=GuideConfig(doctor=tuple(doctor.split("+"))) if doctor else None,
            device=device_kind(device),
        )
        self.subject = Subject(speaker, 16 if size == "auto" else whole_number("batch_size", batch_size, 1))
        self.max_gen_toks = whole_number("max_gen_toks", max_gen_toks, 1)

    @property
    def tokenizer(self) -> Any:
        """Of the model; the harness records its special tokens."""
        return self.subject.chat_model.tokenizer

    @property
    def max_length(self) -> int:
        """The most tokens read at once."""
        return self.subject.chat_model.context

    @property
    def tokenizer_name(self) -> str:
        """By which the harness names the files of its requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results."""
        _, params = models.split(self.subject.model)
        sizes = [leaf.size for leaf in jax.tree.leaves(params)]
        return {"model_num_parameters": sum(sizes), "model_dtype": str(jax.tree.leaves(params)[0].dtype)}

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The tokenizer's template, which the harness records; a name chooses one of several."""
        found = self.tokenizer.chat_template if chat_template else None
        if isinstance(found, Mapping):
            return found.get(chat_template if isinstance(chat_template, str) else "default")
        return found

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Turns as text, by the tokenizer's chat template; without a system turn where it knows none.

        Raises:
          UserError: the tokenizer has no template.
        """
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            raise UserError("apply_chat_template: the model's tokenizer has no chat template")
        options = {
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        try:
            return self.tokenizer.apply_chat_template(chat_history, **options)
        except TemplateError:
            turns = [turn for turn in chat_history if turn["role"] != "system"]
            return self.tokenizer.apply_chat_template(turns, **options)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-prob, whether greedy decoding would give it) of each (context, continuation)."""
        pairs = [request.args for request in requests]
        with tqdm(total=len(pairs), desc="loglikelihood", disable=disable_tqdm) as bar:

            def keep(places: Sequence[int], found: Any) -> None:
                for place, logp, greedy in zip(places, *found, strict=True):
                    self.cache_hook.add_partial("loglikelihood", pairs[place], (float(logp), bool(greedy)))
                bar.update(len(places))

            found = self.subject.texts.score(pairs, keep)
        return [(float(logp), bool(greedy)) for logp, greedy in zip(*found, strict=True)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-prob of each whole text."""
        del disable_tqdm
        texts = [request.args[0] for request in requests]
        # The harness scores the beginning-of-sequence token too where the tokenizer puts one.
        found = [float(logp) for logp in self.subject.texts.rolling(texts, alone=True)[0]]
        for request, logp in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, logp)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """A continuation of each text, up to the first of the texts that its task names in `until`."""
        # Requests of one kind of sampling are decoded together.
        kinds: dict[SamplingConfig, list[int]] = {}
        stops = []
        # The end-of-sequence token ends a text, and what the model's files name.
        eos = self.tokenizer.eos_token_id
        ends = (*(() if eos is None else (eos,)), *self.subject.model.config.eos_ids)
        for place, request in enumerate(requests):
            sampling, until = sampling_of(request.args[1], longest=self.max_gen_toks, stop_tokens=ends)
            kinds.setdefault(sampling, []).append(place)
            stops.append(until)
        found = [""] * len(requests)
        with tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm) as bar:
            for sampling, places in kinds.items():
                answers = self.subject.answers(
                    [requests[place].args[0] for place in places],
                    sampling=sampling.arguments(),
                    stops=[stops[place] for place in places],
                    places=places,
                )
                for batch, of_batch in answers:
                    for i, (answer,) in zip(batch, of_batch, strict=True):
                        place = places[i]
                        found[place] = self._text(answer.tokens, stops[place])
                        self.cache_hook.add_partial("generate_until", requests[place].args, found[place])
                    bar.update(len(batch))
        return found

    def _text(self, tokens: Sequence[int], until: Sequence[str]) -> str:
        """Up to where the first token that completes one of some texts leaves them."""
        # The end-of-sequence token's text ends an answer too where it is spelled out.
        until = [end for end in (*until, self.tokenizer.eos_token) if end]

        # Decoded alone, as the harness does: some tokenizers leave out the space before a first word.
        def text(count: int) -> str:
            return self.tokenizer.decode(list(tokens[:count]), skip_special_tokens=True)

        # What stands after that token is not read: how much there is depends on the other texts of the batch.
        ended = bisect_left(range(len(tokens)), True, key=lambda count: any(x in text(count) for x in until))
        found = text(ended)
        for end in until:
            found = found.split(end)[0]
        return found


@cache
def register() -> type:
    """Makes `jaxalign` a model of the harness in this process.

    Returns:
      Its class, `JaxalignLM`.

    Raises:
      UserError: lm-eval is not installed.
    """
    try:
        # The harness adds its own models to its table only while that is empty.
        import lm_eval.models  # noqa: F401
        from lm_eval.api.model import LM
        from lm_eval.api.registry import register_model
    except ImportError:
        raise UserError("lm-eval is not installed: pip install 'jaxalign[harness]'") from None
    # Its pool for standard errors forks, which may hang beside JAX's threads.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    names = {"__doc__": HarnessModel.__doc__, "__module__": __name__}
    return register_model("jaxalign")(type("JaxalignLM", (HarnessModel, LM), names))


def __getattr__(name: str) -> Any:
    if name == "JaxalignLM":
        return register()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> None:
    """`lm_eval`, which knows the model `jaxalign`."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except UserError as error:
        print(f"jaxalign: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
