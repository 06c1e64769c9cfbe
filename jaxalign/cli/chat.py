"""`jaxalign chat`: chat with any model folder or run in the terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxalign.errors import UserError
from jaxalign.inference.loading import (
    ChatModel,
    Stream,
    Template,
    decoding_text,
    load_speaker,
    printed,
    printed_aside,
)
from jaxalign.llmdoctor.guided_folders import GuideConfig
from jaxalign.mesh import MeshConfig
from jaxalign.models.tensor_dtypes import AutoDtype, ComputeDtype
from jaxalign.rollout import SamplingConfig
from jaxalign.rollout.config import Storage

HELP = "/reset clears the conversation, /undo removes the last turn, /quit (or end of input) exits"


@dataclass(frozen=True, kw_only=True)
class ChatConfig(GuideConfig):
    """A conversation in the terminal.

    Attributes:
      model: a Hugging Face folder, a GGUF file, a run folder (its export/ is used) or a hub id; with doctors, their
        patient.
      tokenizer: folder or hub id of the tokenizer; empty uses the model's own.
      adapter: a PEFT folder to merge into the model.
      revision: revision of a hub id; empty uses the newest.
      context: longest row in tokens, as `model.context` in training; 0 takes the model's own.
      template: how to format turns: tokenizer (its chat template), markers (Human:, Assistant:) or plain (the text so
        far is continued); auto uses the format of the run that trained the model, else the chat template if the
        tokenizer has one.
      system: system message to start with.
      sampling: length of answers, and how tokens are sampled.
      seed: seed for sampling.
      device: device to run on: cpu, gpu or tpu; auto uses JAX's default.
      param_dtype: dtype in which parameters are stored; auto uses bfloat16 on a GPU or TPU, regardless of the files'
        dtype, and float32 on a CPU.
      compute_dtype: dtype of matrix products; auto uses bfloat16 on a GPU or TPU and float32 on a CPU.
      weights: int8 rounds the weights (of a patient, not of its doctors) to 8-bit integers, which saves memory and
        changes completions slightly; same keeps their dtype.
      cache: int8 stores the cached keys and values as 8-bit integers; same keeps their dtype.
      mesh: number of devices along each mesh axis; the weights of all models are sharded over it, and
        gathered over fsdp to decode.
    """

    model: str = ""
    tokenizer: str = ""
    adapter: str = ""
    revision: str = ""
    context: int = 0
    template: Template = "auto"
    system: str = ""
    sampling: SamplingConfig = field(
        default_factory=lambda: SamplingConfig(max_new_tokens=256, temperature=0.8, top_p=0.95)
    )
    seed: int = 0
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    param_dtype: AutoDtype = "auto"
    compute_dtype: ComputeDtype = "auto"
    weights: Storage = "same"
    cache: Storage = "same"
    mesh: MeshConfig = field(default_factory=MeshConfig)


@dataclass
class Conversation:
    """The turns so far, and how the next answer is sampled.

    Attributes:
      chat_model: model, tokenizer and sampler.
      config: see `ChatConfig`.
      turns: messages with `role` and `content`, without the system message.
      answers: answers drawn so far; each has randomness of its own.
    """

    chat_model: ChatModel
    config: ChatConfig
    turns: list[dict[str, str]] = field(default_factory=list)
    answers: int = 0

    def answer(self, text: str, write: Callable[[str], Any] | None = None) -> str:
        """The model's answer to the user's next turn; `write` gets it piece by piece while it is made.

        The oldest turns are left out where the conversation outgrows the context.

        Raises:
          UserError: the user's turn alone leaves no room for an answer; it is not kept.
        """
        import jax

        turns = [*self.turns, {"role": "user", "content": text}]
        ids = self._ids(turns)
        stream = None if write is None else Stream(self.chat_model, ids, write)
        with stream or contextlib.nullcontext():
            done = self.chat_model.sampler.generate(
                [ids],
                key=jax.random.fold_in(jax.random.key(self.config.seed), self.answers),
                on_tokens=stream,
                **self.config.sampling.arguments(num_samples=1),
            )
        # Kept with its leading space: a model without turns goes on from this very text.
        reply = self.chat_model.continuation(ids, done.token_lists()[0])
        if stream is not None:
            stream.end(reply)
        self.turns = [*turns, {"role": "assistant", "content": reply}]
        self.answers += 1
        return reply

    def undo(self) -> None:
        """Removes the last turn and its answer."""
        self.turns = self.turns[:-2]

    def reset(self) -> None:
        """Removes all turns."""
        self.turns = []

    def _said(self, turns: list[dict[str, str]]) -> Any:
        # A model without turns only continues text: what was said so far is the text.
        plain = self.chat_model.format.template == "plain"
        return "".join(turn["content"] for turn in turns) if plain else turns

    def _ids(self, turns: list[dict[str, str]]) -> list[int]:
        room = self.chat_model.context - self.config.sampling.max_new_tokens
        ids: list[int] = []
        for first in range(0, len(turns), 2):
            ids = self.chat_model.encode(self._said(turns[first:]), self.config.system)
            if len(ids) <= room:
                return ids
        raise UserError(
            f"this turn has {len(ids)} tokens, but the context of {self.chat_model.context} tokens leaves room for "
            f"{max(room, 0)} with --sampling.max_new_tokens={self.config.sampling.max_new_tokens}"
        )


def chat(
    config: ChatConfig, *, lines: Iterable[str] | None = None, write: Callable[[str], Any] | None = None
) -> None:
    """Chats with a model: answers each turn until the input ends.

    Args:
      config: see `ChatConfig`.
      lines: the user's turns; None reads them from the terminal (or a pipe).
      write: receives each answer; None prints it word by word as it is generated.

    Raises:
      UserError: an invalid model. A turn that is too long only prints a message, and the conversation continues.
    """
    chat_model = load_speaker(
        config.model,
        tokenizer=config.tokenizer,
        adapter=config.adapter,
        revision=config.revision,
        context=config.context,
        template=config.template,
        param_dtype=config.param_dtype,
        compute_dtype=config.compute_dtype,
        weights=config.weights,
        cache=config.cache,
        guide=config,
        device=config.device,
        mesh=config.mesh,
        tell=printed_aside,
    )
    sampling = config.sampling.arguments(num_samples=1)
    printed_aside(decoding_text(chat_model, 1, chat_model.context - sampling["max_new_tokens"], sampling))
    conversation = Conversation(chat_model, config)
    say = print if write is None else write
    commands = {"/reset": conversation.reset, "/undo": conversation.undo, "/help": lambda: say(HELP)}
    if lines is None and sys.stdin.isatty():
        say(HELP)
    for line in _typed() if lines is None else lines:
        text = line.rstrip("\n")
        if text.strip() in ("/quit", "/exit"):
            return
        if text.strip() in commands:
            commands[text.strip()]()
        elif text.strip():
            try:
                if write is None:
                    conversation.answer(text, printed)
                    print()
                else:
                    write(conversation.answer(text).strip())
            except UserError as error:
                say(f"({error})")


def _typed() -> Iterable[str]:
    """What the user types, line by line."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    # Gives input() its history and line editing, where the system has it.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
    while True:
        try:
            yield input("> ")
        except EOFError:
            return
