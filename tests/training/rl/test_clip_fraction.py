"""`policy/clip_fraction` is of what a loss clips, and only of losses that do."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.training.core import setup
from jaxalign.training.core.batch import TokenRows
from jaxalign.training.rl.grpo_config import GRPOLossConfig
from jaxalign.training.rl.grpo_step import GRPOBatch, make_grpo_loss, policy_terms
from jaxalign.training.rl.recipes import RL_RECIPES
from tests.training.cases import rows, shape

NAMES = [name for name, recipe in RL_RECIPES.items() if recipe.clipped]
COLUMNS = 12


@pytest.fixture(scope="module")
def policy(devices):
    from jaxalign import models
    from jaxalign.models.lora import LoraConfig

    mesh = make_mesh(MeshConfig(), devices[:1])
    return setup.policy_of(
        models.create(shape(), key=jax.random.key(0)), LoraConfig(), mesh, key=jax.random.key(0)
    )


def measured(policy, config, log_ratio, advantages):
    """(metrics, batch) of a step whose policy is `log_ratio` [8, 12] away from the one that sampled."""
    scorer, trained, frozen = policy
    columns = {name: jnp.asarray(x) for name, x in rows(8).items()}
    mask = columns["mask"]
    logps = scorer.score(trained, frozen, TokenRows.of(columns), temperature=1.0).logps
    columns |= {
        "old_logps": logps - log_ratio,
        "advantages": jnp.where(mask, advantages[:, None], 0.0),
        "weights": jnp.ones(mask.shape),
    }
    batch = GRPOBatch.of(columns)
    counts = {"tokens": mask.sum().astype(jnp.float32), "rows": jnp.float32(8)}
    loss = make_grpo_loss(scorer, config, 1.0, COLUMNS)
    _, sums = loss({"policy": trained}, {"policy": frozen}, batch, None, counts)
    return {n: float(a / b) for n, (a, b) in sums.items()}, batch, logps


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_what_counts_as_clipped_is_what_the_loss_gives_no_gradient_on_one_side(name, policy):
    """For one sign of the advantage or the other, a clipped token (or row) has a gradient of 0 (cispo: its weight
    is the cap)."""
    rng = np.random.default_rng(1)
    spread = {"gspo": 2e-3, "rloo": 0.17, "cispo": 2.0}.get(name, 0.5)
    log_ratio = jnp.float32(spread * rng.standard_normal((8, COLUMNS)))
    advantages = jnp.float32([1.0, -1.0] * 4)
    config = GRPOLossConfig(name=name)
    found, batch, logps = measured(policy, config, log_ratio, advantages)
    mask = batch.mask
    if name == "cispo":
        clipped = np.asarray((jnp.exp(log_ratio) > 5.0) & mask)
        assert found["policy/clip_fraction"] == pytest.approx(float(clipped.sum() / mask.sum()), abs=1e-6)
        return

    def dead(sign):
        """Tokens without a gradient for advantages of this sign."""
        data = replace(batch, advantages=jnp.where(mask, sign, 0.0))
        return jax.grad(lambda x: jnp.sum(policy_terms(config, x, data)))(logps) == 0

    # GMPO's clip has one side, by the sign of the advantage; the others have two.
    sides = {s: np.asarray(dead(s)) for s in (1.0, -1.0)}
    own = np.where(np.asarray(advantages)[:, None] > 0, sides[1.0], sides[-1.0])
    clipped = (own if name == "gmpo" else sides[1.0] | sides[-1.0]) & np.asarray(mask)
    expected = clipped.any(1).mean() if name in ("gspo", "rloo") else clipped.sum() / mask.sum()
    assert 0 < expected < 1
    assert found["policy/clip_fraction"] == pytest.approx(float(expected), abs=1e-6)


def test_a_loss_that_clips_nothing_has_no_clip_fraction(policy):
    far = jnp.full((8, COLUMNS), 3.0)
    found, *_ = measured(policy, GRPOLossConfig(name="reinforce"), far, jnp.ones(8))
    assert found["policy/ratio_mean"] > 10 and "policy/clip_fraction" not in found
