"""Which form of attention runs where, and why."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxalign.kernels import cudnn_attention
from jaxalign.kernels.config import Choice
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.models import attention
from tests.models.attention_cases import config, inputs, layout


def device(platform, capability="9.0", version="PJRT C API cuda 13000"):
    client = SimpleNamespace(platform_version=version)
    return SimpleNamespace(platform=platform, compute_capability=capability, client=client)


CPU, TPU, HOPPER, AMPERE = device("cpu"), device("tpu"), device("gpu"), device("gpu", "8.0")
ROCM = device("gpu", "gfx942", "PJRT C API\n  rocm 60300\n")
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
        (ROCM, LOW, "plain", "this is a gpu (PJRT C API rocm 60300)"),
        (device("other"), {}, "plain", ""),
    ],
)
def test_the_form_is_the_fast_one_that_can_compute_the_model(where, changes, form, reason):
    chosen = attention.choose_attention(config(**changes), where)
    assert chosen.implementation == form
    assert reason in chosen.reason


@pytest.mark.parametrize("form", ["plain", "blockwise"])
@pytest.mark.parametrize("where", [CPU, TPU, HOPPER])
def test_a_form_that_is_asked_for_is_taken(form, where):
    assert attention.choose_attention(config(attention=form), where) == (form, "configured")


@pytest.mark.parametrize(
    ("form", "where", "reason"),
    [
        ("cudnn", CPU, "this is a cpu"),
        ("cudnn", ROCM, r"this is a gpu \(PJRT C API rocm 60300\)"),
        ("cudnn", HOPPER, "float32"),
        ("splash", HOPPER, "needs a TPU"),
    ],
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


SMALL, LARGE = (2, 64, 4, 8), (16, 32768, 32, 128)


@pytest.mark.parametrize(
    ("where", "rows", "reason"),
    [
        (AMPERE, {"shape": SMALL}, ""),
        (HOPPER, {"max_segments": 8}, ""),
        (HOPPER, {"max_segments": 8, "shape": SMALL}, ""),
        (HOPPER, {"max_segments": 0}, "the most segments"),
        (AMPERE, {"max_segments": 8}, "compute capability 9.0, this is 8.0"),
        (HOPPER, {"max_segments": 8, "shape": LARGE}, "too many elements"),
        (HOPPER, {"shape": LARGE}, ""),
        (HOPPER, {"mapped": True}, "cannot be mapped"),
    ],
)
def test_rows_that_cudnn_cannot_take_are_plain_with_a_reason_and_refused_where_it_is_asked_for(
    where, rows, reason
):
    chosen = attention.choose_attention(config(**LOW), where, **rows)
    if not reason:
        assert chosen == ("cudnn", "a gpu")
        return
    assert chosen.implementation == "plain"
    assert reason in chosen.reason
    with pytest.raises(
        ValueError, match=rf"^attention cudnn: .*{reason}.*; plain and blockwise run anywhere$"
    ):
        attention.choose_attention(config(**LOW, attention="cudnn"), where, **rows)


def test_an_older_jax_without_offsets_is_a_reason(monkeypatch):
    monkeypatch.setattr(cudnn_attention, "_packed_function", lambda: None)
    chosen = attention.choose_attention(config(**LOW), HOPPER, max_segments=8)
    assert chosen.implementation == "plain" and "no attention by offsets" in chosen.reason


@pytest.mark.parametrize("form", ["auto", "cudnn"])
@pytest.mark.parametrize(
    ("where", "rows", "wanted"),
    [
        (HOPPER, {"max_segments": 2}, "cudnn"),
        (HOPPER, {"mapped": True}, "plain"),
        (AMPERE, {}, "cudnn"),
        (AMPERE, {"max_segments": 2}, "plain"),
    ],
)
def test_rows_a_form_was_not_chosen_for_take_it_where_they_can(form, where, rows, wanted, monkeypatch):
    monkeypatch.setattr(attention, "_device", lambda config: where)
    assert attention.attention_for(config(**LOW, attention=form), **rows).attention == wanted


def test_other_forms_take_any_rows(monkeypatch):
    monkeypatch.setattr(attention, "_device", lambda config: HOPPER)
    for form in ("plain", "blockwise", "splash"):
        asked = config(**LOW, attention=form)
        assert attention.attention_for(asked, max_segments=2, mapped=True) is asked


@pytest.mark.parametrize("width", [1, 4])
def test_the_rows_of_one_device_decide_whether_offsets_fit(width, devices, monkeypatch):
    mesh = make_mesh(MeshConfig(data=width), devices)
    seen = []

    def too_many(device, max_segments, *, shape):
        seen.append(shape)
        return "too many"

    monkeypatch.setattr(attention, "choose_attention", lambda config, device: Choice("cudnn", ""))
    monkeypatch.setattr(cudnn_attention, "refusal_of_rows", too_many)
    q, k, v, _ = inputs(12, rows=4)
    rows = layout("packed", 12, 4)
    found = attention.attend(q, k, v, *rows, 0, config(mesh=mesh))
    assert seen == [(4 // width, 12, 4, 8)]
    # And what does not fit is computed all the same.
    np.testing.assert_array_equal(found, attention.attend_plain(q, k, v, *rows, 0, config()))


@pytest.mark.parametrize(
    "axes", [{"context": 2}, {"data": 2, "context": 4}, {"context": 2, "tensor": 2}], ids=str
)
@pytest.mark.parametrize(("form", "kind", "window"), [("plain", "packed", 5), ("blockwise", "padded", 0)])
def test_devices_that_share_the_tokens_of_a_row_attend_as_one(axes, form, kind, window, devices):
    """Two key heads: with four devices each is repeated, with two of `tensor` too."""
    q, k, v, weights = inputs(24)
    rows = layout(kind, 24)

    def gradients(mesh):
        def loss(q, k, v):
            return (
                attention.attend(q, k, v, *rows, window, config(mesh=mesh, attention=form)) * weights
            ).sum()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(q, k, v)

    many = gradients(make_mesh(MeshConfig(**axes), devices))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), many, gradients(None))


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
