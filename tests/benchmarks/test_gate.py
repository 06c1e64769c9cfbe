"""A child of `benchmarks/gate.py` between two steps, its driver at the other end of the pipes."""

import json
import os

import pytest


@pytest.fixture
def gate_and_driver(benchmark, monkeypatch):
    gates = benchmark("gate")
    read, commands = os.pipe()
    answers, write = os.pipe()
    monkeypatch.setenv("BENCH_READ", str(read))
    monkeypatch.setenv("BENCH_WRITE", str(write))
    with os.fdopen(commands, "w") as driver, os.fdopen(answers) as heard:
        gate = gates.Gate(lambda: None)
        yield gates, gate, driver, heard
        gate.close()


def test_each_command_is_answered_with_its_own_steps_tokens_and_times(gate_and_driver):
    gates, gate, driver, heard = gate_and_driver
    print("run 2\nrun 1\nstop", file=driver, flush=True)

    def step(tokens):
        gate.between()
        gate.count(tokens)
        with gate.clock("data"):
            pass
        gate.spent["sample"] += 1.0

    for tokens in (5, 6, 7):
        step(tokens)
    with pytest.raises(gates.Stop):
        step(8)
    first, second = (json.loads(heard.readline()) for _ in range(2))
    assert (first["steps"], first["tokens"], first["spent"]["sample"]) == (2, 11, 2.0)
    assert (second["steps"], second["tokens"], second["spent"]["sample"]) == (1, 7, 1.0)
    assert 0 < first["spent"]["data"] < first["seconds"]
    assert gate.tokens == [5, 6, 7]


@pytest.mark.parametrize(("machine", "waited"), [(20.5, 0.5), (28.0, 5.0), (19.9, 0.0)])
def test_threads_that_wait_for_one_another_are_not_held_up_by_others(
    gate_and_driver, monkeypatch, machine, waited
):
    # In ten seconds threads of this process ran for 20 and waited for 5, while the whole machine ran for `machine`.
    gates, gate, driver, heard = gate_and_driver
    print("run 1\nstop", file=driver, flush=True)
    monkeypatch.setattr(gates, "clocks", iter([(0.0, 0.0, 0.0, 0.0), (10.0, 20.0, 5.0, machine)]).__next__)
    gate.between()
    with pytest.raises(gates.Stop):
        gate.between()
    assert json.loads(heard.readline())["waited"] == pytest.approx(waited)


def test_the_machine_runs_at_least_as_long_as_this_process(benchmark):
    gates = benchmark("gate")
    _, began, _, first = gates.clocks()
    while (now := gates.clocks())[1] < began + 0.5:
        pass
    assert now[3] - first > 0.4


def test_a_report_is_answered_between_steps_and_takes_none(gate_and_driver):
    gates, gate, driver, heard = gate_and_driver
    print("run 1\nreport\nrun 1\nreport\nstop", file=driver, flush=True)
    gate.report = lambda: {"losses": [float(t) for t in gate.tokens]}
    for tokens in (5, 6):
        gate.between()
        gate.count(tokens)
    with pytest.raises(gates.Stop):
        gate.between()
    ran, reported, again, last = (json.loads(heard.readline()) for _ in range(4))
    assert (ran["steps"], reported["losses"], reported["tokens"]) == (1, [5.0], [5])
    assert (again["steps"], again["tokens"], last["losses"]) == (1, 6, [5.0, 6.0])


def test_the_peak_of_memory_is_kept_when_it_is_given_back(benchmark):
    gate = benchmark("gate")
    held = gate.memory()
    block = bytearray(b"x" * (64 << 20))
    assert gate.memory() > held + (32 << 20)
    del block
    assert gate.peak_memory() > gate.memory() + (32 << 20)
