"""An open run draws each of its parts from a key of its own, so that a resumed run draws the same."""

from types import SimpleNamespace

import jax
import numpy as np

from jaxalign import models
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.models.lora import LoraConfig
from jaxalign.training.core.open_run import OpenRun
from tests.training.cases import shape


def test_a_fresh_adapter_is_drawn_from_the_first_of_the_runs_keys(devices):
    key, lora = jax.random.key(7), LoraConfig(enabled=True, rank=2)
    model, mesh = models.create(shape(), key=jax.random.key(0)), make_mesh(MeshConfig(), devices[:1])
    run = OpenRun(SimpleNamespace(lora=lora), SimpleNamespace(), mesh, key)
    _, adapter, _ = run.trained_parts(model)
    expected, other = (models.create_adapter(shape(), lora, key=jax.random.fold_in(key, n)) for n in (1, 2))
    jax.tree.map(np.testing.assert_array_equal, adapter, expected)
    assert any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (adapter, other)), strict=True))
