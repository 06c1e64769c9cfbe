"""Rematerialization: each level of the ladder computes the same, keeps less, and computes again what it says."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.kernels.remat import KEPT, rematerialized
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.models import attention
from jaxalign.models.lora import LoraConfig

LADDER = ["none", *KEPT]
TOKENS = jax.random.randint(jax.random.key(1), (4, 128), 0, 64)


def model(**changes):
    shape = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 96, "num_layers": 12, "num_heads": 4,
        "num_kv_heads": 2, "head_dim": 8, "max_positions": 128,
    }  # fmt: skip
    return models.create(models.ModelConfig(**(shape | changes)), key=jax.random.key(0))


def gradient(level, **changes):
    """(loss and gradient of a model at a level, its parameters)."""
    definition, params = models.split(models.with_remat(model(**changes), level))
    return jax.value_and_grad(
        lambda p: jnp.square(models.merge(definition, p).hidden(TOKENS)[:, ::3]).mean()
    ), params


def primitives(jaxpr, found=None):
    """How often each primitive stands in a jaxpr and those in it (a loop's body once), but where nothing is given."""
    found = Counter() if found is None else found
    for equation in (e for e in jaxpr.eqns if e.outvars):
        found[equation.primitive.name] += 1
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                primitives(inner, found)
    return found


@pytest.mark.long
def test_every_level_computes_the_same_and_takes_less_memory_than_the_one_before():
    sizes, results = [], []
    for level in LADDER:
        function, params = gradient(level)
        program = jax.jit(function).lower(params).compile()
        sizes.append(program.memory_analysis().temp_size_in_bytes)
        results.append(program(params))
    for less, more in zip(sizes[1:], sizes, strict=False):
        assert less < 0.97 * more, sizes
    assert sizes[-1] < 0.4 * sizes[0]
    for result in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), result, results[0])


@pytest.mark.long
def test_few_layers_take_less_memory_too():
    sizes = []
    for level in ("none", "full"):
        function, params = gradient(level, num_layers=4)
        program = jax.jit(function).lower(params).compile()
        sizes.append(program.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < 0.5 * sizes[0]


@pytest.mark.long
def test_each_level_computes_again_what_it_says():
    products, exponentials = [], []
    for level in LADDER:
        function, params = gradient(level)
        found = primitives(jax.make_jaxpr(function)(params).jaxpr)
        products.append(found["dot_general"])
        exponentials.append(found["exp"])
    none, minimal, qkv, context, full = (n - products[0] for n in products)
    # Products of a layer: queries, keys, values; attention's two, in two blocks; its output's; gate, up and down. What
    # the last one gives is not read by the backward pass.
    assert (none, minimal, qkv, context, full) == (0, 0, 3, 3 + 3, 3 + 3 + 4)
    # Attention's forward pass has one a block: it is run again only where nothing of it is kept.
    assert [n - exponentials[0] for n in exponentials] == [0, 0, 0, 0, 2]


@pytest.fixture
def kernels(monkeypatch):
    """Kernels are let run here, splash on both kinds of layers."""
    for form in ("cudnn", "splash"):
        monkeypatch.setitem(attention.REFUSALS, form, lambda config, device: "")


@pytest.fixture
def lowered_for_a_gpu(monkeypatch):
    """Lets cuDNN's calls be lowered here."""
    inside = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(inside, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(inside, "check_compute_capability", lambda capability: True)


def waiting(jaxpr):
    """Shapes of what the loop over layers hands to the backward pass, a layer, without its weights' [*, *]."""
    loop = next(e for e in jaxpr.eqns if e.primitive.name == "scan" and e.params["length"] == 12)
    shapes = [v.aval.shape[1:] for v in loop.outvars if v.aval.shape[:1] == (12,)]
    return Counter(shape for shape in shapes if len(shape) > 2)


SLIDING = {"sliding_window": 9, "sliding_layers": (True, False) * 6}


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [pytest.param({}, id="one window"), pytest.param(SLIDING, id="two windows", marks=pytest.mark.slow)],
)
def test_splash_runs_its_forward_kernel_again_only_where_nothing_of_it_is_kept(changes, kernels):
    runs, kept = {}, {}
    for level in LADDER:
        function, params = gradient(level, attention="splash", **changes)
        jaxpr = jax.make_jaxpr(function)(params).jaxpr
        runs[level], kept[level] = primitives(jaxpr)["pallas_call"], waiting(jaxpr)
    # A kernel forward, two backward; for each window.
    windows = 2 if changes else 1
    assert runs == dict.fromkeys(LADDER, 3 * windows) | {"full": 4 * windows}
    if not changes:
        # Its output in the kernel's own layout and a number a query, and neither a second time.
        assert kept["save_context"] == {(4, 128, 32): 1, (4, 4, 128, 128): 1, (4, 4, 128): 1}
        assert kept["full"] == {(4, 128, 32): 1}


@pytest.mark.long
def test_cudnn_runs_its_forward_kernel_again_only_where_nothing_of_it_is_kept(kernels, lowered_for_a_gpu):
    runs, kept = {}, {}
    for level in LADDER:
        changes = {"attention": "cudnn", "compute_dtype": "bfloat16", "products": "compute_dtype"}
        function, params = gradient(level, **changes)
        traced = jax.jit(function).trace(params)
        kept[level] = waiting(traced.jaxpr.jaxpr)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        runs[level] = text.count("@__cudnn$fmhaSoftmax("), text.count("@__cudnn$fmhaSoftmaxBackward(")
    assert runs == dict.fromkeys(LADDER, (1, 1)) | {"full": (2, 1)}
    # Its output in the kernel's own layout and a number a query, and neither a second time.
    assert kept["save_context"] == {(4, 128, 32): 1, (4, 128, 4, 8): 1, (4, 4, 128): 1}
    assert kept["full"] == {(4, 128, 32): 1}


@pytest.mark.parametrize("level", LADDER[1:])
def test_a_norm_on_queries_and_keys_costs_no_second_product(level):
    function, params = gradient(level, qk_norm=True)
    plain, _ = gradient("none", qk_norm=True)
    again = primitives(jax.make_jaxpr(function)(params).jaxpr)["dot_general"]
    once = primitives(jax.make_jaxpr(plain)(params).jaxpr)["dot_general"]
    assert again - once == {"minimal": 0, "save_qkv_context": 3, "save_context": 6, "full": 10}[level]


@pytest.mark.long
@pytest.mark.parametrize("level", [pytest.param("minimal", marks=pytest.mark.slow), "full"])
def test_an_adapter_has_the_same_gradient_at_every_level(level):
    settings = LoraConfig(enabled=True, rank=2, targets=("all",))
    adapter = models.create_adapter(model(num_layers=2).config, settings, key=jax.random.key(3))
    adapter = jax.tree.map(lambda x: x + 0.05, adapter)

    def run(level):
        definition, params = models.split(models.with_remat(model(num_layers=2), level))

        def loss(a):
            hidden = models.merge(definition, params).hidden(TOKENS, adapter=models.attach(a, settings))
            return jnp.square(hidden[:, ::3]).mean()

        return jax.jit(jax.grad(loss))(adapter), primitives(jax.make_jaxpr(jax.grad(loss))(adapter).jaxpr)

    (ours, counted), (plain, once) = run(level), run("none")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-7), ours, plain)
    assert (counted["dot_general"] > once["dot_general"]) == (level == "full")


def test_an_offloaded_input_waits_in_the_hosts_memory():
    for level, space in (("full", jax.memory.Space.Device), ("offload", jax.memory.Space.Host)):
        function, params = gradient(level)
        jaxpr = jax.make_jaxpr(function)(params).jaxpr
        loop = next(e for e in jaxpr.eqns if e.primitive.name == "scan" and e.params["length"] == 12)
        inputs = [v.aval for v in loop.outvars if v.aval.shape == (12, *TOKENS.shape, 32)]
        assert [aval.memory_space for aval in inputs] == [space]


@pytest.mark.long
@pytest.mark.parametrize("axes", [{}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_offloading_changes_no_bit(axes, devices):
    mesh = make_mesh(MeshConfig(**axes), devices) if axes else None
    found = []
    for level in ("full", "offload"):
        function, params = gradient(level, mesh=mesh)
        found.append(jax.jit(function)(params))
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_a_level_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(
        ValueError, match="one of none, minimal, save_qkv_context, save_context, full, offload, got 'all'"
    ):
        models.with_remat(model(), "all")
    assert models.remat_level(True) == "full" and models.remat_level(False) == "none"


def test_nothing_is_wrapped_where_all_is_kept():
    def layer(x):
        return x

    assert rematerialized(layer, "none") is layer
