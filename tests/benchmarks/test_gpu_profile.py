"""`benchmarks/gpu_profile.py`: which kernels took how long, and how long the device waited."""

from types import SimpleNamespace


def event(name, start, duration, source=""):
    return SimpleNamespace(
        name=name, start_ns=start, duration_ns=duration, stats=[("hlo_op", source), (None, 1)]
    )


def plane(name, **lines):
    named = [SimpleNamespace(name=line, events=events) for line, events in lines.items()]
    return SimpleNamespace(name=name, lines=named)


def test_kernels_of_one_kind_are_added_up_and_time_that_overlaps_counts_once(benchmark):
    stream = [event("fusion_1", 0, 2e6, "add"), event("dot", 1e6, 3e6), event("fusion_2", 9e6, 1e6)]
    data = SimpleNamespace(
        planes=[plane("/host:CPU"), plane("/device:GPU:0", **{"Stream #1": stream, "XLA Ops": stream})]
    )
    first, *rows = benchmark("gpu_profile").table(data).splitlines()
    assert first == "busy 5.0 ms of 10.0; 3 kernels"
    assert [row.split() for row in rows] == [
        ["50.0%", "3.00", "ms", "2x", "fusion", "add"],
        ["50.0%", "3.00", "ms", "1x", "dot"],
    ]


def test_without_a_gpu_it_says_so(benchmark):
    data = SimpleNamespace(planes=[plane("/host:CPU")])
    assert benchmark("gpu_profile").table(data) == "no GPU in the profile, only /host:CPU"
