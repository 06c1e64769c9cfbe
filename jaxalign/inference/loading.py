"""Loads a chat model: any Hugging Face folder, GGUF file, hub id or run folder, with its tokenizer."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

import jaxalign.training  # noqa: F401 (models may be named as checkpoints of runs, which it exports)
from jaxalign.errors import ConfigError
from jaxalign.llmdoctor.guided_folders import GuideConfig, guided_by, read_doctors
from jaxalign.mesh import MeshConfig, devices_of, make_mesh
from jaxalign.models.folders import checkpoint_named, model_folder
from jaxalign.models.memory import bytes_of, sized, weights_text
from jaxalign.models.sharding import on_mesh
from jaxalign.models.tensor_dtypes import AutoDtype, ComputeDtype, device_dtype, folder_dtype
from jaxalign.rollout.config import Storage
from jaxalign.training.core.mesh_fit import check_experts
from jaxalign.training.core.opening import devices_text

Template = Literal["auto", "tokenizer", "markers", "plain"]


@dataclass(frozen=True)
class ChatModel:
    """A model with everything needed to generate text.

    Attributes:
      sampler: a `jaxalign.rollout.Sampler`, which keeps the prepared weights.
      tokenizer: its tokenizer.
      format: how prompts become token ids, a `jaxalign.data.chat.ChatFormat`.
      context: the most tokens, prompt and completion together.
    """

    sampler: Any
    tokenizer: Any
    format: Any
    context: int

    def encode(self, prompt: str | Sequence[Mapping[str, str]], system: str = "") -> list[int]:
        """Token ids of a prompt (text or messages), up to where the model's turn begins."""
        return self.format.prompt_ids(as_prompt(prompt, system, self.format.template))

    def continuation(self, prompt: Sequence[int], completion: Sequence[int]) -> str:
        """The text that a completion adds to its prompt, with the space between them where there is one."""
        before = self.tokenizer.decode(list(prompt), skip_special_tokens=True)
        whole = self.tokenizer.decode([*prompt, *completion], skip_special_tokens=True)
        if whole.startswith(before):
            return whole[len(before) :]
        return self.tokenizer.decode(list(completion), skip_special_tokens=True)


class UntilTexts:
    """Ends completions in which one of some texts stands, between two blocks of tokens; for `on_tokens`.

    Args:
      chat_model: whose completions.
      prompts: token ids of each prompt.
      texts: of each prompt, what its completions end at.
      copies: completions of each prompt.
    """

    def __init__(
        self,
        chat_model: ChatModel,
        prompts: Sequence[Sequence[int]],
        texts: Sequence[Sequence[str]],
        copies: int = 1,
    ) -> None:
        self.chat_model, self.prompts, self.texts, self.copies = chat_model, prompts, texts, copies
        self._ended = np.zeros(len(prompts) * copies, bool)

    def __call__(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """As `Sampler.generate` calls it."""
        for row in np.flatnonzero(~self._ended & (lengths > 0)).tolist():
            text = self._text(row, tokens[row, : lengths[row]].tolist())
            self._ended[row] = any(end in text for end in self.texts[row // self.copies])
        return self._ended

    def cut(self, done: Any) -> list[str]:
        """The text of each of the `Completions`, up to the first of its texts."""
        found = []
        for row, tokens in enumerate(done.token_lists()):
            text = self._text(row, tokens)
            ends = [text.find(end) for end in self.texts[row // self.copies]]
            found.append(text[: min((end for end in ends if end >= 0), default=len(text))])
        return found

    def _text(self, row: int, tokens: Sequence[int]) -> str:
        return self.chat_model.continuation(self.prompts[row // self.copies], list(tokens))


class Stream:
    """Streams a completion: writes the text that new tokens add, as soon as they form whole characters.

    Args:
      chat_model: whose completion.
      prompt: its token ids.
      write: takes each piece.
    """

    # Tokens between two pieces.
    BLOCK = 8

    def __init__(self, chat_model: ChatModel, prompt: Sequence[int], write: Callable[[str], Any]) -> None:
        self.chat_model, self.prompt, self.write, self.shown = chat_model, list(prompt), write, ""
        chat_model.sampler.block = self.BLOCK

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """What is said of an interruption begins on a line of its own."""
        if error is not None and self.shown:
            self.write("\n")

    def __call__(self, tokens: Any, lengths: Any) -> None:
        """As `Sampler.generate` calls it; of several completions the first is written."""
        text = self.chat_model.continuation(self.prompt, tokens[0, : lengths[0]].tolist())
        # Bytes that are no character yet, and space that nothing may follow.
        text = text.rstrip("\ufffd").strip()
        if text.startswith(self.shown):
            self.write(text[len(self.shown) :])
            self.shown = text

    def end(self, text: str) -> None:
        """Writes the rest of the completion; all of it again on a line of its own where its beginning has changed."""
        text = text.strip()
        same = text.startswith(self.shown)
        self.write(text[len(self.shown) :] if same else f"\n{text}")
        self.shown = text


def printed(piece: str) -> None:
    """Prints a piece of text and flushes it."""
    print(piece, end="", flush=True)


def load_speaker(
    model: str,
    *,
    tokenizer: str = "",
    adapter: str = "",
    revision: str = "",
    context: int = 0,
    template: Template = "auto",
    param_dtype: AutoDtype = "auto",
    compute_dtype: ComputeDtype = "auto",
    weights: Storage = "same",
    cache: Storage = "same",
    guide: GuideConfig | None = None,
    device: str = "auto",
    mesh: MeshConfig | None = None,
    tell: Callable[[str], Any] = lambda line: None,
) -> ChatModel:
    """Loads a model and its tokenizer for generation.

    Completions end at what the model's files name, at the tokenizer's end-of-sequence token, and at the end of a turn
    as its run taught it or its chat template writes it.

    Args:
      model: a Hugging Face folder, a GGUF file, a hub id or a run folder; with doctors, their patient, and empty
        takes the one that their cards name.
      tokenizer: folder or hub id of the tokenizer; empty takes the model's.
      adapter: a PEFT folder to merge into the model; empty for none.
      revision: revision of a hub id.
      context: longest row in tokens, see `models.load_pretrained`.
      template: how prompts are written, see `format_of`.
      param_dtype, compute_dtype: precision of the weights and of the matrix products (auto: see `device_dtype`).
      weights, cache: as of a `Sampler`.
      guide: doctors that steer the model, if it names any.
      device, mesh: the devices: their kind, and how many the weights and the rows are split over; None for one.
      tell: takes a line each for the model, its doctors and the devices, with the bytes that they take.

    Raises:
      ConfigError: no model is named; doctors that do not go together.
      DeviceError: the mesh asks for more devices than there are.
      ModelError: a folder, tensor or tokenizer that is wrong.
    """
    doctors = None
    if guide is not None and guide.doctor:
        if model and guide.patient and model != guide.patient:
            raise ConfigError(
                f"--model={model} and --patient={guide.patient}: both name the patient; set one"
            )
        doctors = read_doctors(replace(guide, patient=guide.patient or model))
        model = doctors.patient_folder()
    if not model:
        raise ConfigError(
            "--model: expected a Hugging Face folder, a GGUF file, a run folder or a hub id; got nothing"
        )
    import jax.numpy as jnp

    from jaxalign import models
    from jaxalign.rollout import Sampler

    folder = model_folder(model)
    there = devices_of(device)
    on = make_mesh(mesh, there)
    first = on.devices.flat[0]
    if on.shape["expert"] > 1:
        shape = models.load_config(folder, revision=revision or None, context=context)
        check_experts("model", shape.mixture.experts, on)
    # What floats are needed for: an adapter is added to them, and a doctor may be made of the same.
    floats = adapter or (doctors is not None and doctors.start_as(folder))
    live = models.load_pretrained(
        folder,
        revision=revision or None,
        context=context,
        param_dtype=jnp.dtype(device_dtype(param_dtype, first)),
        compute_dtype=jnp.dtype(device_dtype(compute_dtype, first)),
        mesh=on,
        weights="same" if floats else weights,
    )
    own = models.load_tokenizer if doctors is None else doctors.patient_tokenizer
    words = models.load_tokenizer(tokenizer) if tokenizer else own(folder)
    models.check_vocabulary(live.config, words)
    stops = [*models.tokenizer_stops(words)]
    if adapter:
        leaves, settings = models.load_adapter(adapter, live.config)
        live = models.merge_adapter(live, models.attach(leaves, settings))
        if run_data(adapter):  # the base does not know what the adapter's run taught as the end of a turn
            stops += format_of(words, "auto", adapter).stop_ids
    run = folder if checkpoint_named(model) else model
    if doctors is not None:
        own_folder = "" if adapter or revision else folder
        live = guided_by(doctors, live, words, folder=own_folder, mesh=on)
        # Doctors learnt from prompts written as in their run.
        run = next((str(home) for home in doctors.folders if run_data(str(home))), model)
    written = format_of(words, template, run)
    stops += written.stop_ids
    # Doctors may have fewer tokens than their patient; what none of them writes ends nothing.
    live = models.with_stops(live, [token for token in stops if token < live.config.vocab_size])
    definition, params = models.split(live)
    sampler = Sampler(models.merge(definition, on_mesh(params, on)), weights=weights, cache=cache)
    why = f"--compute_dtype=auto: a {first.platform}" if compute_dtype == "auto" else ""
    _tell(tell, sampler, model, doctors, files=folder_dtype(folder), setting=param_dtype, why=why)
    if len(there) > 1:
        tell(f"devices: {devices_text(on, len(there))}")
    return ChatModel(sampler, words, written, int(live.config.max_positions))


def _tell(tell: Callable[[str], Any], sampler: Any, model: str, doctors: Any, **dtypes: Any) -> None:
    """A line for the model, one for its doctors; `dtypes` is what `weights_text` takes."""
    config, params = sampler.config, sampler.params
    patient = params if doctors is None else params["patient"]
    size = weights_text(config, patient, key="--param_dtype", **dtypes)
    tell(f"{'model' if doctors is None else 'patient'}: {model} ({config.family}, {size})")
    if doctors is not None:
        more = bytes_of(params) - bytes_of(patient)
        names = ", ".join(card.dimension for card in doctors.cards)
        tell(f"doctors: {names} ({sized(more)} in addition to the patient)")


def decoding_text(chat_model: ChatModel, prompts: int, longest: int, sampling: Mapping[str, Any]) -> str:
    """The memory that decoding needs in addition to the weights, in one line.

    Args:
      chat_model: who decodes.
      prompts: so many at once.
      longest: tokens of the longest; those that do not fit the context are not read.
      sampling: arguments of `Sampler.generate`.
    """
    new, copies = sampling["max_new_tokens"], sampling["num_samples"]
    longest = max(1, min(longest, chat_model.context - new))
    cache, copied = chat_model.sampler.decoding_bytes(
        prompts * copies, longest, max_new_tokens=new, num_samples=copies
    )
    count = prompts * copies
    rows = f"{count:,} completion{'s' if count > 1 else ''}, with prompt up to {longest + new:,} tokens"
    mesh = chat_model.sampler.config.mesh
    share = "" if mesh is None or mesh.size == 1 else " a device"
    more = f"; the weights laid out for decoding: {sized(copied)} more{share}" if copied else ""
    return f"cache: {sized(cache)}{share} of keys and values ({rows}){more}"


def printed_aside(line: str) -> None:
    """Prints a line on standard error."""
    print(line, file=sys.stderr, flush=True)


def format_of(tokenizer: Any, template: Template, model: str) -> Any:
    """How prompts become token ids (a `jaxalign.data.chat.ChatFormat`).

    `auto` writes them as the run that made the model did; for any other folder by the
    tokenizer's chat template, and as plain text where it has none. Turns end as in that
    run, or as the chat template ends them; nothing is put after others.
    """
    from jaxalign.data.chat import chat_format
    from jaxalign.data.markers import markers_of

    markers = {"human": "\n\nHuman:", "assistant": "\n\nAssistant:"}
    end = "none"
    if template == "auto":
        trained = run_data(model)
        if not trained and (exported := markers_of(tokenizer)):
            trained = {"template": "markers", **exported}
        markers |= {name: trained[name] for name in markers if isinstance(trained.get(name), str)}
        # Earlier answers of a chat end as they did in training.
        end = str(trained.get("end_token", "none"))
        template = trained.get("template", "auto" if trained else "plain")
        if template == "plain" and not trained and getattr(tokenizer, "chat_template", None):
            template = "tokenizer"
    if template == "tokenizer" and end == "none":
        end = ""  # the template's own
    return chat_format(tokenizer, template, end, markers["human"], markers["assistant"])


def run_data(model: str) -> dict[str, Any]:
    """The `data` settings of the run that exported a model; empty where it is no run."""
    # A run's export/ lies in it, and those of single checkpoints in its exports/; one of several doctors deeper.
    for folder in (Path(model), *Path(model).parents[:3]):
        file = folder / "config.yaml"
        if file.is_file() and (folder / "metadata.json").is_file():
            settings = yaml.safe_load(file.read_text(encoding="utf-8"))
            data = settings.get("data") if isinstance(settings, dict) else None
            return data if isinstance(data, dict) else {}
    return {}


def as_prompt(prompt: str | Sequence[Mapping[str, str]], system: str, template: str) -> Any:
    """A prompt (text, or messages with `role` and `content`) with a system message before it."""
    from jaxalign.data.records import Message

    if isinstance(prompt, str) and template == "plain":
        return system + prompt
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if system:
        turns = [{"role": "system", "content": system}, *turns]
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)
