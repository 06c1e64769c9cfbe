"""Every loss equals its reference in value and gradient; the references are stored, see tests/golden/make_losses.py."""

import functools
import importlib.util
import inspect
import pkgutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses
from tests.losses.cases import CASES
from tests.losses.cases.measure import errors, evaluate, golden


@functools.cache
def stated():
    path = Path(__file__).parents[2] / "docs" / "make_losses.py"
    spec = importlib.util.spec_from_file_location("make_losses", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    figures = list(script.stated(script.PAGE.read_text()))
    assert len(figures) == len(CASES), "docs/losses.md is not of these cases; run: python docs/make_losses.py"
    return dict(zip((case.id for case in CASES), figures, strict=True))


def test_every_public_loss_has_a_parity_case():
    functions = {name for name in losses.__all__ if inspect.isfunction(getattr(losses, name))}
    # Bools, which no reference value says more of than its own test.
    assert functions - {"overlong_mask"} == {case.function for case in CASES}


def test_every_loss_of_the_package_is_public():
    modules = (
        importlib.import_module(f"jaxalign.losses.{m.name}") for m in pkgutil.iter_modules(losses.__path__)
    )
    defined = {name for module in modules for name in vars(module) if name.endswith("_loss")}
    assert defined <= set(losses.__all__)
    assert set(losses.__all__) <= vars(losses).keys() and len(set(losses.__all__)) == len(losses.__all__)


def test_a_derivation_in_a_case_gives_what_is_stored():
    case = next(case for case in CASES if case.id == "dpo_loss[beta=0.1]")

    def dpo(a, options):
        ratios = (a[f"policy_{side}_logps"] - a[f"ref_{side}_logps"] for side in ("chosen", "rejected"))
        return np.log1p(np.exp(-options["beta"] * np.subtract(*ratios)))

    found, stored = golden(replace(case, derivation=dpo)), golden(case)
    np.testing.assert_allclose(found.value, stored.value, rtol=1e-12)
    assert found.gradients.keys() == stored.gradients.keys() == set(case.grads)
    for name, gradient in found.gradients.items():
        np.testing.assert_allclose(gradient, stored.gradients[name], rtol=1e-9)
    np.testing.assert_array_equal(found.weights, stored.weights)


def ids(case):
    return case.id


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_value_and_gradient_are_the_references(case):
    found = errors(losses, case)
    value_bound, gradient_bound = case.bounds
    assert found.value <= value_bound
    assert found.gradient <= gradient_bound
    assert case.bounds == (1e-6, 1e-5) or case.why
    # docs/losses.md states these errors; another CPU may round differently, by up to two powers of two.
    said = stated()[case.id]
    assert found.value <= 4 * said.value
    assert found.gradient <= 4 * max(said.gradient, 2.0**-24)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_the_stored_inputs_are_those_of_the_case(case):
    stored, made = golden(case).inputs, case.arrays()
    assert stored.keys() == made.keys()
    for name, value in made.items():
        np.testing.assert_array_equal(stored[name], value)


@pytest.mark.parametrize("case", [c for c in CASES if c.grads], ids=ids)
def test_bfloat16_inputs_count_as_their_float32_values(case):
    # The only error of bfloat16 inputs is their own rounding, 2^-9 of each; nothing is computed in bfloat16.
    arrays = {
        name: jnp.asarray(value).astype(jnp.bfloat16) if value.dtype == np.float32 else jnp.asarray(value)
        for name, value in case.arrays().items()
    }
    wide = {name: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for name, x in arrays.items()}
    weights = golden(case).weights
    low, low_gradients = evaluate(losses, case, arrays, weights)
    high, high_gradients = evaluate(losses, case, wide, weights)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, high, rtol=1e-6, atol=1e-6)
    for name, gradient in low_gradients.items():
        assert gradient.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            gradient.astype(jnp.float32), high_gradients[name], rtol=2**-8, atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_other_float_arguments_get_no_gradient(case):
    arrays = {name: jnp.asarray(value) for name, value in case.arrays().items()}
    others = {n: x for n, x in arrays.items() if n not in case.grads and x.dtype == jnp.float32}
    if not others:
        return
    gradients = jax.grad(lambda o: jnp.sum(case.call(losses, arrays | o)))(others)
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, 0, err_msg=name)
