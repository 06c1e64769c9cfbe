"""Where a fresh state lies: each moment as its parameter does, whatever the optimizer."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxalign import models
from jaxalign.mesh import MeshConfig, make_mesh, shard_batch
from jaxalign.training.core import setup
from jaxalign.training.core.optimizer import OptimizerConfig, in_parts, make_optimizer
from jaxalign.training.core.state import create_state
from jaxalign.training.core.step import make_update
from tests.training.cases import KEY, sft_case, shape


def own_rule():
    """A user's transformation, whose state is a dict of trees."""

    def init(params):
        return {"average": jax.tree.map(jnp.zeros_like, params), "count": jnp.zeros((), jnp.int32)}

    def update(grads, state, params=None):
        del params
        average = jax.tree.map(lambda a, g: 0.9 * a + g, state["average"], grads)
        return jax.tree.map(lambda a: -1e-3 * a, average), {"average": average, "count": state["count"] + 1}

    return optax.GradientTransformation(init, update)


def rule(name):
    if name == "own":
        return own_rule()
    if name == "chain of masked":
        mask = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)  # noqa: E731
        return optax.chain(optax.masked(optax.trace(0.9), mask), optax.scale_by_adam())
    return make_optimizer(OptimizerConfig(name=name, schedule="constant"), 10)[0]


@pytest.fixture(scope="module")
def params(devices):
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2), devices)
    return setup.place_params(models.split(models.create(shape(), key=KEY))[1], mesh)


def sharded(tree):
    """(path, spec) of each leaf that is split over devices."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): x.sharding.spec for path, x in leaves if any(x.sharding.spec)}


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd", "schedule_free_adamw", "own", "chain of masked"])
def test_moments_lie_as_their_parameters_do(name, params):
    wanted, seen = sharded(params), 0
    assert len(wanted) > 5
    for path, spec in sharded(create_state(params, rule(name)).opt_state).items():
        own = next(suffix for suffix in wanted if path.endswith(suffix))
        assert spec == wanted[own]
        seen += 1
    # SGD has no moments; the others have one or two of each parameter.
    assert seen >= (0 if name == "sgd" else len(wanted))


def test_moments_of_optimizers_by_part_lie_as_their_parameters_do(params):
    parts = {"policy": params, "critic": params}
    state = create_state(parts, in_parts({name: rule("adamw") for name in parts}))
    assert len(sharded(state.opt_state)) == 2 * len(sharded(parts))


def compiled_step(axes, devices):
    """The step of SFT with AdamW, compiled for a mesh."""
    mesh = make_mesh(MeshConfig(**axes), devices)
    loss, counts, trained, frozen, batch = sft_case(mesh)
    optimizer = rule("adamw")
    update, state = make_update(loss, counts, optimizer), create_state(trained, optimizer)
    arguments = frozen, shard_batch(batch, mesh), KEY
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    return update.lower(abstract, *arguments).compile()


@pytest.mark.long
def test_each_device_of_a_compiled_step_holds_its_share_of_the_state(devices):
    one, eight = (
        compiled_step(axes, devices[:count]).memory_analysis().argument_size_in_bytes
        for axes, count in (({}, 1), ({"fsdp": 8}, 8))
    )
    # With replicated moments it would be more than 2/3 of it.
    assert eight < 0.3 * one


def test_a_compiled_step_holds_no_second_state_for_its_guard(devices):
    assert " conditional(" not in compiled_step({}, devices[:1]).as_text()


def test_what_belongs_to_no_parameter_is_on_every_device(params):
    state = create_state(params, rule("adamw"))
    assert state.step.sharding.spec == P()
    counts = [x for x in jax.tree.leaves(state.opt_state) if x.ndim == 0]
    assert counts and all(x.sharding.spec == P() for x in counts)
