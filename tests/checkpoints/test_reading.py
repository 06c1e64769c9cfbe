"""Checkpoints are read in parts, beside a run that goes on."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign.checkpoints import CheckpointStore, best_step, read_part, saved_at, saved_metrics, saved_steps
from jaxalign.errors import CheckpointError
from jaxalign.training.core.state import create_state


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints of steps 1 to 4; the loss was measured of three of them."""
    path = tmp_path_factory.mktemp("store")
    with CheckpointStore(path, keep_last=9) as store:
        for step, loss in enumerate([0.5, 0.1, None, 0.1], 1):
            params = {"a": jnp.full(4, float(step)), "b": {"c": jnp.ones((2, 3), jnp.bfloat16)}}
            metrics = None if loss is None else {"eval/loss": loss, "eval/nan": float("nan")}
            store.save(step, create_state(params, optax.adamw(1e-3)), {}, metrics)
    return path


def test_a_part_comes_back_as_it_was_saved(folder):
    part = read_part(folder, 3, ("params",))
    np.testing.assert_array_equal(part["a"], np.full(4, 3.0, np.float32))
    assert part["b"]["c"].dtype == jnp.bfloat16 and isinstance(part["a"], np.ndarray)
    np.testing.assert_array_equal(read_part(folder, 3, ("params", "b", "c")), np.ones((2, 3)))


def test_nothing_but_the_part_is_read(folder, monkeypatch):
    import orbax.checkpoint as ocp

    asked = []
    plain = ocp.PyTreeCheckpointHandler.restore

    def restore(self, *given, **named):
        asked.append((named.get("args") or given[-1]).item)
        return plain(self, *given, **named)

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", restore)
    read_part(folder, 1, ("params", "b"))
    assert [list(item) for item in asked] == [["params"]] and list(asked[0]["params"]) == ["b"]


def test_metrics_stand_with_their_checkpoint(folder):
    assert saved_steps(folder) == [1, 2, 3, 4]
    assert saved_metrics(folder, 2) == {"eval/loss": 0.1} and saved_metrics(folder, 3) == {}
    assert best_step(folder, "eval/loss", "min") == 4  # of equals the newest
    assert best_step(folder, "eval/loss", "max") == 1
    assert best_step(folder, "eval/other", "max") is None
    assert saved_at(folder, 2) > saved_at(folder, 1) > 0 == saved_at(folder, 9)


def test_what_is_not_there_is_one_line(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at step 9; saved steps: \[1, 2, 3, 4\]"):
        read_part(folder, 9, ("params",))
    with pytest.raises(CheckpointError, match="the checkpoint has no params/x"):
        read_part(folder, 1, ("params", "x"))
    assert saved_steps(tmp_path / "none") == []


def test_a_save_that_is_under_way_is_neither_seen_nor_touched(folder):
    half = folder / "5.orbax-checkpoint-tmp"
    half.mkdir()
    assert saved_steps(folder) == [1, 2, 3, 4]
    read_part(folder, 4, ("params",))
    assert half.is_dir()
