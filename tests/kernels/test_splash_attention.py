"""The splash kernel, interpreted on a CPU, against the plain form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.kernels import splash_attention
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.models import attention
from tests.models.attention_cases import config, inputs, layout


@pytest.fixture(autouse=True)
def on_any_device(monkeypatch):
    """The kernel is let run on this CPU, where it is interpreted."""
    monkeypatch.setitem(attention.REFUSALS, "splash", lambda config, device: "")


def value_and_gradients(form, kind, length, window, softcap, *, rows=2, mesh=None):
    q, k, v, d_out = inputs(length, rows=rows)
    positions, segments = layout(kind, length, rows)
    counted = jnp.asarray(segments > 0)[..., None]
    options = config(
        softcap, attention=form, mesh=mesh, sliding_window=window if isinstance(window, int) else 9
    )

    def loss(q, k, v):
        out = attention.attend(q, k, v, positions, segments, window, options, max_segments=6)
        return jnp.sum(jnp.where(counted, out * d_out, 0.0)), jnp.where(counted, out, 0.0)

    (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return out, *grads


def close(ours, wanted):
    for got, expected in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "length", "window", "softcap"),
    [
        ("packed", 70, 5, 2.0),
        pytest.param("left", 50, 0, 0.0, marks=pytest.mark.slow),
        pytest.param("full", 128, 0, 0.0, marks=pytest.mark.slow),
        pytest.param("padded", 150, 0, 2.0, marks=pytest.mark.slow),
    ],
)
def test_splash_attention_is_the_plain_one_with_its_gradients(kind, length, window, softcap):
    case = (kind, length, window, softcap)
    close(value_and_gradients("splash", *case), value_and_gradients("plain", *case))


@pytest.mark.slow
def test_a_traced_window_chooses_between_two_kernels():
    for size in (0, 9):
        traced = value_and_gradients("splash", "packed", 60, jnp.asarray(size), 0.0)
        close(traced, value_and_gradients("plain", "packed", 60, size, 0.0))


@pytest.mark.parametrize("axes", [{"data": 4, "tensor": 2}, {"fsdp": 2, "tensor": 4}])
def test_each_device_of_a_mesh_computes_its_rows_and_heads(axes, devices):
    mesh = make_mesh(MeshConfig(**axes), devices)
    case = ("packed", 40, 0, 0.0)
    q, k, v, _ = inputs(40, rows=4)
    _, segments = layout("full", 40, 4)
    shapes = []

    def kernel(q, k, v, segments, *, window):
        shapes.append((q.shape, k.shape))
        return splash_attention.splash_attention(q, k, v, segments, window=window)

    jax.eval_shape(lambda: attention._by_kernel(kernel, q, k, v, jnp.asarray(segments), 0, config(mesh=mesh)))
    # Two key heads divide by two devices, not by four: then no head is split.
    heads = (2, 1) if axes["tensor"] == 2 else (4, 2)
    rows = 4 // (axes.get("data", 1) * axes.get("fsdp", 1))
    assert shapes == [((rows, 40, heads[0], 8), (rows, 40, heads[1], 8))]
    if axes["tensor"] == 2:
        close(
            value_and_gradients("splash", *case, rows=4, mesh=mesh),
            value_and_gradients("plain", *case, rows=4),
        )


@pytest.mark.long
def test_a_model_with_sliding_layers_gives_the_logits_of_the_plain_form():
    shape = dataclasses.replace(
        config(), num_layers=2, sliding_window=3, sliding_layers=(True, False), max_positions=16
    )
    model = models.create(shape, key=jax.random.key(0))
    tokens = jnp.arange(22).reshape(2, 11) % 8
    plain, splash = (
        models.with_config(model, attention=form)(tokens, lengths=jnp.array([11, 7]))
        for form in ("plain", "splash")
    )
    np.testing.assert_allclose(splash[0], plain[0], atol=1e-5)
    np.testing.assert_allclose(splash[1, :7], plain[1, :7], atol=1e-5)
