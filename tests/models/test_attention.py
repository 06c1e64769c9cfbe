"""Which form of attention runs where, and why."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.models import attention, cudnn_attention
from tests.models.attention_cases import config, inputs, layout


def device(platform, capability="9.0", version="PJRT C API cuda 13000"):
    client = SimpleNamespace(platform_version=version)
    return SimpleNamespace(platform=platform, compute_capability=capability, client=client)


CPU, TPU, HOPPER = device("cpu"), device("tpu"), device("gpu")
LOW = {"compute_dtype": "bfloat16"}
WIDE = {**LOW, "head_dim": 256}


@pytest.mark.parametrize(
    ("where", "changes", "form", "reason"),
    [
        (CPU, {}, "blockwise", "a cpu"),
        (TPU, {}, "splash", "a tpu"),
        (HOPPER, LOW, "cudnn", "a gpu"),
        (HOPPER, WIDE, "cudnn", "a gpu"),
        (HOPPER, {}, "plain", "compute_dtype is float32"),
        (HOPPER, {**LOW, "head_dim": 20}, "plain", "head_dim is 20"),
        (HOPPER, {**LOW, "attention_softcap": 50.0}, "plain", "attention_softcap is 50.0"),
        (device("gpu", "8.0"), LOW, "cudnn", "a gpu"),
        (device("gpu", "8.0"), WIDE, "plain", "up to 128 in steps of 8, head_dim is 256"),
        (device("gpu", "7.5"), LOW, "plain", "compute capability 8.0, this is 7.5"),
        (device("gpu", "gfx942", "PJRT C API rocm 60300"), LOW, "plain", "needs an NVIDIA GPU"),
        (device("other"), {}, "plain", ""),
    ],
)
def test_the_form_is_the_fast_one_that_can_compute_the_model(where, changes, form, reason):
    chosen = attention.choose_attention(config(**changes), where)
    assert chosen.form == form
    assert reason in chosen.reason


@pytest.mark.parametrize("form", ["plain", "blockwise"])
@pytest.mark.parametrize("where", [CPU, TPU, HOPPER])
def test_a_form_that_is_asked_for_is_taken(form, where):
    assert attention.choose_attention(config(attention=form), where) == (form, "asked for")


@pytest.mark.parametrize(
    ("form", "where", "reason"),
    [("cudnn", CPU, "this is a cpu"), ("cudnn", HOPPER, "float32"), ("splash", HOPPER, "needs a TPU")],
)
def test_a_form_that_cannot_run_is_refused_in_one_line(form, where, reason):
    with pytest.raises(
        ValueError, match=rf"^attention {form}: .*{reason}.*; plain and blockwise run anywhere$"
    ):
        attention.choose_attention(config(attention=form), where)


@pytest.mark.parametrize("name", ["attention", "products"])
def test_a_form_that_is_not_there_is_refused(name):
    with pytest.raises(ValueError, match=rf"^{name} must be one of auto, .*, got 'flash'$"):
        config(**{name: "flash"})


@pytest.mark.parametrize(
    ("shape", "most", "where", "reason"),
    [
        ((2, 64, 4, 8), 1, device("gpu", "8.0"), ""),
        ((2, 64, 4, 8), 8, HOPPER, ""),
        ((2, 64, 4, 8), 0, HOPPER, "not known"),
        ((2, 64, 4, 8), 8, device("gpu", "8.0"), "compute capability 9.0"),
        ((16, 32768, 32, 128), 8, HOPPER, "too many elements"),
        ((16, 32768, 32, 128), 1, HOPPER, ""),
    ],
)
def test_rows_that_cudnn_cannot_take_have_a_reason(shape, most, where, reason):
    why = cudnn_attention.refusal_of_rows(shape, most, where)
    assert reason in why
    assert bool(why) == bool(reason)


def test_an_older_jax_without_offsets_is_a_reason(monkeypatch):
    monkeypatch.setattr(cudnn_attention, "_packed_function", lambda: None)
    assert "no attention by offsets" in cudnn_attention.refusal_of_rows((2, 64, 4, 8), 8, HOPPER)


def test_the_setting_reaches_the_computation():
    q, k, v, _ = inputs(40)
    positions, segments = layout("padded", 40)
    texts = {
        form: jax.jit(lambda q, k, v, form=form: attention.attend(
            q, k, v, positions, segments, 0, config(attention=form)
        )).lower(q, k, v).as_text()
        for form in ("auto", "blockwise", "plain")
    }  # fmt: skip
    assert texts["auto"] == texts["blockwise"] != texts["plain"]


def test_all_forms_that_run_here_agree():
    q, k, v, _ = inputs(40)
    positions, segments = layout("packed", 40)
    there = np.asarray(segments > 0)
    plain, blockwise = (
        np.asarray(attention.attend(q, k, v, positions, segments, 0, config(attention=form)))
        for form in ("plain", "blockwise")
    )
    np.testing.assert_allclose(blockwise[there], plain[there], rtol=2e-5, atol=2e-6)
    assert jnp.isfinite(blockwise).all()
