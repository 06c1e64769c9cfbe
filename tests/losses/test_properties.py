"""What must hold for every loss, whatever it computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses
from tests.losses.cases import CASES
from tests.losses.cases.case import B
from tests.losses.cases.measure import evaluate

MASKED = [case for case in CASES if case.mask]
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def ids(case):
    return case.id


def compiled(cases, options=lambda case: ()):
    """The cases, of which `make test` runs the first of each function and part of a result, `make test-all` all.

    Most of what these tests take is compiling, and how a function compiles hardly depends on its options, but for those
    that are named: `options` gives a case's.
    """
    seen, chosen = set(), []
    for case in cases:
        kind = (case.function, case.pick, case.mask, *options(case))
        chosen.append(pytest.param(case, marks=pytest.mark.slow) if kind in seen else case)
        seen.add(kind)
    return chosen


def on_device(arrays):
    return {name: jnp.asarray(value) for name, value in arrays.items()}


def result_of(case, arrays, **more):
    # A statistic that is an array may be one of the case's own arguments, which it then replaces.
    statistics = {name: x for name, x in more.items() if isinstance(x, np.ndarray)}
    numbers = {name: x for name, x in more.items() if name not in statistics}
    return np.asarray(case.call(losses, on_device(arrays | statistics), **numbers))


def weights_of(case, arrays):
    return np.random.default_rng(2).standard_normal(result_of(case, arrays).shape).astype(np.float32)


def assert_same(case, arrays, *others, weights):
    """Value and gradient of all sets of inputs are the same numbers; returns those of the others by themselves."""
    value, gradients = evaluate(losses, case, arrays, weights)
    found = []
    for other in others:
        same, same_gradients = evaluate(losses, case, other, weights)
        np.testing.assert_allclose(same, value, **CLOSE)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(same_gradients[name], gradient, err_msg=name, **CLOSE)
        found.append((same, same_gradients))
    return found


def dirty(case, arrays, bad):
    """`bad` in every masked slot of every float argument with a time axis, or one of states."""
    changed = dict(arrays)
    for name, x in arrays.items():
        counted = case.slots(arrays, name)
        if counted is not None and x.dtype == np.float32:
            where = counted.reshape(counted.shape + (1,) * (x.ndim - 2))
            changed[name] = np.where(where, x, np.float32(bad))
    return changed


def numbers_of(case):
    return {name: x for name, x in case.options.items() if isinstance(x, float)}


@pytest.mark.parametrize("case", compiled((c for c in CASES if numbers_of(c)), numbers_of), ids=ids)
def test_hyper_parameters_may_be_traced(case):
    numbers = numbers_of(case)
    fixed = {name: x for name, x in case.options.items() if name not in numbers}
    arrays = on_device(case.arrays())

    def call(numbers):
        result = getattr(losses, case.function)(**arrays, **fixed, **numbers)
        if case.pick is None:
            return result
        return result[case.pick] if isinstance(case.pick, int) else getattr(result, case.pick)

    traced = jax.jit(call)({name: jnp.float32(x) for name, x in numbers.items()})
    np.testing.assert_allclose(traced, case.call(losses, arrays), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("case", compiled(CASES), ids=ids)
def test_vmap_equals_a_loop(case):
    several = [on_device(case.arrays(seed)) for seed in (3, 4)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *several)
    mapped = jax.vmap(lambda a: case.call(losses, a))(stacked)
    for one, arrays in zip(mapped, several, strict=True):
        np.testing.assert_allclose(one, case.call(losses, arrays), **CLOSE)


@pytest.mark.parametrize("case", compiled(CASES), ids=ids)
def test_jit_over_eight_devices_equals_eager_on_one(case, devices):
    mesh = jax.sharding.Mesh(np.asarray(devices), ("data",))
    arrays = case.arrays()
    weights = weights_of(case, arrays)

    def place(name, x):
        rows = jax.sharding.PartitionSpec() if name in case.shared else jax.sharding.PartitionSpec("data")
        return jax.device_put(x, jax.sharding.NamedSharding(mesh, rows))

    spread = {name: place(name, x) for name, x in arrays.items()}
    value, gradients = jax.jit(lambda a: evaluate(losses, case, a, weights))(spread)
    one, one_gradients = evaluate(losses, case, arrays, weights)
    np.testing.assert_allclose(value, one, **CLOSE)
    for name, gradient in one_gradients.items():
        np.testing.assert_allclose(gradients[name], gradient, err_msg=name, **CLOSE)


def halves(case, arrays):
    """The two halves of a batch, each with the keyword arguments that make it part of the whole."""
    for rows in (slice(0, B // 2), slice(B // 2, B)):
        part = {name: x if name in case.shared else x[rows] for name, x in arrays.items()}
        yield part, rows, (case.statistics(arrays, rows) if case.statistics else {})


PER_ROW = [case for case in CASES if not case.coupled or case.statistics]


@pytest.mark.parametrize("case", compiled(PER_ROW), ids=ids)
def test_a_batch_in_two_parts_equals_the_whole(case):
    arrays = case.arrays()
    whole = result_of(case, arrays)
    parts = [result_of(case, part, **more) for part, _, more in halves(case, arrays)]
    if whole.ndim == 0:  # a reduction, given the global count: the parts add up
        np.testing.assert_allclose(sum(parts), whole, **CLOSE)
    else:
        np.testing.assert_allclose(np.concatenate(parts), whole, **CLOSE)


@pytest.mark.parametrize("case", [c for c in CASES if c.extreme], ids=ids)
def test_extreme_inputs_stay_finite(case):
    arrays = case.arrays()
    for pattern in (0, 1):
        changed = dict(arrays)
        for position, name in enumerate(case.extreme):
            even = (np.indices(arrays[name].shape).sum(0) + position * pattern) % 2 == 0
            changed[name] = np.where(even, np.float32(-1e4), np.float32(-0.5))
        value, gradients = evaluate(losses, case, changed, weights_of(case, arrays))
        assert np.isfinite(value).all()
        for name, gradient in gradients.items():
            assert np.isfinite(gradient).all(), name


@pytest.mark.parametrize("case", MASKED, ids=ids)
def test_what_a_masked_slot_holds_reaches_neither_value_nor_gradient(case):
    arrays = case.arrays()
    weights = weights_of(case, arrays)
    found = assert_same(
        case, arrays, *(dirty(case, arrays, bad) for bad in (np.nan, np.inf, -np.inf)), weights=weights
    )
    mask = arrays[case.mask].astype(bool)
    for value, gradients in found:
        if value.shape[:2] == mask.shape:
            np.testing.assert_array_equal(np.asarray(value)[~mask], 0)
        for name, gradient in gradients.items():
            counted = case.slots(arrays, name)
            if counted is not None:
                np.testing.assert_array_equal(np.asarray(gradient)[~counted], 0, err_msg=name)


@pytest.mark.parametrize("case", compiled(MASKED), ids=ids)
def test_an_empty_mask_gives_zero_with_finite_gradients(case):
    arrays = case.arrays()
    weights = weights_of(case, arrays)
    arrays = dirty(case, arrays | {case.mask: np.zeros_like(arrays[case.mask])}, np.nan)
    value, gradients = evaluate(losses, case, arrays, weights)
    np.testing.assert_array_equal(value, 0)
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name


@pytest.mark.parametrize("case", compiled(MASKED), ids=ids)
def test_an_integer_mask_means_the_same(case):
    arrays = case.arrays()
    integer = arrays | {case.mask: arrays[case.mask].astype(np.int32)}
    np.testing.assert_array_equal(result_of(case, integer), result_of(case, arrays))


@pytest.mark.parametrize(("before", "after"), [(0, 3), (2, 1)])
@pytest.mark.parametrize("case", compiled(c for c in MASKED if c.padded), ids=ids)
def test_padding_on_either_side_changes_nothing(case, before, after):
    arrays = case.arrays()
    plain = result_of(case, arrays)
    padded = {}
    for name, x in arrays.items():
        more = name in case.time_plus_one
        if not more and not case.has_time(arrays, name):
            padded[name] = x
            continue
        # State columns: the garbage in front stands for states before the padding.
        sides = [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)]
        fill = 0 if x.dtype != np.float32 else np.float32(7.5)
        padded[name] = np.pad(x, sides, constant_values=False if name == case.mask else fill)
    result = result_of(case, padded)
    if plain.shape[:2] == arrays[case.mask].shape:
        np.testing.assert_allclose(result[:, before : result.shape[1] - after], plain, **CLOSE)
        np.testing.assert_array_equal(result[:, :before], 0)
    else:
        np.testing.assert_allclose(result, plain, **CLOSE)


@pytest.mark.long
@pytest.mark.parametrize("case", [c for c in CASES if c.integers], ids=ids)
def test_integers_count_as_their_float32_values(case):
    arrays = case.arrays()
    integer = arrays | {name: np.rint(3 * arrays[name]).astype(np.int32) for name in case.integers}
    floats = integer | {name: integer[name].astype(np.float32) for name in case.integers}
    np.testing.assert_array_equal(result_of(case, integer), result_of(case, floats))
    assert result_of(case, integer).dtype == np.float32
