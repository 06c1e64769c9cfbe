"""Golden PEFT folders: random adapters on the golden models, and the logits that PEFT (torch) gives with them.

Run in a venv with torch, transformers and peft: `python tests/golden/make_peft.py`. Writes tests/golden/adapters/CASE/
with what `save_pretrained` writes, and logits.npz: tokens [B, T], logits [B, T, V] and the version of PEFT. With
folders as arguments (of adapters on the golden model that each is named after) it prints how far PEFT's logits with
them are from those in their logits.npz: jaxalign's.
"""

import sys
from pathlib import Path

import numpy as np
import peft
import torch
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
ALL = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "phi3": ["qkv_proj", "gate_up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc", "mlp.c_proj"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h"],
}
CASES = {
    "llama-dora": {"use_dora": True, "use_rslora": True},
    "phi3-dora": {"use_dora": True},
    "gpt2-lora": {"fan_in_fan_out": True},
    "gpt_neox-rslora": {
        "use_rslora": True,
        "rank_pattern": {"dense": 3},
        "alpha_pattern": {"dense_h_to_4h": 2},
    },
}


def base(family: str):
    return AutoModelForCausalLM.from_pretrained(HERE / "models" / family, dtype=torch.float32).eval()


def logits(model, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def main() -> None:
    for name, options in CASES.items():
        family = name.partition("-")[0]
        torch.manual_seed(0)
        config = peft.LoraConfig(
            r=2, lora_alpha=5, target_modules=ALL[family], task_type="CAUSAL_LM", **options
        )
        model = peft.get_peft_model(base(family), config).eval()
        for key, leaf in model.named_parameters():
            if "lora_" in key:
                leaf.data += 0.2 * torch.randn_like(leaf)
        # Not this machine's path.
        model.peft_config["default"].base_model_name_or_path = f"tests/golden/models/{family}"
        folder = HERE / "adapters" / name
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        tokens = np.random.default_rng(0).integers(0, 48, (2, 7))
        np.savez(folder / "logits.npz", tokens=tokens, logits=logits(model, tokens), peft=peft.__version__)


def check(folder: Path) -> None:
    family = folder.name.partition("-")[0]
    told = np.load(folder / "logits.npz")
    model = peft.PeftModel.from_pretrained(base(family), folder).eval()
    plain = logits(base(family), told["tokens"])
    found = logits(model, told["tokens"])
    print(
        folder.name, "off by", np.abs(found - told["logits"]).max(), "changed by", np.abs(found - plain).max()
    )


if __name__ == "__main__":
    for place in sys.argv[1:]:
        check(Path(place))
    if len(sys.argv) == 1:
        main()
