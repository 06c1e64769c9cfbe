"""Collectives are read off a compiled program's text with their bytes, as often as loops run them."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.plan.collectives import Collective, collectives

# As XLA writes it for GPUs: asynchronous pairs, tuples of operands and results, groups as a list or an iota.
TEXT = """
HloModule jit_step

%wrapped (p: f32[64,8]) -> f32[16,8] {
  %p = f32[64,8]{1,0} parameter(0)
  ROOT %reduce-scatter.1 = f32[16,8]{1,0} reduce-scatter(%p), replica_groups=[2,4]<=[8], dimensions={0}
}

%body (arg: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %all-gather-start.1 = ((bf16[4,8], f32[2]), (bf16[32,8], f32[16])) all-gather-start(%a), metadata={op_name="dot"}
  %all-gather-done.1 = (bf16[32,8]{1,0}, f32[16]{0}) all-gather-done(%all-gather-start.1)
  %scatter = ((f32[64,8]{1,0}), f32[16,8]{1,0}) async-start(%c), calls=%wrapped
}

%c (arg: (s32[], bf16[4,8])) -> pred[] {
  %all-reduce.3 = pred[] all-reduce(%j), replica_groups={{0,1,2,3}}
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: bf16[4,8]) -> f32[10] {
  %all-reduce-start.2 = f32[10]{0} all-reduce-start(%y), replica_groups={{0,1,2,3}}
  ROOT %while.1 = (s32[], bf16[4,8]) while(%init), condition=%c, body=%body, config={"known_trip_count":{"n":"5"}}
}
"""


def test_a_loop_without_a_noted_count_runs_until_its_counter_reaches_a_constant():
    """As XLA writes it for TPUs."""
    condition = """
  %constant.7 = s32[]{:T(128)} constant(16), metadata={op_name="while"}
  %other = u32[] constant(3)
  ROOT %compare.9 = pred[]{:T(512)} compare(%get-tuple-element.1, %constant.7), direction=LT, metadata={}
"""
    text = TEXT.replace("  ROOT %less = pred[] compare(%i, %n), direction=LT\n", condition.lstrip("\n"))
    assert text != TEXT
    text = text.replace(', config={"known_trip_count":{"n":"5"}}', "")
    in_loop = {one.kind: one.count for one in collectives(text) if one.in_loop}
    assert in_loop == {"reduce-scatter": 16, "all-gather": 16, "all-reduce": 16}
    unknown = TEXT.replace(', config={"known_trip_count":{"n":"5"}}', "")
    assert {one.count for one in collectives(unknown)} == {1}


def test_what_goes_to_other_slices_is_told_apart():
    """As XLA writes it for several slices of TPUs, where groups of replicas are those of one slice."""
    handler = '_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:15}"'
    sent = "  %send.4 = (f32[4,8]{1,0:T(8,128)}, u32[], token[]) send(%b, %after), is_host_transfer=true, "
    line = f'{sent}frontend_attributes={{{handler},_xla_megascale_transfer_type="ALL_REDUCE"}}\n'
    other = f"{sent}frontend_attributes={{}}\n"
    text = TEXT.replace("%scatter =", line.lstrip() + other + "  %scatter =")
    assert [one for one in collectives(text) if one.across] == [
        Collective("all-reduce", 5, 4 * 4 * 8, True, "", across=True)
    ]
    assert [one for one in collectives(text) if not one.across] == collectives(TEXT)


def test_bytes_are_those_of_the_whole_array_and_counts_those_of_the_loops():
    assert collectives(TEXT) == [
        Collective("reduce-scatter", 5, 4 * 64 * 8, True, ""),
        Collective("all-gather", 5, 2 * 32 * 8 + 4 * 16, True, "dot"),
        Collective("all-reduce", 1, 40, False, ""),
        Collective("all-reduce", 5, 1, True, ""),
    ]


def test_a_program_of_this_jax_is_read(devices):
    mesh = make_mesh(MeshConfig(fsdp=8), devices)
    split, whole = NamedSharding(mesh, P("fsdp")), NamedSharding(mesh, P())

    def loop(x):
        return jax.lax.fori_loop(
            0, 3, lambda _, y: jax.lax.with_sharding_constraint(jnp.sin(y), whole) * x, x
        )

    x = jax.ShapeDtypeStruct((16, 4), jnp.float32)
    text = jax.jit(loop, in_shardings=split, out_shardings=split).lower(x).compile().as_text()
    found = [one for one in collectives(text) if one.kind == "all-gather"]
    assert sum(one.total_bytes for one in found) == 3 * 4 * 16 * 4
    assert all(one.in_loop for one in found)
