"""Golden model folders: tiny random models of every family, with the logits transformers (torch) gives.

Run by `make goldens`, in a venv with torch. Writes tests/golden/models/FAMILY/ with
config.json, model.safetensors and golden.npz (tokens, logits, versions); then checks
that transformers loads what jaxalign saves from each folder, with the same logits.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

HERE = Path(__file__).parent / "models"
SMALL = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 48}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
CASES = {
    "llama": ("LlamaConfig", SMALL | HEADS | {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "llama3": (
        "LlamaConfig",
        SMALL
        | HEADS
        | {
            "head_dim": 16,
            "tie_word_embeddings": True,
            "max_position_embeddings": 128,
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
            },
        },
    ),
    "llama_linear": (
        "LlamaConfig",
        SMALL | HEADS | {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "mistral": ("MistralConfig", SMALL | HEADS | {"sliding_window": 5}),
    "qwen2": ("Qwen2Config", SMALL | HEADS | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", SMALL | HEADS | {"head_dim": 12}),
    "gemma2": (
        "Gemma2Config",
        SMALL
        | HEADS
        | {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0,
           "final_logit_softcapping": 3.0, "num_hidden_layers": 4},
    ),
    "gemma3_text": (
        "Gemma3TextConfig",
        SMALL | HEADS | {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 24, "num_hidden_layers": 7},
    ),
    "phi3": ("Phi3Config", SMALL | HEADS | {"sliding_window": 6, "pad_token_id": 0}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "vocab_size": 48}),
    "gpt_neox": (
        "GPTNeoXConfig",
        SMALL | {"num_attention_heads": 4, "rotary_pct": 0.5, "use_parallel_residual": True},
    ),
    "gpt_neox_serial": (
        "GPTNeoXConfig",
        SMALL | {"num_attention_heads": 4, "rotary_pct": 0.25, "use_parallel_residual": False},
    ),
    "gemma": ("GemmaConfig", SMALL | {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 12}),
}  # fmt: skip


def randomize(model, seed: int) -> None:
    """Weights far enough from the initial ones that every bias, norm and cap shows."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        with torch.no_grad():
            scale = 0.25 if parameter.ndim > 1 else 0.1
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def logits_of(model, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.float().numpy()


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    shutil.rmtree(HERE, ignore_errors=True)
    tokens = np.random.default_rng(0).integers(0, 48, (2, 17))
    for number, (name, (config_class, arguments)) in enumerate(CASES.items()):
        arguments = {"bos_token_id": 1, "eos_token_id": 2} | arguments
        config = getattr(transformers, config_class)(**arguments, attn_implementation="eager")
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        randomize(model, number)
        folder = HERE / name
        model.save_pretrained(folder)
        np.savez_compressed(
            folder / "golden.npz",
            tokens=tokens,
            logits=logits_of(model, tokens),
            versions=f"transformers {transformers.__version__}, torch {torch.__version__}",
        )
        worst = round_trip(folder, tokens, logits_of(model, tokens))
        print(f"{name}: transformers loads what jaxalign saves; largest difference of logits {worst:.2e}")
    reward_round_trip(tokens)


def round_trip(folder: Path, tokens: np.ndarray, expected: np.ndarray) -> float:
    from jaxalign import models

    with tempfile.TemporaryDirectory() as temporary:
        models.save_pretrained(models.load_pretrained(folder), Path(temporary) / "saved")
        loaded, info = AutoModelForCausalLM.from_pretrained(
            Path(temporary) / "saved", attn_implementation="eager", output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"], info
        worst = float(np.abs(logits_of(loaded.eval(), tokens) - expected).max())
    assert worst < 1e-4, worst
    return worst


def reward_round_trip(tokens: np.ndarray) -> None:
    """transformers reads our reward folders as one-label classifiers, with the same scores."""
    import jax

    from jaxalign import models

    for name in ("llama", "qwen2", "gpt2"):
        scalar = models.create_scalar_model(models.load_pretrained(HERE / name), key=jax.random.key(0))
        with tempfile.TemporaryDirectory() as temporary:
            models.save_reward_model(scalar, Path(temporary) / "saved")
            loaded, info = AutoModelForSequenceClassification.from_pretrained(
                Path(temporary) / "saved", attn_implementation="eager", output_loading_info=True
            )
            assert not info["missing_keys"] and not info["unexpected_keys"], info
            theirs = []
            with torch.no_grad():
                for row in tokens:  # one at a time: no padding token is needed
                    theirs.append(loaded.eval()(torch.tensor(row[None])).logits.numpy()[0, 0])
        ours = scalar(jax.numpy.asarray(tokens), lengths=jax.numpy.full(len(tokens), tokens.shape[1]))
        worst = float(np.abs(np.asarray(ours) - np.asarray(theirs)).max())
        print(f"{name}: reward model; largest difference of scores {worst:.2e}")
        assert worst < 1e-4, worst


if __name__ == "__main__":
    main()
