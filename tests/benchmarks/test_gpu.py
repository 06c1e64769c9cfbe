"""What `benchmarks/gpu.py` counts, and that it starts where packages for data sets are missing."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def test_packed_rows_are_as_many_as_asked_for_and_nearly_full(benchmark):
    batch = benchmark("gpu").packed_batch(512, 4, 1024)
    assert batch["packed"].shape == (4, 1024)
    filled = (batch["packed"] < batch["tokens"].size).sum()
    assert filled == batch["lengths"].sum() and 0.9 * 4 * 1024 < filled <= 4 * 1024
    assert (batch["lengths"] == 1024).sum() == 2 and len(batch["lengths"]) > 6
    assert batch["mask"].sum() == filled - len(batch["lengths"])
    short = benchmark("gpu").packed_batch(512, 2, 64)  # dialogues longer than a row are cut
    assert short["packed"].shape == (2, 64) and short["lengths"].max() == 64


def test_operations_are_those_of_the_products(benchmark):
    gpu = benchmark("gpu")
    config, lengths = gpu.config_of("tiny"), np.array([5, 3])
    # Tied: every parameter multiplies; vocabulary 512, width 64: norms are counted too, which are few.
    matrices = 6 * 1000 * 8
    attention = 3 * 4 * config.num_layers * config.hidden_size * (25 / 2 + 9 / 2)
    assert gpu.operations(config, 1000, lengths) == pytest.approx(matrices + attention)
    frozen = gpu.operations(config, 1000, lengths, lora=True)
    assert frozen == pytest.approx(matrices * 4 / 6 + attention)


@pytest.mark.slow
def test_it_needs_no_package_for_data_sets():
    code = (
        "import sys\n"
        "for name in ('datasets', 'grain', 'transformers', 'tokenizers'): sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(FOLDER)!r})\n"
        "import gpu, growth, smoke"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
