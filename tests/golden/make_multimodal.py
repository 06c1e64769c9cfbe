"""A golden folder of a tiny random Gemma 3 with images, and the logits transformers (torch) gives for text.

Run by `make goldens`, in a venv with torch. Writes tests/golden/multimodal/gemma3 with config.json and
model.safetensors, by transformers, and golden.npz: tokens [B, T], their logits [B, T, V], and saved_logits, by
transformers' text-only class from the folder that jaxalign saves.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from make_models import HEADS, SMALL, load, logits_of, randomize

HERE = Path(__file__).parent / "multimodal" / "gemma3"
TEXT = (
    SMALL | HEADS | {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 24, "num_hidden_layers": 7}
)
VISION = {
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from jaxalign import models

    shutil.rmtree(HERE, ignore_errors=True)
    config = transformers.Gemma3Config(
        text_config=TEXT | {"rope_parameters": None},
        vision_config=VISION,
        mm_tokens_per_image=1,
        image_token_index=47,
        boi_token_index=46,
        eoi_token_index=45,
        bos_token_id=1,
        eos_token_id=[2, 3],
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration._from_config(
        config, attn_implementation="eager"
    ).eval()
    randomize(model, 0)
    model.save_pretrained(HERE)
    tokens = np.random.default_rng(0).integers(0, 45, (2, 17))
    golden = {"tokens": tokens, "logits": logits_of(model, tokens)}
    with tempfile.TemporaryDirectory() as temporary:
        saved = models.save_pretrained(models.load_pretrained(HERE), Path(temporary) / "saved")
        golden["saved_logits"] = logits_of(load(transformers.AutoModelForCausalLM, saved), tokens)
    worst = float(np.abs(golden["saved_logits"] - golden["logits"]).max())
    print(
        f"gemma3: transformers loads the text part that jaxalign saves; largest difference of logits {worst:.2e}"
    )
    assert worst < 1e-4, worst
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    np.savez_compressed(HERE / "golden.npz", **golden, versions=versions)


if __name__ == "__main__":
    main()
