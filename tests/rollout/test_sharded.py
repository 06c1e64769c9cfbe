"""Rollouts on a mesh: each device has all weights and rows of its own, and a token needs nothing of another device.

What passes between devices is counted in the compiled programs; that samples are equal would not show it.
"""

import math
import re
from collections import Counter
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxalign import llmdoctor, models
from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.models.config import Mixture
from jaxalign.models.sharding import on_mesh
from jaxalign.plan import collectives
from jaxalign.rollout import Sampler, decode
from jaxalign.rollout.search import args_generate

LAYERS = 2
SHAPE = models.ModelConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_layers=LAYERS, num_heads=8, num_kv_heads=4, head_dim=8,
    max_positions=128, bos_id=1, eos_ids=(2,), pad_id=0,
)  # fmt: skip
LORA = models.LoraConfig(enabled=True, rank=2)
PROMPTS = [list(range(3, 3 + n)) for n in (3, 15, 5, 9, 1, 12, 2)]
STOPS = (7, 11, 20, 33)
NAMES = ("decode_weights", "read_prompts", "new_cache", "seat", "rearranged", "decode_block")


def sharp(config):
    """A model as sharp as a trained one: rounding must not decide what is drawn."""
    live = models.create(config, key=jax.random.key(0))
    return models.merge(
        models.split(live)[0], jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, live.params)
    )


@pytest.fixture(scope="module")
def model():
    return sharp(SHAPE)


@pytest.fixture(scope="module")
def mixture():
    return sharp(replace(SHAPE, family="mixtral", mixture=Mixture(experts=4, per_token=2)))


@pytest.fixture(scope="module")
def expected_of_mixture(mixture):
    return completions(mixture)


@pytest.fixture(scope="module")
def adapter():
    leaves = models.create_adapter(SHAPE, LORA, key=jax.random.key(1))
    leaves = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(2), x.shape), leaves)
    return models.attach(leaves, LORA)


def spread(model, axes):
    """The model on a mesh of the 8 devices; itself where there are no axes."""
    if not axes:
        return model
    mesh = make_mesh(MeshConfig(**axes), jax.devices("cpu"))
    definition, params = models.split(models.with_config(model, mesh=mesh))
    return models.merge(definition, on_mesh(params, mesh))


def shared(array):
    """Into how many parts the first two dimensions are split."""
    part = array.sharding.shard_shape(array.shape)
    return tuple(whole // own for whole, own in zip(array.shape[:2], part, strict=False))


def own_bytes(tree):
    """What a device holds of a tree, also of one that has been given away."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree) if x.ndim
    )


def lowered_of(programs, name):
    """The first program of that name, as it is written."""
    return next(lowered for program, lowered, _ in programs if program == name)


def largest(programs, name, kind):
    """Bytes of the largest collective of that kind in the first program of that name."""
    found = collectives.collectives(lowered_of(programs, name).compile().as_text())
    return max(one.bytes for one in found if one.kind == kind)


def passed(programs, name, *, in_loop=False):
    """How many collectives of each kind the first program of that name takes, perhaps only in its loops."""
    found = collectives.collectives(lowered_of(programs, name).compile().as_text())
    return Counter(one.kind for one in found if one.in_loop or not in_loop)


@pytest.fixture
def programs(monkeypatch):
    """(name, program as written, result) of each program that is run from here on."""
    seen = []

    def watch(name):
        function = getattr(decode, name)

        def run(*args, **options):
            lowered = function.lower(*args, **options)
            found = function(*args, **options)
            seen.append((name, lowered, found))
            return found

        monkeypatch.setattr(decode, name, run)

    for name in NAMES:
        watch(name)
    return seen


def completions(model, *, new=12, block=5, max_rows=8, num_samples=2, sampler=None, adapter=None):
    sampler = Sampler(model, adapter=adapter, block=block, max_rows=max_rows, **(sampler or {}))
    return sampler.generate(
        PROMPTS, max_new_tokens=new, key=jax.random.key(3), stop_tokens=STOPS, num_samples=num_samples
    )


def compare(many, one):
    assert many.token_lists() == one.token_lists()
    assert many.finish_reason == one.finish_reason
    for name in ("logps", "sampling_logps"):
        np.testing.assert_allclose(getattr(many, name)[many.mask], getattr(one, name)[one.mask], atol=1e-4)


@pytest.fixture(scope="module")
def expected(model):
    return completions(model)


@pytest.mark.parametrize("axes", [{"data": 8}, {"fsdp": 8}], ids=str)
def test_nothing_passes_between_devices_while_they_decode_and_weights_alone_while_they_read(
    axes, model, programs
):
    completions(spread(model, axes), new=4, max_rows=16)
    assert passed(programs, "decode_block", in_loop=True) == Counter()
    # After the block: the largest number of steps.
    assert passed(programs, "decode_block") <= Counter({"all-reduce": 1})
    # Prompts are read by gathered weights, one after the other; no activation is summed over devices.
    gathers = 7 * LAYERS + 1 if "fsdp" in axes else 0
    found = passed(programs, "read_prompts")
    assert gathers <= found["all-gather"] <= gathers + (1 if gathers else 0)
    assert found["all-reduce"] == 0
    assert found["all-to-all"] <= (1 if gathers else 0)


@pytest.mark.long
@pytest.mark.parametrize("axes", [{"data": 4, "tensor": 2}, {"fsdp": 2, "tensor": 4}], ids=str)
def test_devices_that_share_a_row_sum_twice_a_layer_and_change_the_logits_once(axes, model, programs):
    completions(spread(model, axes), new=4, max_rows=16)
    found = passed(programs, "decode_block", in_loop=True)
    # Beside two a layer: the embedding, and whether all rows have ended.
    assert found["all-reduce"] <= 2 * LAYERS + 2
    assert found["all-to-all"] <= 1
    # The tokens, and which rows go on; of 16 rows, so no weights.
    assert found["all-gather"] <= 2
    assert largest(programs, "decode_block", "all-gather") <= 4 * 16
    assert set(found) <= {"all-reduce", "all-to-all", "all-gather"}


@pytest.mark.long
def test_rows_stay_where_they_are_while_others_come_and_go(model, programs, expected):
    live = spread(model, {"data": 2, "fsdp": 2, "tensor": 2})
    compare(completions(live, max_rows=4, block=3), expected)
    for name in ("new_cache", "seat", "rearranged"):
        assert passed(programs, name) == Counter(), name


@pytest.mark.long
@pytest.mark.parametrize(
    ("axes", "parts"), [({"fsdp": 2, "context": 4}, (8, 1)), ({"fsdp": 4, "tensor": 2}, (4, 2))], ids=str
)
def test_cache_and_rows_are_split_and_weights_are_not(axes, parts, model, programs):
    completions(spread(model, axes), new=8)
    for name, _, found in programs:
        if name == "decode_weights":
            layer = found["layers"][1]
            assert shared(layer["q_proj"]) == shared(layer["up_proj"]) == (1, parts[1])
            assert shared(layer["down_proj"]) == shared(found["embed"]["tokens"]) == (parts[1], 1)
            continue
        cache = found if name in ("new_cache", "seat", "rearranged") else found[0]
        assert {shared(x) for x in (*cache.keys, *cache.values)} == {parts}, name
        assert shared(cache.starts) == parts[:1]
        if name in ("read_prompts", "decode_block"):
            # Devices that share a row may each keep the tokens of some of them.
            assert shared(found[1]["tokens"])[0] >= parts[0]
    assert {name for name, *_ in programs} >= {"read_prompts", "new_cache", "rearranged", "decode_block"}


@pytest.mark.long
def test_weights_travel_once_a_run_in_the_dtype_of_products(model, programs):
    live = spread(models.with_config(model, compute_dtype="bfloat16", products="compute_dtype"), {"fsdp": 8})
    completions(live, new=10, block=2)
    assert sum(name == "decode_block" for name, *_ in programs) > 2
    assert sum(name == "decode_weights" for name, *_ in programs) == 1
    # As written: a CPU gathers all numbers as float32.
    written = lowered_of(programs, "decode_weights").as_text()
    placed = re.findall(r"sharding_constraint .*tensor<[\dx]*x([a-z]+\d+)>", written)
    matrices, norms = 7 * LAYERS + 1, 2 * LAYERS + 1
    assert Counter(placed) == {"bf16": 2 * matrices, "f32": 2 * norms}


@pytest.mark.long
@pytest.mark.parametrize(
    "axes", [{"data": 8}, {"fsdp": 8}, {"data": 2, "tensor": 4}, {"tensor": 8}, {"context": 8}], ids=str
)
def test_completions_are_those_of_one_device(axes, model, expected):
    compare(completions(spread(model, axes)), expected)


@pytest.mark.long
@pytest.mark.parametrize(
    "axes", [{"expert": 4, "tensor": 2}, {"fsdp": 2, "expert": 2, "context": 2}], ids=str
)
def test_completions_of_a_mixture_are_those_of_one_device(axes, mixture, expected_of_mixture):
    live = spread(mixture, axes)
    assert shared(live.params["layers"]["experts_gate"]) == (1, axes["expert"])
    compare(completions(live), expected_of_mixture)


def test_the_completions_end_at_many_lengths(expected):
    assert len(set(expected.lengths.tolist())) >= 4
    assert set(expected.finish_reason) == {"stop", "length"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("axes", "int8"), [({"fsdp": 8}, True), ({"data": 4, "tensor": 2}, False)], ids=["int8", "adapter"]
)
def test_integers_and_adapters_are_sampled_from_as_on_one_device(axes, int8, model, adapter, programs):
    kind = {"sampler": {"weights": "int8", "cache": "int8"}} if int8 else {"adapter": adapter}
    many = completions(spread(model, axes), **kind)
    if "tensor" not in axes:
        assert passed(programs, "decode_block", in_loop=True) == Counter()
    cache = [found for name, _, found in programs if name == "decode_block"][-1][0]
    rows, heads = 8 // axes.get("tensor", 1), axes.get("tensor", 1)
    assert {shared(x) for x in jax.tree.leaves((cache.keys, cache.values))} == {(rows, heads)}
    compare(many, completions(model, **kind))


def guided(model):
    """A patient with two adapters on itself and one doctor of its own."""

    def doctor(seed):
        leaves = models.create_adapter(SHAPE, LORA, key=jax.random.key(seed))
        return models.attach(jax.tree.map(lambda x: x + 0.3, leaves), LORA)

    doctors = [llmdoctor.Doctor(model, adapter=doctor(seed)) for seed in (5, 6)]
    other = models.merge(models.split(model)[0], jax.tree.map(lambda x: 1.1 * x, model.params))
    return llmdoctor.guide(model, [*doctors, llmdoctor.Doctor(other)], betas=(0.5, 0.3, 0.2))


@pytest.mark.long
@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 4}, {"data": 4, "tensor": 2}], ids=str)
def test_doctors_decode_beside_their_patient(axes, model, programs):
    many = completions(guided(spread(model, axes)), new=6)
    if "tensor" not in axes:
        assert passed(programs, "decode_block", in_loop=True) == Counter()
    compare(many, completions(guided(model), new=6))


@pytest.mark.long
def test_a_reward_model_guides_beside_its_base(model, programs):
    def searched(base):
        scalar = models.create_scalar_model(base, models.HeadConfig(kind="mlp"), key=jax.random.key(8))
        return args_generate(
            base,
            scalar,
            PROMPTS,
            weight=3.0,
            top_k=5,
            max_new_tokens=5,
            key=jax.random.key(4),
            stop_tokens=STOPS,
        )

    many = searched(spread(model, {"fsdp": 8}))
    assert passed(programs, "decode_block", in_loop=True) == Counter()
    compare(many, searched(model))


def test_the_bytes_that_decoding_is_said_to_take_are_those_of_a_device(model, programs):
    sampler = Sampler(spread(model, {"fsdp": 4, "tensor": 2}), block=4)
    cache, weights = sampler.decoding_bytes(7, 15, max_new_tokens=9)
    sampler.generate(PROMPTS, max_new_tokens=9, key=jax.random.key(0), stop_tokens=())
    caches = [
        own_bytes((found.keys, found.values))
        for name, _, found in programs
        if name in ("new_cache", "rearranged")
    ]
    assert cache == max(caches)
    (ready,) = [found for name, _, found in programs if name == "decode_weights"]
    final = ready["final_norm"]["weight"]
    assert weights == own_bytes(ready) - final.nbytes
