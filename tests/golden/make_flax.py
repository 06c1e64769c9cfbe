"""Golden `flax_model.msgpack` folders: tiny random models of the Flax classes of transformers 4, with their logits.

Run by `make goldens`, in a venv of its own (requirements-flax.txt): transformers 5 has no Flax
classes. Writes tests/golden/flax/NAME/ with config.json, flax_model.msgpack (gpt2_sharded: two
shards and their index) and golden.npz (tokens, logits, versions). Needs no jaxalign.
"""

import shutil
from pathlib import Path

import flax
import jax
import numpy as np
import transformers

HERE = Path(__file__).parent / "flax"
# These classes build a mask of max_position_embeddings squared, and know no base but 10000.
SMALL = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 48,
    "max_position_embeddings": 64, "rope_theta": 10_000.0,
}  # fmt: skip
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 20, "vocab_size": 48}
CASES = {
    "gpt2": ("FlaxGPT2LMHeadModel", GPT2),
    "gpt2_sharded": ("FlaxGPT2LMHeadModel", GPT2 | {"tie_word_embeddings": False}),
    "llama": ("FlaxLlamaForCausalLM", SMALL | {"num_key_value_heads": 2, "attention_bias": True}),
    # The window is wider than the row: past it Flax Mistral sees one key more than torch's, and none without a window.
    "mistral": ("FlaxMistralForCausalLM", SMALL | {"num_key_value_heads": 2, "sliding_window": 32}),
    "gemma": (
        "FlaxGemmaForCausalLM",
        SMALL | {"num_key_value_heads": 1, "head_dim": 8, "hidden_act": "gelu"},
    ),
}


def randomize(params, seed: int):
    """Weights far enough from the initial ones that every bias and norm shows."""
    rng = np.random.default_rng(seed)

    def add(array):
        scale = 0.25 if array.ndim > 1 else 0.1
        return np.asarray(array) + scale * rng.standard_normal(array.shape).astype(np.float32)

    return jax.tree.map(add, params)


def main() -> None:
    shutil.rmtree(HERE, ignore_errors=True)
    tokens = np.random.default_rng(0).integers(0, 48, (2, 17))
    versions = f"transformers {transformers.__version__}, jax {jax.__version__}, flax {flax.__version__}"
    for number, (name, (class_name, arguments)) in enumerate(CASES.items()):
        model_class = getattr(transformers, class_name)
        config = model_class.config_class(bos_token_id=1, eos_token_id=2, **arguments)
        model = model_class(config)
        model.params = randomize(model.params, number)
        logits = np.asarray(model(tokens).logits)
        model.save_pretrained(HERE / name, max_shard_size="20KB" if name.endswith("_sharded") else "10GB")
        again = np.asarray(model_class.from_pretrained(HERE / name)(tokens).logits)
        np.testing.assert_array_equal(again, logits)
        np.savez_compressed(HERE / name / "golden.npz", tokens=tokens, logits=logits, versions=versions)
        print(f"{name}: {', '.join(sorted(p.name for p in (HERE / name).iterdir()))}")


if __name__ == "__main__":
    main()
