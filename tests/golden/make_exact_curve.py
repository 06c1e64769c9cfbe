"""The rewards of 20 GRPO updates in exact mode, to the bit, by CPU and versions: `curves/exact.json`.

    python -m tests.golden.make_exact_curve      # adds or replaces this machine's

XLA's code depends on what the CPU can do, so a machine with other flags needs a curve of its own.
"""

import hashlib
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

FILE = Path(__file__).with_name("curves") / "exact.json"


def key() -> str:
    """What the bits depend on beside the code: versions, and a hash of the CPU's flags and XLA's."""
    from jaxalign.kernels.matmul import cpu_flags

    flags = [
        *sorted(cpu_flags()),
        os.environ.get("XLA_FLAGS", ""),
        os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", ""),
    ]
    digest = hashlib.sha256("\n".join(flags).encode()).hexdigest()[:16]
    return f"jaxlib {version('jaxlib')}, CPU {digest}"


def curve(config, train) -> list[dict[str, str]]:
    """Reward, gradient norm and gap of each update of a run, floats in hexadecimal."""
    from jaxalign.runs import records

    train(config)
    rows = records.read(Path(config.run.output) / "metrics.jsonl")
    names = ("objective/score", "grad_norm", "rollout/logp_gap")
    return [{name: row[name].hex() for name in names} for row in rows if "objective/score" in row]


def main() -> None:
    import pytest

    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "curve.json"
        os.environ["JAXALIGN_EXACT_CURVE"] = str(found)
        code = pytest.main(["-n0", "-q", "-k", "golden_curve", "tests/training/rl/test_grpo.py"])
        if code or not found.exists():
            raise SystemExit(int(code) or 1)
        made = json.loads(found.read_text())
    curves = (json.loads(FILE.read_text()) if FILE.exists() else {}) | made
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(curves, indent=1, sort_keys=True) + "\n")
    print(f"{FILE}: {', '.join(curves)}")


if __name__ == "__main__":
    main()
