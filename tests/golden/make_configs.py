"""Golden config.json files of every family with rotary positions, as transformers 4 and transformers 5 write them.

Run by `make goldens`, first in the venv with transformers 4 (requirements-flax.txt), which writes
tests/golden/configs/NAME/transformers4.json; then in that with transformers 5, which reads it and
writes transformers5.json beside it. Needs no torch and no jaxalign. Names as arguments
make those alone.
"""

import sys
import tempfile
from pathlib import Path

import transformers

HERE = Path(__file__).parent / "configs"
SMALL = {
    "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 7, "num_attention_heads": 4, "vocab_size": 48,
    "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LINEAR = {"rope_theta": 50_000.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.5, "high_freq_factor": 3.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
LONG = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0}
# Base, scaling, local base and fraction differ from every default: what a reader overlooks shows.
CASES = {
    "llama": ("LlamaConfig", SMALL | LINEAR),
    "llama3": ("LlamaConfig", SMALL | {"rope_theta": 50_000.0, "rope_scaling": LLAMA3}),
    "llama_dynamic": (
        "LlamaConfig",
        SMALL | {"rope_theta": 50_000.0, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    ),
    "mistral": ("MistralConfig", SMALL | LINEAR),
    "qwen2": ("Qwen2Config", SMALL | LINEAR),
    "qwen2_yarn": ("Qwen2Config", SMALL | {"rope_theta": 50_000.0, "rope_scaling": YARN}),
    "qwen3": ("Qwen3Config", SMALL | LINEAR),
    "gemma": ("GemmaConfig", SMALL | LINEAR),
    "gemma2": ("Gemma2Config", SMALL | LINEAR),
    "gemma3_text": ("Gemma3TextConfig", SMALL | LINEAR | {"rope_local_base_freq": 20_000.0}),
    "phi3": ("Phi3Config", SMALL | {"rope_theta": 50_000.0, "partial_rotary_factor": 0.5}),
    "phi3_longrope": ("Phi3Config", SMALL | {"rope_theta": 50_000.0, "rope_scaling": LONG}),
    "olmo2": ("Olmo2Config", SMALL | {"rope_theta": 50_000.0}),
    # transformers 5 reads another base than this one into the sliding layers of an older file: it is the default.
    "olmo3": ("Olmo3Config", SMALL | {"rope_theta": 500_000.0, "rope_scaling": YARN}),
    "smollm3": ("SmolLM3Config", SMALL | LINEAR),
    "glm": ("GlmConfig", SMALL | LINEAR | {"head_dim": 8, "partial_rotary_factor": 0.25}),
    "glm4": ("Glm4Config", SMALL | {"rope_theta": 50_000.0, "head_dim": 8}),
    "mixtral": (
        "MixtralConfig",
        SMALL | {"rope_theta": 50_000.0, "num_local_experts": 4, "router_aux_loss_coef": 0.02},
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        SMALL
        | LINEAR
        | {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "norm_topk_prob": True},
    ),
    "gpt_oss": (
        "GptOssConfig",
        SMALL | {"rope_theta": 50_000.0, "rope_scaling": YARN, "num_local_experts": 4},
    ),
    "gpt_neox": (
        "GPTNeoXConfig",
        SMALL | {"rotary_emb_base": 50_000, "rotary_pct": 0.5, "rope_scaling": LINEAR["rope_scaling"]},
    ),
}


def main() -> None:
    major = transformers.__version__.split(".")[0]
    for name, (class_name, arguments) in CASES.items():
        if name not in (sys.argv[1:] or CASES):
            continue
        config_class = getattr(transformers, class_name)
        (HERE / name).mkdir(parents=True, exist_ok=True)
        if major == "4":
            config = config_class(**arguments)
        else:
            config = config_class.from_json_file(HERE / name / "transformers4.json")
        with tempfile.TemporaryDirectory() as temporary:
            config.save_pretrained(temporary)
            text = (Path(temporary) / "config.json").read_text()
        (HERE / name / f"transformers{major}.json").write_text(text)


if __name__ == "__main__":
    main()
