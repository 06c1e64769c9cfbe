"""jaxalign models in lm-evaluation-harness (lm-eval 0.4.13 or newer; extra `harness`).

    python -m jaxalign.evaluation.harness --model jaxalign --model_args pretrained=DIR --tasks TASK ...

is `lm_eval` with the model `jaxalign` added, as the harness itself finds no models of other packages. In Python:

    from jaxalign.evaluation.harness import JaxalignLM
    lm_eval.simple_evaluate(model=JaxalignLM(pretrained=DIR), tasks=[TASK])

`pretrained` is whatever `jaxalign generate` takes as a model; each request's result is that of the harness's `hf` model
of the same folder.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxalign.errors import ConfigError, UserError
from jaxalign.evaluation.subject import Subject, told_in_order
from jaxalign.inference.loading import load_speaker
from jaxalign.llmdoctor.guided_folders import GuideConfig
from jaxalign.rollout import SamplingConfig

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError:
    raise UserError("lm-eval is not installed: pip install 'jaxalign[harness]'") from None

# Of `generate_until`, where a task does not say otherwise: the harness's own.
MAX_GEN_TOKS = 256
SAMPLING = ("temperature", "top_k", "top_p", "min_p")


@register_model("jaxalign")
class JaxalignLM(LM):
    """A model in the harness.

    Args:
      pretrained: a Hugging Face folder, GGUF file, run folder or hub id.
      tokenizer, adapter, revision: see `load_speaker`; `peft` is the harness's name for `adapter`.
      doctor: a doctor's folder (several parted by +), for which `pretrained` is the patient.
      dtype: of matrix products: float32, bfloat16 or auto.
      batch_size: texts at once; `auto` is 16.
      max_length: the most tokens read at once; 0 takes the model's own.
      max_gen_toks: longest answer where a task does not say.
      device: auto, cpu, gpu or tpu; the harness's `cuda` is gpu.
      max_batch_size: not needed; batches are as large as `batch_size` says.

    Raises:
      UserError: a folder, a tokenizer or an argument that is wrong.
    """

    def __init__(
        self,
        pretrained: str,
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
    ) -> None:
        super().__init__()
        del max_batch_size
        if adapter and peft:
            raise ConfigError("adapter and peft both name an adapter; set one")
        if dtype not in ("auto", "float32", "bfloat16"):
            raise ConfigError(f"dtype={dtype}: expected auto, float32 or bfloat16")
        size = str(batch_size).partition(":")[0]
        if size != "auto" and not (size.isdigit() and int(size)):
            raise ConfigError(f"batch_size={batch_size}: expected a number or auto")
        kind = (device or "auto").partition(":")[0]
        speaker = load_speaker(
            str(pretrained),
            tokenizer=tokenizer,
            adapter=adapter or peft,
            revision=revision,
            context=int(max_length),
            param_dtype="auto",
            compute_dtype=dtype,  # type: ignore[arg-type]
            guide=GuideConfig(doctor=tuple(doctor.split("+"))) if doctor else None,
            device="gpu" if kind == "cuda" else kind,
        )
        self.subject = Subject(speaker, 16 if size == "auto" else int(size))
        self.max_gen_toks = int(max_gen_toks)

    @property
    def tokenizer_name(self) -> str:
        """By which the harness caches requests."""
        return str(self.subject.chat_model.tokenizer.name_or_path)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The tokenizer's template, which the harness records."""
        return self.subject.chat_model.tokenizer.chat_template if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Turns as text, by the tokenizer's chat template."""
        return self.subject.chat_model.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-prob, whether greedy decoding would give it) of each (context, continuation)."""
        del disable_tqdm
        pairs = [request.args for request in requests]

        def keep(places: Sequence[int], found: Any) -> None:
            for place, logp, greedy in zip(places, *found, strict=True):
                self.cache_hook.add_partial("loglikelihood", pairs[place], (float(logp), bool(greedy)))

        found = self.subject.texts.score(pairs, keep)
        return [(float(logp), bool(greedy)) for logp, greedy in zip(*found, strict=True)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-prob of each whole text."""
        del disable_tqdm
        texts = [request.args[0] for request in requests]
        found = [float(logp) for logp in self.subject.texts.rolling(texts)[0]]
        for request, logp in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, logp)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """A continuation of each text, up to the first of the texts that its task names in `until`."""
        del disable_tqdm
        # Requests of one kind of sampling are decoded together.
        kinds: dict[SamplingConfig, list[int]] = {}
        stops = []
        for place, request in enumerate(requests):
            sampling, until = self._sampling(dict(request.args[1]))
            kinds.setdefault(sampling, []).append(place)
            stops.append(until)
        found = [""] * len(requests)
        for sampling, places in kinds.items():
            asked = [requests[place].args[0] for place in places]
            answers = self.subject.answers(
                asked, sampling=sampling.arguments(), stops=[stops[place] for place in places], places=places
            )
            for place, (answer,) in zip(
                places, told_in_order(asked, answers, lambda count: None), strict=True
            ):
                found[place] = answer.text
                self.cache_hook.add_partial("generate_until", requests[place].args, answer.text)
        return found

    def _sampling(self, given: dict[str, Any]) -> tuple[SamplingConfig, tuple[str, ...]]:
        until = given.pop("until", None) or ()
        until = (until,) if isinstance(until, str) else tuple(until)
        longest = int(
            given.pop("max_gen_toks", given.pop("max_new_tokens", given.pop("max_tokens", self.max_gen_toks)))
        )
        sampled = given.pop("do_sample", None)
        numbers = {name: given.pop(name) for name in SAMPLING if name in given}
        if given:
            raise ConfigError(f"generation_kwargs: {next(iter(given))} is not supported by jaxalign")
        if sampled is None:
            sampled = bool(numbers.get("temperature", 0.0))
        numbers = {name: (int if name == "top_k" else float)(value) for name, value in numbers.items()}
        if not sampled:
            numbers = {"temperature": 0.0}
        # The end-of-sequence token alone ends a text, as in the harness; its text in `until` is cut too.
        eos = self.subject.chat_model.tokenizer.eos_token_id
        ends = tuple(sorted({*(() if eos is None else (eos,)), *self.subject.model.config.eos_ids}))
        return replace(SamplingConfig(max_new_tokens=longest, stop_tokens=ends), **numbers), until


def main() -> None:
    """`lm_eval`, which knows the model `jaxalign`."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except UserError as error:
        print(f"jaxalign: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
