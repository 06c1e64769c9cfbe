"""A wrong shape or hyper-parameter is named when the function is traced."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses
from tests.losses.cases import CASES

ROOT = Path(__file__).resolve().parents[2]
OUT_OF_RANGE = [
    (case, name, value) for case in CASES for name, values in case.wrong.items() for value in values
]


@pytest.mark.parametrize(
    ("case", "name", "value"), OUT_OF_RANGE, ids=[f"{c.id}-{n}={v}" for c, n, v in OUT_OF_RANGE]
)
def test_a_hyper_parameter_out_of_range_is_named_with_its_range(case, name, value):
    arrays = {key: jnp.asarray(x) for key, x in case.arrays().items()}
    options = {**case.options, name: value}
    with pytest.raises(ValueError, match=name) as caught:
        getattr(losses, case.function)(**arrays, **options)
    assert str(value) in str(caught.value) or f"{value:g}" in str(caught.value)


def wrong_shapes(case):
    """(argument, arrays in which it alone has another number of rows) for each array argument."""
    arrays = case.arrays()
    for name, x in arrays.items():
        if x.ndim and name not in case.shared and len(arrays) > 1:
            yield name, arrays | {name: np.concatenate([x, x[:1]])}


def complaints() -> list[str]:
    """What is wrong with the messages about shapes, over all cases; run without the test suite's type hook."""
    found = []
    for case in CASES:
        for name, arrays in wrong_shapes(case):
            shape = str(arrays[name].shape)
            try:
                jax.eval_shape(lambda a, case=case: case.call(losses, a), arrays)
            except AssertionError as error:
                # The odd one out may be the argument that all others are compared with.
                if name not in str(error) or shape not in str(error):
                    found.append(f"{case.id}: {name} {shape}: the message is {error}")
            except Exception as error:
                found.append(f"{case.id}: {name} {shape}: {type(error).__name__}: {error}")
            else:
                found.append(f"{case.id}: {name} {shape}: no error")
    return found


def test_a_wrong_shape_is_an_assertion_error_with_name_and_shape():
    # In a process of its own: here beartype would speak before the functions' own checks.
    code = "from tests.losses import test_errors\nprint(*test_errors.complaints(), sep='\\n', end='')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
