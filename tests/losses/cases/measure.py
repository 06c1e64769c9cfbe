"""A case measured against its stored reference: what the parity test asserts and the table in docs/losses.md shows."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.losses.cases import FAMILIES
from tests.losses.cases.case import Case

FOLDER = Path(__file__).parents[2] / "golden" / "losses"


@dataclass(frozen=True)
class Golden:
    """What is stored of a case: float64 but for the inputs."""

    inputs: dict[str, np.ndarray]
    value: np.ndarray
    weights: np.ndarray
    gradients: dict[str, np.ndarray]


@dataclass(frozen=True)
class Errors:
    """Largest error in units of (1 + |reference|): an absolute and a relative bound in one."""

    value: float
    gradient: float


@cache
def _file(family: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{family}.npz") as stored:
        return dict(stored)


def stamp(family: str) -> str:
    """Versions that made the family's file, as JSON."""
    return str(_file(family)["stamp"])


def family_of(case: Case) -> str:
    """The family that holds the case."""
    return next(name for name, cases in FAMILIES.items() if case in cases)


def golden(case: Case) -> Golden:
    """The reference values of a case: stored, or those of its derivation."""
    if case.derivation is not None:
        return derived(case)
    prefix = case.id + "/"
    parts = {
        key[len(prefix) :]: value for key, value in _file(family_of(case)).items() if key.startswith(prefix)
    }
    assert parts, f"{case.id}: no reference values are stored; run `make goldens`"

    def group(name: str) -> dict[str, np.ndarray]:
        return {key.split("/", 1)[1]: value for key, value in parts.items() if key.startswith(name + "/")}

    return Golden(group("input"), parts["value"], parts["weights"], group("gradient"))


def derived(case: Case) -> Golden:
    """Values of the case's own derivation, and gradients by four-point differences of it, all in float64."""
    assert case.derivation is not None
    inputs = case.arrays()
    wide = {name: x.astype(np.float64) if x.dtype == np.float32 else x for name, x in inputs.items()}
    value = case.derivation(wide, case.options)
    weights = np.random.default_rng(1).standard_normal(value.shape)
    step = 1e-4

    def total(name: str, place: tuple[int, ...], change: float) -> float:
        moved = wide[name].copy()
        moved[place] += change
        return float(np.sum(weights * case.derivation(wide | {name: moved}, case.options)))

    def slope(name: str, place: tuple[int, ...]) -> float:
        near, far = (total(name, place, h) - total(name, place, -h) for h in (step, 2 * step))
        return (8 * near - far) / (12 * step)

    gradients = {
        name: np.reshape([slope(name, place) for place in np.ndindex(wide[name].shape)], wide[name].shape)
        for name in case.grads
    }
    return Golden(inputs, value, weights, gradients)


def evaluate(
    losses: Any, case: Case, arrays: dict[str, Any], weights: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss and the gradient of sum(weights * loss) by each argument in `case.grads`."""
    moving = {name: jnp.asarray(arrays[name]) for name in case.grads}
    rest = {name: jnp.asarray(value) for name, value in arrays.items() if name not in moving}

    def total(moving):
        result = case.call(losses, rest | moving)
        return jnp.sum(jnp.asarray(weights, jnp.float32) * result), result

    gradients, result = jax.grad(total, has_aux=True)(moving)
    return result, gradients


def error(ours: Any, reference: np.ndarray) -> float:
    """max |ours - reference| / (1 + |reference|); inf where only one of them is finite."""
    ours = np.asarray(ours, np.float64)
    assert ours.shape == reference.shape, f"shape {ours.shape}, the reference's is {reference.shape}"
    return float(np.max(np.abs(ours - reference) / (1 + np.abs(reference)), initial=0.0))


def errors(losses: Any, case: Case) -> Errors:
    """Both errors of a case in float32."""
    stored = golden(case)
    value, gradients = evaluate(losses, case, stored.inputs, stored.weights)
    assert value.dtype == jnp.float32
    return Errors(
        error(value, stored.value),
        max((error(gradients[name], stored.gradients[name]) for name in case.grads), default=0.0),
    )
