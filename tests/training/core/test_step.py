"""One update: micro-batches add up, eight devices equal one, bad numbers change nothing."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.mesh import MeshConfig, make_mesh, shard_batch
from jaxalign.training.core.optimizer import OptimizerConfig, make_optimizer
from jaxalign.training.core.state import create_state
from jaxalign.training.core.step import make_update
from tests.training.cases import (
    KEY,
    dpo_case,
    online_dpo_case,
    ppo_alone_case,
    ppo_case,
    sft_case,
    shape,
    step_case,
)

RATE = 1e-2
# Three axes at once in `make test`; others in `make test-all`.
MESHES = [
    {"data": 2, "fsdp": 2, "tensor": 2},
    pytest.param({"fsdp": 2, "context": 2, "tensor": 2}, marks=pytest.mark.slow),
    pytest.param({"expert": 2, "context": 2, "tensor": 2}, marks=pytest.mark.slow),
    pytest.param({"data": 2, "context": 4}, marks=pytest.mark.slow),
    pytest.param({"data": 8}, marks=pytest.mark.slow),
    pytest.param({"fsdp": 8}, marks=pytest.mark.slow),
]


CASES = {"sft": sft_case, "dpo": dpo_case, "ppo": ppo_case, "steps": step_case, "online_dpo": online_dpo_case}


def some_slow(*names):
    """The cases, those of `names` in `make test-all` only."""
    return [pytest.param(case, marks=pytest.mark.slow) if case in names else case for case in CASES]


def gradient(case, mesh):
    loss, counts, trained, frozen, batch = case(mesh)
    placed = shard_batch(batch, mesh)
    return jax.jit(lambda p, f, b: jax.value_and_grad(lambda q: loss(q, f, b, None, counts(b))[0])(p))(
        trained, frozen, placed
    )


def one_step(case, mesh, accumulation_steps=1):
    loss, counts, trained, frozen, batch = case(mesh)
    optimizer, _ = make_optimizer(OptimizerConfig(learning_rate=RATE, schedule="constant"), 10)
    update = make_update(loss, counts, optimizer, accumulation_steps=accumulation_steps)
    return update(create_state(trained, optimizer), frozen, shard_batch(batch, mesh), KEY)


def close(a, b, scale):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=scale), a, b)


@pytest.mark.long
@pytest.mark.parametrize("axes", MESHES, ids=str)
@pytest.mark.parametrize(
    "name", [*some_slow("dpo", "steps", "online_dpo"), pytest.param("ppo_alone", marks=pytest.mark.slow)]
)
def test_eight_devices_equal_one(name, axes, devices):
    case = (CASES | {"ppo_alone": ppo_alone_case})[name]
    one, eight = make_mesh(MeshConfig(), devices), make_mesh(MeshConfig(**axes), devices)
    (loss, grads), (loss8, grads8) = gradient(case, one), gradient(case, eight)
    np.testing.assert_allclose(loss8, loss, rtol=1e-5)
    norm = float(np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(grads))))
    close(grads8, grads, 1e-5 * norm)
    # Adam magnifies rounding: parameters agree to a hundredth of the step.
    close(one_step(case, eight)[0].params, one_step(case, one)[0].params, 0.01 * RATE)


@pytest.mark.long
@pytest.mark.parametrize("name", some_slow("dpo", "steps", "online_dpo"))
def test_bfloat16_compute_takes_nearly_the_same_step_on_float32_masters(name, devices, monkeypatch):
    mesh = make_mesh(MeshConfig(), devices)
    loss, grads = gradient(CASES[name], mesh)
    create = models.create

    def rounded(config, **options):
        return create(replace(config, products="compute_dtype"), compute_dtype=jnp.bfloat16, **options)

    monkeypatch.setattr(models, "create", rounded)
    low, low_grads = gradient(CASES[name], mesh)
    assert low != loss
    np.testing.assert_allclose(low, loss, rtol=0.03)
    ours, theirs = (
        np.concatenate([np.ravel(g) for g in jax.tree.leaves(tree)]) for tree in (low_grads, grads)
    )
    assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.99
    state, _ = one_step(CASES[name], mesh)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_micro_batches_equal_the_whole(name, devices):
    mesh = make_mesh(MeshConfig(), devices)
    whole_state, whole = one_step(CASES[name], mesh)
    state, parts = one_step(CASES[name], mesh, accumulation_steps=4)
    for metric in whole:
        np.testing.assert_allclose(parts[metric], whole[metric], rtol=2e-5, atol=2e-6, err_msg=metric)
    close(state.params, whole_state.params, 0.01 * RATE)


@pytest.mark.long
def test_filler_rows_count_nowhere(devices):
    mesh = make_mesh(MeshConfig(), devices)
    loss, counts, trained, frozen, batch = sft_case(mesh)
    other = replace(batch, tokens=np.where(np.arange(8)[:, None] == 5, 1, batch.tokens))

    def value(b):
        return loss(trained, frozen, b, None, counts(b))[0]

    assert not np.array_equal(other.tokens, batch.tokens)
    assert value(shard_batch(batch, mesh)) == value(shard_batch(other, mesh))


def test_a_bad_batch_leaves_the_state_as_it_was(devices):
    mesh = make_mesh(MeshConfig(), devices)
    loss, counts, trained, frozen, batch = sft_case(mesh)

    def spoiled(*arguments):
        value, metrics = loss(*arguments)
        return value * jnp.nan, metrics

    optimizer, _ = make_optimizer(OptimizerConfig(), 10)
    state, metrics = make_update(spoiled, counts, optimizer)(
        create_state(trained, optimizer), frozen, shard_batch(batch, mesh), KEY
    )
    assert metrics["finite"] == 0
    assert state.step == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, trained)


@pytest.mark.parametrize("limit", [0.0, 1e9])
def test_a_step_that_is_not_accepted_leaves_the_state_as_it_was(limit, devices):
    mesh = make_mesh(MeshConfig(), devices)
    loss, counts, trained, frozen, batch = sft_case(mesh)
    optimizer, _ = make_optimizer(OptimizerConfig(), 10)
    update = make_update(loss, counts, optimizer, accept=lambda metrics: metrics["nll"] < limit)
    state, metrics = update(create_state(trained, optimizer), frozen, shard_batch(batch, mesh), KEY)
    taken = limit > 0
    assert (metrics["skipped"] == 0) == taken
    assert state.step == taken
    assert taken or all(map(np.array_equal, *map(jax.tree.leaves, (state.params, trained))))


@pytest.mark.long
@pytest.mark.parametrize("axes", [{}, {"fsdp": 2, "tensor": 2}], ids=["one", "mesh"])
def test_the_whole_state_is_updated_in_place(axes, devices, monkeypatch):
    mesh = make_mesh(MeshConfig(**axes), devices)
    loss, counts, trained, frozen, batch = sft_case(mesh)
    optimizer, _ = make_optimizer(OptimizerConfig(), 10)
    programs, plain = [], jax.jit
    monkeypatch.setattr(
        jax, "jit", lambda *args, **options: programs.append(plain(*args, **options)) or programs[-1]
    )
    state, batch = create_state(trained, optimizer), shard_batch(batch, mesh)
    del programs[:]
    update = make_update(loss, counts, optimizer)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    update(state, frozen, batch, KEY)
    (program,) = programs
    text = program.lower(abstract, frozen, batch, KEY).compile().as_text()
    header = text[text.index("input_output_alias") :].splitlines()[0]
    leaves = len(jax.tree.leaves(state))
    assert header.count("-alias)") == leaves > 30
    assert all(x.is_deleted() for x in jax.tree.leaves(state))


def test_rows_that_do_not_divide_are_refused(devices):
    with pytest.raises(ValueError, match="8 rows are not divisible by 3"):
        one_step(sft_case, make_mesh(MeshConfig(), devices), accumulation_steps=3)


@pytest.mark.long
def test_the_smoothed_loss_is_the_public_one(devices):
    from jaxalign import losses

    mesh = make_mesh(MeshConfig(), devices)
    loss, counts, trained, frozen, batch = sft_case(mesh)
    batch = shard_batch(batch, mesh)
    mask = batch.rows().mask
    logits = models.merge(models.Definition(shape()), trained)(batch.tokens, lengths=batch.lengths)
    terms = losses.cross_entropy_loss(
        logits[:, :-1], batch.tokens[:, 1:], mask[:, 1:], label_smoothing=0.1, z_loss=0.01
    )
    expected = losses.token_mean(terms, mask[:, 1:])
    np.testing.assert_allclose(loss(trained, frozen, batch, None, counts(batch))[0], expected, rtol=1e-5)
