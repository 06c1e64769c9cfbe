"""A model to talk to: any Hugging Face folder, hub id or run folder, and its tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxalign.errors import ConfigError, ModelError

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Speaker:
    """A model with all that is needed to write with it.

    Attributes:
      sampler: a `jaxalign.rollout.Sampler`, which keeps the prepared weights.
      tokenizer: its tokenizer.
      context: the most tokens, prompt and completion together.
    """

    sampler: Any
    tokenizer: Any
    context: int


def model_folder(path: str) -> str:
    """A run folder stands for the model it exported; anything else for itself.

    Raises:
      ModelError: a run folder that has exported nothing yet.
    """
    folder = Path(path)
    if (folder / "export").is_dir():
        return str(folder / "export")
    if (folder / "metadata.json").is_file() and not (folder / "config.json").is_file():
        raise ModelError(f"{path}: this run has no export/ folder yet; finish it, or go on with --resume")
    return path


def load_speaker(
    model: str,
    *,
    tokenizer: str = "",
    adapter: str = "",
    revision: str = "",
    param_dtype: Dtype = "float32",
    compute_dtype: Dtype = "float32",
) -> Speaker:
    """Loads a model and its tokenizer for generation.

    Args:
      model: a Hugging Face folder, a hub id or a run folder.
      tokenizer: folder or hub id of the tokenizer; empty takes the model's.
      adapter: a PEFT folder to merge into the model; empty for none.
      revision: revision of a hub id.
      param_dtype, compute_dtype: precision of the weights and of the matrix products.

    Raises:
      ConfigError: no model is named.
      ModelError: a folder, tensor or tokenizer that is wrong.
    """
    if not model:
        raise ConfigError("--model: expected a Hugging Face folder, a run folder or a hub id; it is empty")
    import jax.numpy as jnp

    from jaxalign import models
    from jaxalign.rollout import Sampler

    folder = model_folder(model)
    live = models.load_pretrained(
        folder,
        revision=revision or None,
        param_dtype=jnp.dtype(param_dtype),
        compute_dtype=jnp.dtype(compute_dtype),
    )
    words = models.load_tokenizer(tokenizer or folder)
    models.check_vocabulary(live.config, words)
    if adapter:
        leaves, settings = models.load_adapter(adapter, live.config)
        live = models.merge_adapter(live, models.attach(leaves, settings))
    return Speaker(Sampler(live), words, int(live.config.max_positions))


def has_chat_template(tokenizer: Any) -> bool:
    """Whether the tokenizer says how a conversation is written."""
    return bool(getattr(tokenizer, "chat_template", None))


def encode_prompt(
    tokenizer: Any, prompt: str | Sequence[Mapping[str, str]], *, chat: bool, system: str = ""
) -> list[int]:
    """Token ids of a prompt, up to where the model's turn begins.

    Args:
      tokenizer: as transformers loads it.
      prompt: text, or messages with `role` and `content`.
      chat: write a conversation by the tokenizer's template (or role markers where it has none).
      system: a system message put first, in a conversation.
    """
    if not chat and isinstance(prompt, str):
        return [int(t) for t in tokenizer.encode(prompt)]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
    if system:
        messages = [{"role": "system", "content": system}, *messages]
    from jaxalign.data import chat as chats

    return [int(t) for t in chats.encode_prompt(messages, tokenizer)]
