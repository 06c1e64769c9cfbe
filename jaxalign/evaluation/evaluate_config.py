"""The settings of `jaxalign evaluate`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from jaxalign.errors import ConfigError
from jaxalign.evaluation.judging.config import JudgeConfig
from jaxalign.evaluation.judging.identity import ModelSource
from jaxalign.inference.loading import Template
from jaxalign.llmdoctor.guided_folders import GuideConfig
from jaxalign.mesh import MeshConfig
from jaxalign.models.folders import model_folder
from jaxalign.models.reward_folders import is_reward_model
from jaxalign.models.tensor_dtypes import AutoDtype, ComputeDtype
from jaxalign.rollout import SamplingConfig
from jaxalign.training.core.reward_source import RewardSource


@dataclass(frozen=True, kw_only=True)
class AnswerConfig:
    """How answers are sampled.

    Attributes:
      max_new_tokens: maximum length of an answer in tokens; 0 takes the task's own.
      temperature: sampling temperature; 0 decodes greedily.
      top_p: sample from the smallest set of most probable tokens whose probabilities sum to at least p; 1 uses all.
      num_samples: answers per question; with several, scores are means over them, and pass@k is reported too.
    """

    max_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    num_samples: int = 1

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise ValueError(f"sampling.max_new_tokens must not be negative, got {self.max_new_tokens}")
        if self.num_samples > 1 and self.temperature == 0:
            raise ValueError(
                f"sampling.num_samples={self.num_samples}: greedy answers are all alike; set sampling.temperature"
            )
        self.of(1)

    def of(self, longest: int) -> SamplingConfig:
        """The arguments of sampling, for a task whose answers have so many tokens."""
        return SamplingConfig(
            max_new_tokens=self.max_new_tokens or longest,
            temperature=self.temperature,
            top_p=self.top_p,
            num_samples=self.num_samples,
        )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(GuideConfig):
    """An evaluation of one model.

    Attributes:
      model: a Hugging Face folder, a GGUF file, a run folder (its export/ is used) or a hub id; with doctors, their
        patient; a reward model or ensemble, for the task pairs; or the address of an OpenAI-compatible endpoint
        (http://host:port/v1), for tasks of written answers.
      endpoint_model: name of the model at an endpoint.
      api_key_env: environment variable that holds an endpoint's API key.
      tokenizer: folder or hub id of the tokenizer; empty uses the model's own.
      adapter: a PEFT folder to merge into the model.
      revision: revision of a hub id; empty uses the newest.
      context: longest row in tokens; 0 takes the model's own.
      tasks: the file of each task, as {gsm8k: test.jsonl, prompts-safety: prompts.jsonl}; a label after a dash
        tells two files of one task apart. Tasks: see docs/evaluation.md.
      shots: for tasks that take solved problems, the file that they are from.
      num_shots: how many of them stand before each question.
      limit: questions of each task to ask, from the beginning of its file; 0 asks all.
      reference: folder of a reference model, from which the KL of written answers is measured; empty for none.
      reward: the reward of written answers.
      gold: a second reward of written answers, which nothing was trained on, to hold the first against.
      best_of: answers to sample for each that is kept: the one with the highest `reward`; 1 keeps all.
      encoder: folder of a language model whose hidden states compare answers of `prompts` with references; empty for
        none.
      words: file of words, one a line: answers that have one are counted, a crude sign of toxicity; empty for none.
      toxicity: folder of a classifier whose one logit says how toxic a text is; empty for none.
      judge: who compares and rates answers, for the tasks alpaca_eval and mt_bench; answers of `prompts` are rated.
      training: files that the model was trained on: questions that share 13 words in a row with them are counted.
      sampling: how answers are sampled.
      template: how turns become a prompt: tokenizer (its chat template), markers (Human:, Assistant:) or plain; auto
        uses the format of the run that trained the model, else the chat template if the tokenizer has one. Tasks that
        continue a text use none.
      system: system message before each conversation.
      batch_size: questions at once.
      output: folder for results.json, report.html, answers and items; answers that it holds are not asked for again.
      name: name of the model in the report; empty uses the model folder's name.
      compare: folders of other evaluations, shown beside this one in the report.
      seed: seed for sampling and for intervals.
      device: device to run on: cpu, gpu or tpu; auto uses JAX's default.
      param_dtype: dtype in which parameters are stored; auto uses bfloat16 on a GPU or TPU, and float32 on a CPU.
      compute_dtype: dtype of matrix products; auto uses bfloat16 on a GPU or TPU and float32 on a CPU.
      mesh: number of devices along each mesh axis.
    """

    model: str = ""
    endpoint_model: str = ""
    api_key_env: str = "OPENAI_API_KEY"
    tokenizer: str = ""
    adapter: str = ""
    revision: str = ""
    context: int = 0
    tasks: Mapping[str, str] = field(default_factory=dict)
    shots: Mapping[str, str] = field(default_factory=dict)
    num_shots: int = 5
    limit: int = 0
    reference: str = ""
    reward: RewardSource = field(default_factory=RewardSource)
    gold: RewardSource = field(default_factory=RewardSource)
    best_of: int = 1
    encoder: str = ""
    words: str = ""
    toxicity: str = ""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    training: tuple[str, ...] = ()
    sampling: AnswerConfig = field(default_factory=AnswerConfig)
    template: Template = "auto"
    system: str = ""
    batch_size: int = 16
    output: str = "runs/evaluation"
    name: str = ""
    compare: tuple[str, ...] = ()
    seed: int = 0
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    param_dtype: AutoDtype = "auto"
    compute_dtype: ComputeDtype = "auto"
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "num_shots", "best_of"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.limit < 0:
            raise ValueError(f"limit must not be negative, got {self.limit}")
        if self.remote != bool(self.endpoint_model):
            raise ValueError(
                "endpoint_model: expected the name of a model where model is an address (http...)"
            )
        if self.best_of > 1 and not self.reward.named:
            raise ValueError("best_of: expected a reward that chooses, in reward.model or reward.functions")
        if self.best_of > 1 and (self.remote or self.sampling.temperature == 0):
            raise ValueError("best_of: needs a model here (no endpoint) and sampling.temperature above 0")
        if self.remote and self.reference:
            raise ValueError("reference: the KL needs log-probs, which an endpoint does not tell")

    @property
    def remote(self) -> bool:
        """Whether the model is behind an endpoint."""
        return self.model.startswith(("http://", "https://"))

    @property
    def scores_alone(self) -> bool:
        """Whether the model is a reward model or an ensemble of them, by the config of its folder."""
        return not self.remote and bool(self.model) and is_reward_model(model_folder(self.model))

    @property
    def source(self) -> ModelSource:
        """Where the model comes from; with doctors alone, from the first of them."""
        if self.remote:
            return ModelSource(base_url=self.model, model=self.endpoint_model)
        named = self.model or self.patient or next(iter(self.doctor), "")
        if not named:
            raise ConfigError("--model: expected a folder, a file, a hub id or an endpoint; got nothing")
        return ModelSource(path=model_folder(named))
