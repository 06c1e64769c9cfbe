"""Golden model folders: tiny random models of every family, with the logits transformers (torch) gives.

Run by `make goldens`, in a venv with torch; names as arguments make those alone. Writes tests/golden/models/FAMILY/
with
- config.json and model.safetensors, by transformers;
- saved.json, reward.json and process.json: every JSON file of the folder that jaxalign saves from it, as a
  language model, as a reward model and as a process reward model (a token classifier, where there is one); transformers
  loaded these folders without a missing or left-over tensor. Their tensors are those of model.safetensors, byte for
  byte (the reward models' without the vocabulary head, with `reward_score`, the process one's with a bias of 0.5),
  and are not kept twice;
- golden.npz: tokens [B, T]; logits [B, T, V] and saved_logits, by transformers from its own folder and from
  jaxalign's; where rotary frequencies depend on the length, longer_tokens [1, S] and longer_logits, of a row beyond
  the trained length; of mixtures of experts router_loss, of rows of 17 and 11 tokens, and the gradients router_grad
  [E, D] and experts_grad [E, 2 F, D] of it and the mean square of row 0's logits, in layer 0; reward_score [D],
  saved_scores [B] and saved_token_scores [B, T], the head and what transformers'
  classifiers of rows and of tokens give; versions.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

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
    "llama_yarn": (
        "LlamaConfig",
        SMALL
        | HEADS
        | {
            "head_dim": 16,
            "max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 500.0, "factor": 5.0, "original_max_position_embeddings": 12,
                "beta_fast": 2.0, "beta_slow": 0.25, "truncate": False, "mscale": 1.5, "mscale_all_dim": 0.5,
            },
        },
    ),
    "qwen3_yarn": (
        "Qwen3Config",
        SMALL
        | HEADS
        | {
            "head_dim": 16,
            "max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
            },
        },
    ),
    "llama_dynamic": (
        "LlamaConfig",
        SMALL
        | HEADS
        | {
            "max_position_embeddings": 32,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        },
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
    "phi3_longrope": (
        "Phi3Config",
        SMALL
        | HEADS
        | {
            "pad_token_id": 0,
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1, 1.2, 1.5],
                "long_factor": [1.0, 2.0, 4.0, 6.0],
            },
        },
    ),
    "olmo2": ("Olmo2Config", SMALL | HEADS | {"pad_token_id": 0}),
    "olmo3": (
        "Olmo3Config",
        SMALL
        | HEADS
        | {
            "pad_token_id": 0,
            "num_hidden_layers": 4,
            "sliding_window": 5,
            "max_position_embeddings": 64,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
                "full_attention": {
                    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                    "original_max_position_embeddings": 16,
                },
            },
        },
    ),
    "smollm3": (
        "SmolLM3Config",
        SMALL
        | HEADS
        | {"pad_token_id": 0, "num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 1], "use_sliding_window": True,
           "sliding_window": 6},
    ),
    "glm": ("GlmConfig", SMALL | HEADS | {"head_dim": 12, "pad_token_id": 0}),
    "glm4": ("Glm4Config", SMALL | HEADS | {"head_dim": 8, "pad_token_id": 0}),
    "mixtral": (
        "MixtralConfig",
        SMALL
        | HEADS
        | {"intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6},
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        SMALL
        | HEADS
        | {"head_dim": 12, "moe_intermediate_size": 20, "num_experts": 5, "num_experts_per_tok": 3,
           "tie_word_embeddings": True, "router_aux_loss_coef": 0.02},
    ),
    "qwen3_moe_normalized": (
        "Qwen3MoeConfig",
        SMALL
        | HEADS
        | {"head_dim": 8, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 1,
           "norm_topk_prob": True, "attention_bias": True},
    ),
    "gpt_oss": (
        "GptOssConfig",
        SMALL
        | HEADS
        | {"head_dim": 8, "intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2,
           "sliding_window": 5, "max_position_embeddings": 64, "swiglu_limit": 1.0, "pad_token_id": 0,
           "rope_parameters": {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0, "beta_fast": 32.0,
                               "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 16}},
    ),
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
# Rows longer than the trained length.
LONGER = {"llama_dynamic": 48, "phi3_longrope": 48}


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


def of_router(model, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """The load-balancing loss of a mixture of experts, and gradients of it and of the logits of the first row."""
    mask = torch.tensor(np.arange(17)[None] < np.asarray([[17], [11]])).long()
    out = model(torch.tensor(tokens), attention_mask=mask, output_router_logits=True)
    layer = model.model.layers[0].mlp
    router = layer.router if hasattr(layer, "router") else layer.gate
    wanted = (router.weight, layer.experts.gate_up_proj)
    grads = torch.autograd.grad(out.aux_loss + (out.logits[0] ** 2).mean(), wanted)
    names = ("router_grad", "experts_grad")
    return {n: g.numpy() for n, g in zip(names, grads, strict=True)} | {
        "router_loss": out.aux_loss.detach().numpy()
    }


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from jaxalign import models
    from jaxalign.models.families import FAMILIES

    wanted = sys.argv[1:] or CASES
    tokens = np.random.default_rng(0).integers(0, 48, (2, 17))
    for number, (name, (config_class, arguments)) in enumerate(CASES.items()):
        if name not in wanted:
            continue
        shutil.rmtree(HERE / name, ignore_errors=True)
        arguments = {"bos_token_id": 1, "eos_token_id": 2} | arguments
        config = getattr(transformers, config_class)(**arguments, attn_implementation="eager")
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        randomize(model, number)
        folder = HERE / name
        model.save_pretrained(folder)
        logits = logits_of(model, tokens)
        longer = {}
        if name in LONGER:
            row = np.random.default_rng(1).integers(0, 48, (1, LONGER[name]))
            longer = {"longer_tokens": row, "longer_logits": logits_of(model, row)}
        if hasattr(config, "router_aux_loss_coef"):
            longer |= of_router(model, tokens)
        ours = models.load_pretrained(folder)
        score = np.random.default_rng(number).standard_normal(ours.config.hidden_size).astype(np.float32)
        golden = {
            "tokens": tokens,
            "logits": logits,
            **longer,
            "saved_logits": save_and_load(ours, folder, tokens),
            "reward_score": score,
            "saved_scores": save_and_load_reward(ours, score, folder, tokens),
        }
        if FAMILIES[ours.config.family].token_head:
            golden["saved_token_scores"] = save_and_load_process(ours, score, folder, tokens)
        worst = float(np.abs(golden["saved_logits"] - logits).max())
        print(f"{name}: transformers loads what jaxalign saves; largest difference of logits {worst:.2e}")
        assert worst < 1e-4, worst
        versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
        np.savez_compressed(folder / "golden.npz", **golden, versions=versions)


def save_and_load(model, folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Logits [B, T, V] that transformers gives from the folder that jaxalign saves; writes saved.json."""
    from jaxalign import models

    with tempfile.TemporaryDirectory() as temporary:
        saved = models.save_pretrained(model, Path(temporary) / "saved")
        keep_json(saved, folder / "saved.json")
        check_tensors(saved, load_file(folder / "model.safetensors"))
        return logits_of(load(AutoModelForCausalLM, saved), tokens)


def save_and_load_reward(model, score: np.ndarray, folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Scores [B] that transformers' one-label classifier gives from our reward folder; writes reward.json."""
    import jax

    from jaxalign import models

    scalar = scalar_model(model, score)
    with tempfile.TemporaryDirectory() as temporary:
        saved = models.save_reward_model(scalar, Path(temporary) / "saved")
        keep_json(saved, folder / "reward.json")
        trunk = load_file(folder / "model.safetensors")
        trunk = {n: a for n, a in trunk.items() if n not in ("lm_head.weight", "embed_out.weight")}
        check_tensors(saved, trunk | {"score.weight": score[None]})
        loaded = load(AutoModelForSequenceClassification, saved)
        with torch.no_grad():  # a row at a time: no padding token is needed
            theirs = np.concatenate([loaded(torch.tensor(row[None])).logits.numpy()[:, 0] for row in tokens])
    ours = scalar(jax.numpy.asarray(tokens), lengths=jax.numpy.full(len(tokens), tokens.shape[1]))
    worst = float(np.abs(np.asarray(ours) - theirs).max())
    print(f"{folder.name}: {type(loaded).__name__}; largest difference of scores {worst:.2e}")
    assert worst < 1e-4, worst
    return theirs


def save_and_load_process(model, score: np.ndarray, folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Logits [B, T] that transformers' one-label token classifier gives from our folder; writes process.json."""
    import jax

    from jaxalign import models

    scalar = scalar_model(model, score, bias=0.5, steps=models.StepConfig(separator="\n"))
    with tempfile.TemporaryDirectory() as temporary:
        saved = models.save_reward_model(scalar, Path(temporary) / "saved")
        keep_json(saved, folder / "process.json")
        loaded = load(AutoModelForTokenClassification, saved)
        theirs = logits_of(loaded, tokens)[..., 0]
    worst = float(np.abs(np.asarray(scalar.per_token(jax.numpy.asarray(tokens))) - theirs).max())
    print(f"{folder.name}: {type(loaded).__name__}; largest difference of token scores {worst:.2e}")
    assert worst < 1e-4, worst
    return theirs


def scalar_model(model, score: np.ndarray, *, bias: float = 0.0, steps=None):
    """The trunk of a language model under a head of these weights."""
    import jax

    from jaxalign import models

    definition, params = models.split(models.create_scalar_model(model, key=jax.random.key(0), steps=steps))
    params["head"]["score"] = jax.numpy.asarray(score)
    return models.merge(definition, models.with_normalizer(params, gain=1.0, bias=bias))


def load(auto_class, folder: Path):
    """The model transformers reads; it must be of the class that the folder names, with no tensor too few or many."""
    loaded, info = auto_class.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    assert not any(info.values()), info
    named = json.loads((folder / "config.json").read_text())["architectures"]
    assert named == [type(loaded).__name__], (named, type(loaded))
    return loaded.eval()


def keep_json(folder: Path, file: Path) -> None:
    """All JSON files of a folder in one."""
    bodies = {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    file.write_text(json.dumps(bodies, indent=1) + "\n")


def check_tensors(folder: Path, expected: dict[str, np.ndarray]) -> None:
    """The folder holds these tensors, byte for byte."""
    tensors = load_file(folder / "model.safetensors")
    assert tensors.keys() == expected.keys(), tensors.keys() ^ expected.keys()
    for name, array in expected.items():
        assert tensors[name].dtype == array.dtype, name
        np.testing.assert_array_equal(tensors[name], array, err_msg=name)


if __name__ == "__main__":
    main()
