"""The forms of matrix products: which is chosen, what they compute, and that a training step has no other."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.kernels import matmul as products
from jaxalign.models import layers
from jaxalign.target import compiling_for
from jaxalign.training.core.scoring import CausalPolicy
from jaxalign.training.sft import DemonstrationBatch, SFTLossConfig, make_sft_loss, sft_counts
from tests.fake_devices import AMD
from tests.models.attention_cases import config

FORMS = ("compute_dtype", "bfloat16_float32", "float32")


@pytest.mark.parametrize(
    ("dtype", "platform", "flags", "form"),
    [
        ("bfloat16", "cpu", {"avx512f", "amx_bf16"}, "bfloat16_float32"),
        ("bfloat16", "cpu", {"avx512f", "avx512_bf16"}, "bfloat16_float32"),
        ("bfloat16", "cpu", {"avx512f", "avx512_vnni"}, "float32"),
        ("bfloat16", "cpu", set(), "float32"),
        ("float32", "cpu", {"amx_bf16"}, "compute_dtype"),
        ("bfloat16", "gpu", {"amx_bf16"}, "compute_dtype"),
        ("bfloat16", "tpu", set(), "compute_dtype"),
    ],
)
def test_the_form_follows_from_platform_and_cpu_flags(dtype, platform, flags, form):
    assert (
        products.choose_matmul(config(compute_dtype=dtype), platform, frozenset(flags)).implementation == form
    )


def test_a_form_that_is_asked_for_is_taken():
    asked = config(compute_dtype="bfloat16", products="compute_dtype")
    assert products.choose_matmul(asked, "cpu", frozenset({"amx_bf16"})) == ("compute_dtype", "configured")


def test_cpu_flags_are_read_from_the_first_processor(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text(
        "processor\t: 0\nmodel name\t: X\nflags\t\t: fpu amx_bf16 amx_tile\n\nprocessor\t: 1\nflags\t: fpu\n"
    )
    assert products.cpu_flags(str(file)) == {"fpu", "amx_bf16", "amx_tile"}
    assert products.cpu_flags(str(tmp_path / "nowhere")) == frozenset()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(5, 4), (4, 5)])
def test_dense_has_value_and_gradient_of_a_product_whichever_side_is_wider(form, dtype, shape):
    x, w = (
        jax.random.normal(jax.random.key(0), (2, 3, shape[0])),
        jax.random.normal(jax.random.key(1), shape),
    )
    weights = jax.random.normal(jax.random.key(2), (2, 3, shape[1])).astype(dtype)
    x = x.astype(dtype)

    def loss(product):
        return lambda x, w: (product(x, w) * weights).astype(jnp.float32).sum()

    ours = jax.grad(loss(lambda x, w: products.dense(x, w, form)), (0, 1))(x, w)
    wide = jnp.float32(x), jnp.float32(w)
    plain = jax.grad(lambda x, w: ((x @ w) * jnp.float32(weights)).sum(), (0, 1))(*wide)
    tolerance = 1e-5 if dtype == "float32" else 0.06
    out = products.dense(x, w, form)
    np.testing.assert_allclose(np.float32(out), wide[0] @ wide[1], atol=tolerance)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.float32(a), b, atol=tolerance), ours, plain)
    assert out.dtype == ours[0].dtype == dtype
    assert ours[1].dtype == jnp.float32


def test_in_float32_all_forms_are_one():
    x, w = jax.random.normal(jax.random.key(0), (6, 5)), jax.random.normal(jax.random.key(1), (5, 4))
    first, *others = (jax.jit(lambda x, w, f=f: products.dense(x, w, f)).lower(x, w).as_text() for f in FORMS)
    assert others == [first, first]


# --- the products of a whole training step -------------------------------------------------------

# No width is another's, so that a product is known by the shape of its result.
SHAPE = {
    "vocab_size": 272, "hidden_size": 48, "intermediate_size": 80, "num_layers": 1, "num_heads": 4,
    "num_kv_heads": 2, "head_dim": 16, "max_positions": 64,
}  # fmt: skip
ROWS, LENGTH = 2, 24


def lowered(**changes):
    """Loss and gradient of supervised fine-tuning, lowered; the optimizer multiplies no matrices."""
    model = models.create(models.ModelConfig(**(SHAPE | changes)), key=jax.random.key(0))
    definition, params = models.split(model)
    loss = make_sft_loss(CausalPolicy(definition), SFTLossConfig())
    batch = DemonstrationBatch(
        tokens=jnp.zeros((ROWS, LENGTH), jnp.int32),
        mask=jnp.ones((ROWS, LENGTH), bool),
        lengths=jnp.full(ROWS, LENGTH, jnp.int32),
        valid=jnp.ones(ROWS, bool),
        weights=jnp.ones((ROWS, LENGTH)),
    )

    def whole(params):
        return loss(params, {}, batch, None, sft_counts(batch))

    return jax.jit(jax.value_and_grad(whole, has_aux=True)).lower(params)


# In the backward pass of attention in tiles: a sum as a product, and the two whose left side comes transposed.
HEADS, GROUP = SHAPE["num_kv_heads"], SHAPE["num_heads"] // SHAPE["num_kv_heads"]
A_SUM = ({"f32"}, "f32", (ROWS, HEADS, LENGTH, GROUP, 1))
KEYS = ({"f32"}, "f32", (ROWS * HEADS, SHAPE["head_dim"], LENGTH))
IN_FLOAT32 = (A_SUM, KEYS)

PRODUCT = re.compile(r"stablehlo\.dot_general .*: \(tensor<(\S+)>, tensor<(\S+)>\) -> tensor<(\S+)>")


def products_in(text):
    """(operand dtypes, result dtype, result shape) of each product of a program."""
    found = []
    for line in text.splitlines():
        if "stablehlo.dot_general" in line:
            match = PRODUCT.search(line)
            assert match, line
            *operands, result = (shape.split("x") for shape in match.groups())
            found.append(({o[-1] for o in operands}, result[-1], tuple(map(int, result[:-1]))))
    return found


def wrong_products(text, operand, result):
    """Products of other dtypes, and gradients of key and value projections [48, 32] that come transposed.

    float32's are meant to: there the narrower side is the one that is transposed. Those of `IN_FLOAT32` may be.
    """
    transposed = (32, 48) if operand != "f32" else None
    return [
        product
        for product in products_in(text)
        if (product[0] != {operand} or product[1] not in result or product[2] == transposed)
        and product not in IN_FLOAT32
    ]


WANTED = {
    "compute_dtype": ("bf16", {"bf16", "f32"}),
    "bfloat16_float32": ("bf16", {"f32"}),
    "float32": ("f32", {"f32"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_product_of_a_bfloat16_step_has_the_form(form):
    text = lowered(compute_dtype="bfloat16", products=form, attention="blockwise").as_text()
    assert len(products_in(text)) > 20
    assert wrong_products(text, *WANTED[form]) == []
    assert [products_in(text).count(x) for x in IN_FLOAT32] == [1, 2]
    # Key and value projections have their gradients in the layout that is meant.
    gradient = (32, 48) if form == "float32" else (48, 32)
    assert [p[2] for p in products_in(text)].count(gradient) == 2


@pytest.mark.parametrize("form", FORMS)
def test_every_product_of_a_quantized_bfloat16_decode_step_has_the_form(form):
    shape = models.ModelConfig(**SHAPE, compute_dtype="bfloat16", products=form)
    model = models.quantize(models.create(shape, key=jax.random.key(0)))
    tokens, weights = jnp.zeros((ROWS, LENGTH), jnp.int32), model.decode_weights()
    _, cache = jax.eval_shape(
        lambda: model.prefill(tokens, jnp.full(ROWS, LENGTH), cache_length=32, int8_cache=True)
    )

    def step(weights, tokens, cache):
        hidden, cache = model.decode(weights, tokens, cache)
        return model.logits(hidden), cache

    text = jax.jit(step).lower(weights, tokens[:, 0], cache).as_text()
    # Seven projections, attention's two and the vocabulary.
    assert len(products_in(text)) == 10
    wrong = wrong_products(text, *WANTED[form])
    if form == "bfloat16_float32":  # attention reads its cache in float32
        heads, (k, group, s) = SHAPE["num_heads"], (SHAPE["num_kv_heads"], 2, 32)
        assert k * group == heads
        assert wrong == [
            ({"f32"}, "f32", (ROWS, k, group, s)),
            ({"f32"}, "f32", (ROWS, k, group, SHAPE["head_dim"])),
        ]
    else:
        assert wrong == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("form", "kept"), [("compute_dtype", "bfloat16"), ("bfloat16_float32", "float32"), ("float32", "float32")]
)
def test_a_cache_is_kept_as_attention_reads_it_and_holds_the_same_numbers(form, kept):
    model = models.create(
        models.ModelConfig(**SHAPE, compute_dtype="bfloat16", products=form), key=jax.random.key(0)
    )
    tokens = jax.random.randint(jax.random.key(1), (ROWS, LENGTH), 4, 60)
    _, cache = model.prefill(tokens, jnp.full(ROWS, LENGTH), cache_length=32)
    assert {x.dtype.name for x in (*cache.keys, *cache.values)} == {kept}
    if form == "float32":  # nothing was rounded
        assert (cache.keys[0] != cache.keys[0].astype("bfloat16").astype("float32")).any()
        return
    rounded = jax.tree.map(lambda x: x.astype("bfloat16") if x.ndim == 4 else x, cache)
    step, weights = jax.jit(model.decode), model.decode_weights()
    found, after = step(weights, tokens[:, 0], cache)
    same, _ = step(weights, tokens[:, 0], rounded)
    assert found.dtype == "bfloat16" and {x.dtype.name for x in after.keys} == {kept}
    np.testing.assert_array_equal(found.astype("float32"), same.astype("float32"))


def plain_dense(x, w, form):
    return x @ w.astype(x.dtype)


def test_the_check_sees_products_that_are_left_to_autodiff(monkeypatch):
    monkeypatch.setattr(layers, "dense", plain_dense)
    text = lowered(compute_dtype="bfloat16", products="bfloat16_float32", attention="blockwise").as_text()
    wrong = wrong_products(text, *WANTED["bfloat16_float32"])
    assert {result for _, result, _ in wrong} == {"bf16"}
    assert (32, 48) in {shape for *_, shape in wrong}


def off_the_fast_path(text, operand):
    """Products of a compiled CPU program that its library of fast ones does not take, or with a transposed gradient.

    But for attention's: dk and dv [row and head, H, column], whose left side comes transposed (no library takes them),
    and its sum as a product with ones. Of float32's gradients the narrower side is the one that is meant to be.
    """
    fast = set(re.findall(r"fusion\(.*calls=%?([\w.\-]+).*__ynn_fusion", text))
    assert fast
    transposed = r"bf16|\w+\[32,48\]" if operand == "bf16" else "bf16"
    computation, found = "", []
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line)
        computation = head[1] if head else computation
        if " dot(" not in line:
            continue
        attention = re.search(r"= f32\[4,16,24\].*lhs_batch_dims=\{0\}, lhs_contracting_dims=\{1\}", line)
        attention = attention or re.search(r"= f32\[192,1\]", line)
        if (computation not in fast and not attention) or re.search(rf"= ({transposed})", line):
            found.append(line.strip())
    return found


# Layers in a loop, and the vocabulary in two chunks.
IN_LOOPS = {"vocab_size": 5000, "remat": "minimal"}


def compiled_for_users(program):
    """Text of the program with the compiler's passes, which `make test` leaves out (see tests/conftest.py)."""
    return program.compile(compiler_options={"xla_backend_optimization_level": 3}).as_text()


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "operand"),
    [
        ({}, "f32"),
        ({"compute_dtype": "bfloat16", "products": "bfloat16_float32"}, "bf16"),
        ({"compute_dtype": "bfloat16", "products": "float32"}, "f32"),
        (IN_LOOPS, "f32"),
        ({**IN_LOOPS, "compute_dtype": "bfloat16", "products": "bfloat16_float32"}, "bf16"),
    ],
    ids=["float32 compute", "bfloat16_float32", "float32", "loops", "bfloat16_float32 in loops"],
)
def test_the_compiled_step_has_no_product_off_the_fast_path(changes, operand):
    assert off_the_fast_path(compiled_for_users(lowered(**changes)), operand) == []


@pytest.mark.long
def test_the_compiled_check_sees_products_that_are_left_to_autodiff(monkeypatch):
    monkeypatch.setattr(layers, "dense", plain_dense)
    text = compiled_for_users(lowered(compute_dtype="bfloat16", products="bfloat16_float32"))
    assert off_the_fast_path(text, "bf16") != []


def precisions(jaxpr, found):
    """(dtypes of the operands, precision) of each product in a jaxpr and those in it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            dtypes = " ".join(sorted({x.aval.dtype.name for x in equation.invars}))
            found.add((dtypes, equation.params["precision"]))
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                precisions(inner, found)
    return found


@pytest.mark.long
@pytest.mark.parametrize("form", ["auto", pytest.param("plain", marks=pytest.mark.slow)])
def test_float32_is_float32_on_gpus_and_tpus_unless_jax_is_told_otherwise(form):
    highest = (jax.lax.Precision.HIGHEST,) * 2

    def step(**changes):
        model = models.create(config(attention=form, **changes), key=jax.random.key(0))
        definition, params = models.split(model)
        policy = CausalPolicy(definition)
        tokens = jnp.arange(16).reshape(2, 8) % 7
        batch = DemonstrationBatch(
            tokens=tokens,
            mask=jnp.ones((2, 8), bool),
            lengths=jnp.full(2, 8),
            valid=jnp.ones(2, bool),
            weights=jnp.ones((2, 8)),
        )
        loss = jax.grad(
            lambda p: make_sft_loss(policy, SFTLossConfig())(p, {}, batch, None, sft_counts(batch))[0]
        )
        found = precisions(jax.make_jaxpr(loss)(params).jaxpr, set())

        def decoded(params):
            model = models.merge(definition, params)
            weights = model.decode_weights()
            hidden, cache = model.prefill(tokens, jnp.full(2, 8), cache_length=9)
            return model.logits(model.decode(weights, tokens[:, 0], cache)[0]), model.logits(hidden)

        return precisions(jax.make_jaxpr(decoded)(params).jaxpr, found)

    assert step() == {("float32", None)}
    with compiling_for(AMD):
        assert step() == {("float32", highest)}
        assert ("float32", None) not in step(compute_dtype="bfloat16")
        with jax.default_matmul_precision("tensorfloat32"):
            assert highest not in {precision for _, precision in step()}
