"""Golden values of MXFP4: random bytes, and the weights that transformers makes of them.

Run by `make goldens`, in a venv with torch. Writes tests/golden/mxfp4/golden.npz with blocks [E, M, G, 16] and scales
[E, M, G], uint8, and weights [E, 32 G, M], float32.
"""

from pathlib import Path

import numpy as np
import torch
import transformers
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

FILE = Path(__file__).parent / "mxfp4" / "golden.npz"


def main() -> None:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (4, 6, 2, 16), dtype=np.uint8)
    scales = rng.integers(100, 140, (4, 6, 2), dtype=np.uint8)
    weights = convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales)).float().numpy()
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, blocks=blocks, scales=scales, weights=weights, versions=versions)
    print(f"mxfp4: {weights.size} weights, at most {np.abs(weights).max():.4g}")


if __name__ == "__main__":
    main()
