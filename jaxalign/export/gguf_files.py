"""Exports a model as a GGUF file, which is left only where it reads back as the model.

Read back are every tensor, to the rounding of its type, the configuration and the tokenizer. Where llama-cpp-python is
installed it also generates from the file, greedily, and must write what the model does.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxalign import models
from jaxalign.errors import ModelError
from jaxalign.models.families import config_from_json
from jaxalign.models.gguf.families import ARCHITECTURES, NAMES, config_json, gguf_names, tensors_of
from jaxalign.models.gguf.head import begins_as_one, gguf_module, read_head
from jaxalign.models.gguf.settings import differences
from jaxalign.models.gguf.tokenizer import gguf_tokenizer
from jaxalign.models.gguf.vocabulary import check_tokenizer, model_name, vocabulary_of
from jaxalign.models.gguf.writer import TYPES, is_shifted, kind_of, rounded, write_gguf
from jaxalign.models.huggingface import to_tensors
from jaxalign.models.tensor_files import Outgoing, read_whole

PROMPTS = (
    "Once upon a time",
    "The capital of France is",
    "def add(a, b):\n    return",
    "In 1969, two people",
)
NEW_TOKENS = 24
# Nats by which a token of llama.cpp may lie behind our best: its kernels round activations to the type of the weights
# (Q8_0: to 8 bits), and keys and values to float16.
GAPS = {"float32": 0.05, "float16": 0.05, "bfloat16": 0.25, "q8_0": 0.5}


def save_gguf(
    model: models.Transformer,
    file: str | Path,
    *,
    tokenizer: Any,
    dtype: str = "float16",
    name: str = "",
    called: str = "",
    say: Callable[[str], None] = print,
) -> Path:
    """Saves a model and its tokenizer as a GGUF file, checked or not at all.

    Args:
      model: a model of a family that llama.cpp has: Llama, Mistral, Qwen 2 and 3, Gemma 1 to 3, Phi-3.
      file: where; a GGUF file that is there is replaced at the end.
      tokenizer: of transformers, with its chat template.
      dtype: of matrices: float32, float16, bfloat16 or q8_0; norms and biases are float32.
      name: of the model, in the file; empty takes the file's.
      called: what messages call the file; empty takes its path.
      say: takes a line for the user.

    Raises:
      ModelError: what the format has no form of, a file that reads back as something else, or a token that llama.cpp
        and the model choose differently. Nothing is left.
    """
    path = Path(file)
    called = called or str(path)
    if dtype not in TYPES:
        raise ModelError(f"dtype: expected {', '.join(TYPES)} for GGUF, got {dtype}")
    if path.exists() and not (path.is_file() and begins_as_one(path)):
        raise ModelError(f"{path}: exists and is no GGUF file; nothing was replaced, choose another name")
    gguf_module()
    tensors = to_tensors(model.params, model.config)
    vocabulary = vocabulary_of(tokenizer, model.config)
    name = model_name(name or path.stem, tokenizer)
    _tell(called, model.config, tensors, dtype, say)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".gguf", dir=path.parent)
    os.close(handle)
    written = Path(temporary)
    try:
        write_gguf(model, written, tensors, vocabulary, dtype, name)
        check_file(written, model.config, tensors, tokenizer, dtype, called=called, say=say)
        ask_llama(written, tokenizer, dtype, called=called, say=say)
        os.chmod(written, 0o644)
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)
    return path


def _tell(
    called: str,
    config: models.ModelConfig,
    tensors: Mapping[str, Outgoing],
    dtype: str,
    say: Callable[[str], None],
) -> None:
    """What the file, or llama.cpp, has otherwise than the model."""
    wider = [
        name
        for name, tensor in tensors.items()
        if len(tensor.shape) > 1 and kind_of(tensor.shape, dtype) == "F16"
    ]
    if dtype == "q8_0" and wider:
        say(f"{called}: {len(wider)} tensors such as {wider[0]} are F16: their rows are no multiple of 32")
    if config.family in ("mistral", "phi3") and 0 < config.sliding_window < config.max_positions:
        say(
            f"{called}: llama.cpp ignores the sliding window of {config.family} models; beyond "
            f"{config.sliding_window:,} tokens it computes something else than the model"
        )


def check_file(
    file: Path,
    config: models.ModelConfig,
    tensors: Mapping[str, Outgoing],
    tokenizer: Any,
    dtype: str,
    *,
    called: str,
    say: Callable[[str], None],
) -> None:
    """What is read from a file is the model that was written, with weights rounded to their types.

    Raises:
      ModelError: naming the first field, tensor or text that is not.
    """
    head = read_head(file)
    again = config_from_json(config_json(head), called)
    if different := differences(config, again):
        raise ModelError(
            f"{called}: GGUF has no form of the model's {', '.join(different)}; nothing was written"
        )
    check_tokenizer(tokenizer, gguf_tokenizer(head), called, say)
    row = ARCHITECTURES[NAMES[config.family]]
    known = gguf_names(row, config.family, config.num_layers)
    found = tensors_of(head, again)
    if set(found) != set(tensors):
        raise ModelError(f"{called}: written with other tensors than the model has; nothing was kept")
    for name, tensor in tensors.items():
        wanted = rounded(tensor.fetch(), kind_of(tensor.shape, dtype), is_shifted(row.shifted, known[name]))
        if not np.array_equal(np.asarray(read_whole(found[name]), np.float32), wanted, equal_nan=True):
            raise ModelError(
                f"{called}: {known[name]} does not read back as it was written; nothing was kept"
            )


def ask_llama(file: Path, tokenizer: Any, dtype: str, *, called: str, say: Callable[[str], None]) -> None:
    """llama.cpp writes greedily from a file what the model in it does, or tells that it is not installed.

    At each of its tokens our own distribution is looked at: a token that is not our best counts as another choice only
    where it lies further behind than rounding explains (`GAPS`).

    Raises:
      ModelError: llama.cpp cannot read the file, cuts a prompt in another way, or chooses another token.
    """
    try:
        import llama_cpp
    except ImportError:
        say(
            f"{called}: read back and compared, but llama.cpp itself was not asked: llama-cpp-python is not installed"
        )
        return
    model = models.load_pretrained(file)
    length = min(model.config.max_positions, 256)
    try:
        theirs = llama_cpp.Llama(
            str(file), n_ctx=length, n_batch=length, n_gpu_layers=0, logits_all=True, verbose=False
        )
    except ValueError as error:
        raise ModelError(f"{called}: llama.cpp cannot read the file ({error}); nothing was kept") from None
    prompts, written = [tokenizer.encode(text) for text in PROMPTS], []
    for text, prompt in zip(PROMPTS, prompts, strict=True):
        cut = theirs.tokenize(text.encode(), add_bos=True, special=True)
        if cut != prompt:
            raise ModelError(
                f"{called}: llama.cpp makes {cut} of {text!r}, and the model's tokenizer {prompt}; nothing was kept"
            )
        written.append(_greedy(theirs, prompt, min(NEW_TOKENS, length - len(prompt))))
    same = close = 0
    for text, tokens, logits in zip(PROMPTS, written, _logits(model, prompts, written), strict=True):
        for at, (token, row) in enumerate(zip(tokens, logits, strict=True)):
            gap = row.max() - row[token]
            if gap > GAPS[dtype]:
                best = int(row.argmax())
                raise ModelError(
                    f"{called}: after {text!r} and {at} tokens llama.cpp chooses {tokenizer.decode([token])!r}, and "
                    f"the model {tokenizer.decode([best])!r} ({gap:.3f} nats better, {GAPS[dtype]} allowed); nothing "
                    "was kept"
                )
            same, close = same + (gap == 0), close + (gap > 0)
    ties = f"; {close} near ties differ (by up to {GAPS[dtype]} nats)" if close else ""
    say(
        f"{called}: llama.cpp {_version()} writes the model's tokens: {same} of {same + close} greedy ones{ties}"
    )


def _logits(
    model: models.Transformer, prompts: list[list[int]], written: list[list[int]]
) -> list[np.ndarray]:
    """Our logits at each written token: [tokens, V] of each prompt. What pads a row comes after it."""
    rows = [prompt + tokens for prompt, tokens in zip(prompts, written, strict=True)]
    padded = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    found = np.asarray(model(jnp.asarray(padded)), np.float32)
    return [
        logits[len(prompt) - 1 : len(prompt) - 1 + len(tokens)]
        for logits, prompt, tokens in zip(found, prompts, written, strict=True)
    ]


def _greedy(llama: Any, prompt: list[int], count: int) -> list[int]:
    llama.reset()
    llama.eval(prompt)
    written: list[int] = []
    while len(written) < count:
        written.append(int(np.argmax(llama.scores[llama.n_tokens - 1])))
        llama.eval(written[-1:])
    return written


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"(llama-cpp-python {version('llama_cpp_python')})"
    except PackageNotFoundError:
        return "(llama-cpp-python)"
