"""Checkpoints: exact, kept as asked, refused with the leaf's name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.checkpoints import CheckpointStore
from jaxalign.errors import CheckpointError
from jaxalign.training.core.state import create_state

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def state(rows: int = 4):
    return create_state({"a": jnp.arange(float(rows)), "b": {"c": jnp.ones((2, 3), jnp.bfloat16)}}, OPTIMIZER)


def test_a_state_comes_back_exactly_with_its_extra(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(3, state(), {"position": [1, 2], "coefficient": 0.1})
    store.wait()
    again, extra = CheckpointStore(tmp_path).restore(3, jax.tree.map(jnp.zeros_like, state()))
    jax.tree.map(np.testing.assert_array_equal, again, state())
    assert again.params["b"]["c"].dtype == jnp.bfloat16
    assert extra == {"position": [1, 2], "coefficient": 0.1}


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2, best_metric="eval/loss")
    for step, loss in enumerate([0.5, 0.1, 0.4, 0.6, 0.7], 1):
        store.save(step, state(), {}, {"eval/loss": loss})
    store.wait()
    assert store.steps() == [2, 4, 5]
    assert store.latest_step() == 5


def test_the_best_is_kept_when_a_run_resumes(tmp_path):
    with CheckpointStore(tmp_path, keep_last=1, best_metric="eval/loss") as store:
        for step, loss in enumerate([0.5, 0.1, 0.4], 1):
            store.save(step, state(), {}, {"eval/loss": loss})
    with CheckpointStore(tmp_path, keep_last=1, best_metric="eval/loss") as store:
        store.save(4, state(), {}, {"eval/loss": 0.7})
        store.save(5, state(), {})  # not evaluated
        assert store.steps() == [2, 5]


def test_arrays_may_be_donated_once_save_returns(tmp_path):
    store = CheckpointStore(tmp_path)
    live = state()
    store.save(1, live, {})
    spoil = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 7, s), donate_argnums=0)
    spoil(live)
    again, _ = store.restore(1, state())
    jax.tree.map(np.testing.assert_array_equal, again, state())


def test_a_state_is_restored_onto_another_mesh(tmp_path, devices):
    store = CheckpointStore(tmp_path)
    store.save(1, state(8), {})
    mesh = Mesh(np.asarray(devices), ("fsdp",))
    spread = NamedSharding(mesh, PartitionSpec("fsdp"))
    like = jax.tree.map(lambda x: jax.device_put(x, spread) if x.shape == (8,) else x, state(8))
    again, _ = store.restore(1, like)
    assert again.params["a"].sharding == spread
    np.testing.assert_array_equal(again.params["a"], np.arange(8.0))


def test_a_tree_of_another_shape_is_named(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, state(), {})
    with pytest.raises(CheckpointError, match=r"params/a has shape \[4\], but this run's has \[5\]"):
        store.restore(1, state(5))
    with pytest.raises(CheckpointError, match="no array params/other"):
        store.restore(1, create_state({"other": jnp.zeros(2)}, OPTIMIZER))
    with pytest.raises(CheckpointError, match=r"no checkpoint at step 9; saved steps: \[1\]"):
        store.restore(9, state())


def test_a_damaged_checkpoint_is_one_line(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, state(), {})
    store.save(2, state(), {})
    store.close()
    for file in (tmp_path / "2" / "arrays").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="2: the checkpoint is damaged") as error:
        CheckpointStore(tmp_path).restore(2, state())
    assert "\n" not in str(error.value)
    CheckpointStore(tmp_path).restore(1, state())


def test_a_full_disk_is_one_line_and_the_earlier_checkpoint_stays(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    store.save(1, state(), {"n": 1})
    store.wait()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    half_written = tmp_path / "2.orbax-checkpoint-tmp"
    (half_written / "arrays").mkdir(parents=True)
    monkeypatch.setattr(store._manager, "save", full)
    with pytest.raises(CheckpointError, match="no space left"):
        store.save(2, state(), {})
    assert not half_written.exists()
    assert CheckpointStore(tmp_path).restore(1, state())[1] == {"n": 1}
