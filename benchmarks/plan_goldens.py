"""Plans of 8B against those that were kept: bytes and collectives of a step, compiled for devices that are not there.

    python benchmarks/plan_goldens.py            what differs by more than 2%; status 1 if anything does
    python benchmarks/plan_goldens.py --write    keeps today's

Needs the compilers for GPUs and TPUs (`pip install 'jaxalign[cuda]' 'jaxalign[tpu]'`); a case without its own is
skipped, and said. `tests/plan/test_goldens.py` does the case of virtual CPU devices.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

GOLDENS = Path(__file__).resolve().parents[1] / "tests" / "plan" / "goldens.json"
# Of Llama 3.
SHAPE = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 131072, "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "tie_word_embeddings": False, "bos_token_id": 128000, "eos_token_id": 128001,
}  # fmt: skip
FSDP = ["--mesh.fsdp=8", "--model.remat=full"]
CASES = {
    "sft, h100x8": ["sft", "--target=h100x8", "--tokens=4096", "--train.batch_size=8", *FSDP],
    "sft, 8-bit moments, h100x8": [
        "sft", "--target=h100x8", "--tokens=4096", "--train.batch_size=8", "--optimizer.moment_dtype=8bit", *FSDP,
    ],
    "sft, tensor=4, h100x8": [
        "sft", "--target=h100x8", "--tokens=4096", "--train.batch_size=8", "--mesh.fsdp=2", "--mesh.tensor=4",
        "--model.remat=full",
    ],
    "sft, context=8, h100x8": [
        "sft", "--target=h100x8", "--tokens=131072", "--train.batch_size=1", "--mesh.context=8", "--model.remat=full",
    ],
    "dpo, h100x8": ["dpo", "--target=h100x8", "--tokens=2048", "--train.batch_size=8", *FSDP],
    "grpo, h100x8": [
        "grpo", "--target=h100x8", "--tokens=2048", "--train.prompts=4", "--sampling.num_samples=2",
        "--loss.beta=0", *FSDP,
    ],
    "ppo, h100x8": [
        "ppo", "--target=h100x8", "--tokens=2048", "--train.prompts=8", "--train.minibatches=1", *FSDP,
    ],
    "sft, v5p-16": ["sft", "--target=v5p-16", "--tokens=4096", "--train.batch_size=8", *FSDP],
}  # fmt: skip
# In `make test`: two of its layers.
CPU = ["sft", "--target=cpux8", "--tokens=128", "--train.batch_size=8", *FSDP]

Numbers = dict[str, list[float]]


def model_folder(where: Path, **changes: int) -> Path:
    """A folder with the config.json of 8B, which is all that a plan reads."""
    where.mkdir(parents=True, exist_ok=True)
    (where / "config.json").write_text(json.dumps(SHAPE | changes))
    return where


def numbers(printed: str) -> Numbers:
    """Bytes in GiB by what they are of, and [count, GiB] of each kind of collective, of what `jaxalign plan` prints."""
    units = {"GiB": 1.0, "MiB": 2**-10, "KiB": 2**-20}
    found: Numbers = {}
    for name, count, size, unit in re.findall(
        r"^  (\w[\w,\- ]*?) +(?:(\d+)  +)?([\d,.]+) (GiB|MiB|KiB)", printed, re.MULTILINE
    ):
        found[name] = [*([float(count)] if count else []), float(size.replace(",", "")) * units[unit]]
    return found


def differences(kept: Mapping[str, Sequence[float]], now: Mapping[str, Sequence[float]]) -> list[str]:
    """Lines on counts that differ, and on bytes that do by more than 2% and the rounding of what is printed."""
    lines = []
    for name in sorted(kept.keys() | now.keys()):
        old, new = list(kept.get(name, [])), list(now.get(name, []))
        size = old[-1] if old else 0.0
        within = max(0.02 * size, 0.06 if size >= 1 else 0.0)
        if len(old) != len(new) or old[:-1] != new[:-1] or abs(new[-1] - size) > within:
            lines.append(f"{name}: {old or 'nothing'} where it is {new or 'nothing'} now")
    return lines


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    all_kept = json.loads(GOLDENS.read_text()) if GOLDENS.is_file() else {}
    kept, status = all_kept.setdefault(jax.__version__, {}), 0
    with tempfile.TemporaryDirectory() as folder:
        model = model_folder(Path(folder) / "8B")
        two = model_folder(Path(folder) / "two", num_hidden_layers=2)
        for name, arguments in {**CASES, "sft of two layers, cpux8": CPU}.items():
            path = two if arguments is CPU else model
            done = subprocess.run(
                [sys.executable, "-m", "jaxalign", "plan", *arguments, f"--model.path={path}"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                print(
                    f"{name}: {'skipped: ' if 'needs the compiler' in done.stderr else ''}{done.stderr.strip()}"
                )
                status = status if "needs the compiler" in done.stderr else 1
                continue
            now = numbers(done.stdout)
            if write:
                kept[name] = now
                print(f"{name}: kept, {now['total'][0]:.1f} GiB a device")
                continue
            if name not in kept:
                print(f"{name}: nothing is kept for jax {jax.__version__}; --write does that")
                status = 1
                continue
            lines = differences(kept[name], now)
            status = 1 if lines else status
            print(f"{name}: {'; '.join(lines) or 'as kept'}", flush=True)
    if write:
        GOLDENS.write_text(json.dumps(all_kept, indent=1) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
