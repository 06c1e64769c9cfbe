"""Reference values of every loss and its gradient, from TRL (torch) or a float64 derivation.

    make parity     compares what is stored with what the references give now, and fails on drift
    make goldens    writes tests/golden/losses/FAMILY.npz anew

Both run this script in a venv with torch and TRL; the tests only read the files. Each case of
`tests/losses/cases` stores its inputs, the reference's result, weights drawn at random and the gradient of
sum(weights * result) by each differentiable argument, so that no error can cancel in a mean. Stamped with the
versions that made it.
"""

import argparse
import importlib
import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tests.losses.cases import FAMILIES  # noqa: E402
from tests.losses.cases.case import Case  # noqa: E402

FOLDER = Path(__file__).parent / "losses"
# A different torch or CPU may round differently; the references run in float64 (TRL in places in float32).
DRIFT = 2e-7


def golden_of(case: Case, reference) -> dict[str, np.ndarray]:
    """Arrays of one case by what they are."""
    arrays = case.arrays()
    inputs = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    for name in case.grads:
        inputs[name].requires_grad_()
    result = reference(dict(inputs), dict(case.options))
    if isinstance(result, tuple):
        result = result[case.pick]
    weights = torch.from_numpy(np.random.default_rng(1).standard_normal(tuple(result.shape)))
    moving = [inputs[name] for name in case.grads]
    gradients = torch.autograd.grad((weights * result).sum(), moving, allow_unused=True) if moving else ()
    stored = {f"input/{name}": value for name, value in arrays.items()}
    stored |= {"value": result.detach().double().numpy(), "weights": weights.numpy()}
    for name, gradient in zip(case.grads, gradients, strict=True):
        stored[f"gradient/{name}"] = (
            torch.zeros_like(inputs[name]) if gradient is None else gradient
        ).numpy()
    return stored


def family_of(name: str) -> dict[str, np.ndarray]:
    """All arrays of a family's file."""
    # A case with a derivation of its own needs nothing stored.
    cases = [case for case in FAMILIES[name] if case.derivation is None]
    references = importlib.import_module(f"tests.golden.references.{name}").REFERENCES
    arrays: dict[str, np.ndarray] = {}
    for case in cases:
        arrays |= {
            f"{case.id}/{kind}": value for kind, value in golden_of(case, references[case.function]).items()
        }
    return arrays


def drift(stored, fresh) -> list[str]:
    """What differs between a stored file and fresh values, a line each."""
    lines = [f"{key}: stored, but no case makes it" for key in stored if key not in fresh and key != "stamp"]
    for key, value in fresh.items():
        if key not in stored:
            lines.append(f"{key}: not stored")
        elif stored[key].shape != value.shape:
            lines.append(f"{key}: shape {stored[key].shape} stored, {value.shape} now")
        elif value.dtype.kind == "f":
            error = np.max(np.abs(stored[key] - value) / (1 + np.abs(value)), initial=0.0)
            if not error <= DRIFT:
                lines.append(f"{key}: differs by {error:.3g}, more than {DRIFT:g}")
        elif not np.array_equal(stored[key], value):
            lines.append(f"{key}: differs")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare, write nothing, fail on drift")
    parser.add_argument("--family", choices=FAMILIES, action="append", help="only these")
    arguments = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    stamp = json.dumps({name: version(name) for name in ("torch", "trl", "transformers", "numpy")})
    wrong = []
    for family in arguments.family or FAMILIES:
        fresh = family_of(family)
        path = FOLDER / f"{family}.npz"
        if arguments.check:
            stored = dict(np.load(path)) if path.exists() else {}
            found = drift(stored, fresh)
            wrong += [f"{path.name}: {line}" for line in found]
            print(f"{path.name}: {len(FAMILIES[family])} cases, {len(found)} differences")
        else:
            np.savez_compressed(path, **fresh, stamp=np.array(stamp))
            print(f"{path.name}: {len(FAMILIES[family])} cases, {path.stat().st_size // 1024} KiB")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
