"""Log-ratios, powers of a ratio, and the checks that the preference losses share."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.margins import power_score, preference_margin
from tests.losses.arithmetic import CLOSE, f

ROOT = Path(__file__).resolve().parents[2]


def test_the_margin_is_kept_where_log_probs_are_large():
    # 0.25 nats apart at -4000, where float32 has steps of 2^-12: no rounding at all.
    margin = preference_margin(f(-4000.25), f(-3000.5), f(-4000.5), f(-3000.25))
    np.testing.assert_array_equal(margin, [0.5])


@pytest.mark.parametrize(
    ("power", "expected"),
    [
        (1.0, np.exp(-2.0) - 1),
        (-1.0, 1 - np.exp(2.0)),
        (0.5, (np.exp(-1.0) - 1) / 0.5),
        (0.0, -2.0),
        (1e-3, (np.exp(-2e-3) - 1) / 1e-3),
        (1e-7, -2.0),
    ],
)
def test_power_score_by_hand(power, expected):
    np.testing.assert_allclose(power_score(f(-2), power), [expected], **CLOSE)
    traced = jax.jit(power_score)(f(-2), jnp.float32(power))
    np.testing.assert_allclose(traced, [expected], **CLOSE)


@pytest.mark.parametrize("power", [-1.0, -0.01, -1e-6, 0.0, 1e-6, 2.0])
def test_power_score_is_finite_with_finite_slope_at_any_log_prob(power):
    x = f(-1e4, -80, -1, 0, 1, 80, 1e4)
    assert np.isfinite(power_score(x, power)).all()
    assert np.isfinite(jax.grad(lambda x: power_score(x, power).sum())(x)).all()


# In a process of its own: in this one beartype would speak before the functions' own checks.
COMPLAINTS = """
import jax.numpy as jnp
from jaxalign import losses
x = jnp.zeros(2)
four = (x, x, x, x)
for call in (
    lambda: losses.dpo_loss(*(a[:, None] for a in four), beta=1.0),
    lambda: losses.simpo_loss(x.astype(int), x, beta=1.0, gamma=0.0),
    lambda: losses.kto_loss(x, x, jnp.asarray([-1, 1]), beta=1.0, kl=0.0),
    lambda: losses.xpo_loss(*four, x, beta=1.0, alpha=0.1),
    lambda: losses.f_divergence_dpo_loss(*four, beta=1.0, divergence="hellinger"),
    lambda: losses.xpo_loss(*four, x > 0, beta=1.0, alpha=0.1, base="hinge"),
):
    try:
        call()
    except (AssertionError, ValueError) as error:
        print(type(error).__name__, error)
"""


def test_wrong_ranks_dtypes_and_names_are_told():
    done = subprocess.run(
        [sys.executable, "-c", COMPLAINTS], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "AssertionError policy_chosen_logps: expected rank 1, got shape (2, 1)",
        "AssertionError chosen_mean_logps: expected a float dtype, got int32",
        "AssertionError desirable: expected dtype bool, got int32",
        "AssertionError policy_sample_chosen: expected dtype bool, got float32",
        "ValueError divergence must be reverse_kl, forward_kl, js or alpha, got 'hellinger'",
        "ValueError base must be sigmoid or ipo, got 'hinge'",
    ]
