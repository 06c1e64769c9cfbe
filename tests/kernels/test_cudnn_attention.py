"""cuDNN's attention: what can be seen without a GPU; on one (JAX_PLATFORMS=cuda), that it computes the plain form."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.kernels import cudnn_attention
from jaxalign.models import attention
from tests.models.attention_cases import config, inputs, layout

try:
    GPU = jax.devices("gpu")[0]
except RuntimeError:
    GPU = None

# kind of rows, length, window, most segments
CASES = [
    ("full", 96, 0, 1),
    ("padded", 150, 0, 1),
    ("padded", 60, 11, 1),
    ("packed", 70, 0, 8),
    ("packed", 70, 5, 8),
    ("left", 50, 0, 2),
]


def by_a_loop(row, most):
    """Starts and lengths of the runs of one row that are above 0."""
    starts, lengths, before = [], [], 0
    for column, segment in enumerate(row):
        if segment and segment != before:
            starts.append(column)
            lengths.append(0)
        if segment:
            lengths[-1] += 1
        before = segment
    fill = [-1] * (most - len(starts))
    return [*starts, *fill, -1], [*lengths, *fill]


def test_spans_are_those_of_a_loop():
    random = np.random.default_rng(0)
    rows = [
        np.zeros(12, int),  # nothing
        np.ones(12, int),
        np.array([0, 0, 3, 3, 3, 1, 0, 0, 2, 2, 0, 0]),  # padding before, between and after; ids in no order
        np.array([5] * 11 + [4]),  # one token at the end
        *(np.repeat(random.permutation(4) + random.integers(0, 2), 3) for _ in range(5)),
    ]
    starts, lengths = cudnn_attention.spans(jnp.asarray(rows), 5)
    wanted = [by_a_loop(row, 5) for row in rows]
    assert starts.tolist() == [a for a, _ in wanted]
    assert lengths.tolist() == [b for _, b in wanted]


def computed(form, kind, length, window, most):
    """A program of output and gradients in bfloat16, and its arguments."""
    q, k, v, d_out = inputs(length, dtype=jnp.bfloat16, size=64)
    positions, segments = layout(kind, length)
    counted = jnp.asarray(segments > 0)[..., None]
    options = config(attention=form, compute_dtype="bfloat16", products="compute_dtype", head_dim=64)

    def loss(q, k, v):
        out = attention.attend(q, k, v, positions, segments, window, options, max_segments=most)
        return jnp.sum(jnp.where(counted, out * d_out, 0).astype(jnp.float32)), jnp.where(counted, out, 0)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)), (q, k, v)


@jax.custom_vjp
def spoiled(x, padding):
    """x, whose gradient is not a number in padding."""
    return x


spoiled.defvjp(lambda x, padding: (x, padding), lambda padding, g: (jnp.where(padding, jnp.nan, g), None))


@pytest.fixture
def stand_in(monkeypatch):
    """Kernels of the same contract as cuDNN's that run here, and leave nothing of use in padding."""
    real = jax.nn.dot_product_attention

    def run(q, k, v, padding, **options):
        padding = padding[..., None, None]
        wide = [spoiled(x, padding).astype(jnp.float32) for x in (q, k, v)]
        return jnp.where(padding, jnp.nan, real(*wide, implementation="xla", **options)).astype(q.dtype)

    def by_lengths(q, k, v, *, implementation, query_seq_lengths, **options):
        assert implementation == "cudnn"
        padding = jnp.arange(q.shape[1]) >= query_seq_lengths[:, None]
        return run(q, k, v, padding, query_seq_lengths=query_seq_lengths, **options)

    def by_offsets(
        q, k, v, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale, mask_type, sliding_window_length
    ):
        assert mask_type == "causal with padding"
        assert q_offsets is kv_offsets and q_seqlen is kv_seqlen
        # These count the offsets of keys with the heads of queries.
        assert jax.__version_info__ >= (0, 11, 2) or q.shape == k.shape
        columns = jnp.arange(q.shape[1])[:, None]
        starts, lengths = q_offsets[:, None, :-1], q_seqlen[:, None]
        inside = (starts >= 0) & (columns >= starts) & (columns < starts + lengths)
        segments = jnp.where(inside, jnp.arange(1, inside.shape[2] + 1), 0).sum(-1)
        distance = columns - columns.T
        mask = (segments[:, :, None] == segments[:, None]) & (distance >= 0)
        mask &= distance < (sliding_window_length or q.shape[1])
        return run(q, k, v, segments == 0, mask=mask[:, None], scale=scale)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_lengths)
    monkeypatch.setattr(cudnn_attention, "_packed_function", lambda: (by_offsets, "causal with padding"))
    monkeypatch.setattr(cudnn_attention, "_capability", lambda device: (9, 0))
    monkeypatch.setitem(attention.REFUSALS, "cudnn", lambda config, device: "")


def close(case):
    """cudnn against plain, value and gradients, to bfloat16's rounding."""
    results = []
    for form in ("cudnn", "plain"):
        run, arrays = computed(form, *case)
        (_, out), grads = run(*arrays)
        results.append([np.asarray(x, np.float32) for x in (out, *grads)])
    for got, wanted in zip(*results, strict=True):
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, wanted, atol=0.06, rtol=0.06)
        # Rounding cannot hide a wrong mask: of all differences the mean is small too.
        assert np.abs(got - wanted).mean() < 0.004


@pytest.mark.parametrize("case", CASES[1:], ids=str)
def test_what_the_kernels_are_told_makes_them_the_plain_form_and_padding_reaches_nothing(case, stand_in):
    close(case)


@pytest.mark.skipif(GPU is None, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_a_gpu_it_computes_the_plain_form_with_its_gradients(case):
    close(case)


@pytest.fixture
def lowered(monkeypatch):
    """StableHLO for a GPU of the Hopper generation, of the forward and backward pass."""
    if GPU is not None:
        pytest.skip("for machines without a GPU")
    inside = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(inside, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(inside, "check_compute_capability", lambda capability: True)
    monkeypatch.setitem(attention.REFUSALS, "cudnn", lambda config, device: "")
    monkeypatch.setattr(cudnn_attention, "_capability", lambda device: (9, 0))

    def text(*case):
        run, arrays = computed("cudnn", *case)
        return run.trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()

    return text


@pytest.mark.parametrize(("kind", "length", "window", "most"), CASES)
def test_a_gpu_program_has_the_fused_kernels_and_no_array_of_all_pairs(lowered, kind, length, window, most):
    text = lowered(kind, length, window, most)
    assert "__cudnn$fmhaSoftmax" in text
    assert "__cudnn$fmhaSoftmaxBackward" in text
    assert f"{length}x{length}x" not in text
    assert "PADDING_CAUSAL" in text
    for name, value in (("sliding_window_length", window), ("max_seg_per_batch", most)):
        told = set(re.findall(rf"{name}\\22: (\d+)", text))
        assert told == {str(value)}, name


@pytest.mark.parametrize(("kind", "most"), [("padded", 1), ("packed", 8)])
def test_several_models_in_one_program_have_another_form(lowered, kind, most, monkeypatch):
    monkeypatch.setitem(attention.FASTEST, "cpu", "cudnn")
    positions, segments = layout(kind, 40)
    options = attention.attention_for(
        config(compute_dtype="bfloat16", head_dim=64), max_segments=most, mapped=True
    )
    stacked = [jnp.stack([x, x, x]) for x in inputs(40, dtype=jnp.bfloat16, size=64)[:3]]

    def gradient(q, k, v):
        return jax.value_and_grad(
            lambda q: (
                attention.attend(q, k, v, positions, segments, 0, options, max_segments=most)
                .astype(jnp.float32)
                .sum()
            )
        )(q)

    text = jax.jit(jax.vmap(gradient)).trace(*stacked).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn" not in text


@pytest.mark.long
def test_a_row_with_segment_ids_is_not_taken_to_begin_at_column_0(lowered):
    shape = config(attention="cudnn", compute_dtype="bfloat16", products="compute_dtype")
    model = models.create(shape, key=jax.random.key(0))
    ids = jnp.asarray([[0, 0, 1, 1, 1, 0, 0, 0]])

    def told(**rows):
        hidden = jax.jit(lambda: model.hidden(jnp.zeros_like(ids), **rows))
        text = hidden.trace().lower(lowering_platforms=("cuda",)).as_text()
        return set(re.findall(r"max_seg_per_batch\\22: (\d+)", text))

    assert told() == {"1"}
    assert told(segment_ids=ids, max_segments=1) == {"2"}
    assert told(segment_ids=ids, max_segments=5) == {"5"}


def test_rows_of_an_unknown_number_of_segments_are_computed_all_the_same(lowered):
    assert "__cudnn" not in lowered("packed", 70, 0, 0)
