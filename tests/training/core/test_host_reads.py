"""Between two steps the host waits for the device only to log the step before, when the next is under way."""

from dataclasses import replace

import jax.numpy as jnp
import pytest

from jaxalign.mesh import MeshConfig
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.step import Update
from jaxalign.training.sft import train_sft

STEPS = 5


class Seen(Exception):
    """Ends a run: its end may read what it likes."""


@pytest.fixture
def reads(monkeypatch):
    """What the host does, in order: ("update", step), ("read", the step whose metric it is, else None).

    `jax.transfer_guard_device_to_host` lets everything pass on CPUs, whose arrays the host need not copy; and a single
    device's lend NumPy their memory, so that the runs here have two.
    """
    events, metrics, plain = [], {}, Update.__call__
    array = type(jnp.zeros(()))
    value, wait = array._value, array.block_until_ready

    def update(self, *arguments):
        state, found = plain(self, *arguments)
        step = len([e for e in events if e[0] == "update"]) + 1
        metrics.update({id(x): (step, x) for x in found.values()})
        events.append(("update", step))
        if step == STEPS:
            raise Seen
        return state, found

    def read(self):
        events.append(("read", metrics.get(id(self), (None,))[0]))

    monkeypatch.setattr(Update, "__call__", update)
    monkeypatch.setattr(array, "_value", property(lambda self: (read(self), value.fget(self))[1]))
    monkeypatch.setattr(array, "block_until_ready", lambda self: (read(self), wait(self))[1])
    return events


def test_steps_read_nothing_but_the_metrics_of_the_step_before(configs, tmp_path, reads):
    config = configs.sft(tmp_path / "run", train=TrainConfig(batch_size=4, steps=STEPS))
    quiet = replace(config.run, log_every=0, save_every=0, eval_every=0)
    with pytest.raises(Seen):
        train_sft(replace(config, run=quiet, mesh=MeshConfig(data=2)))
    between = reads[reads.index(("update", 1)) + 1 : reads.index(("update", STEPS))]
    seen, under_way = set(), 1
    for kind, step in between:
        if kind == "update":
            under_way = step
        else:
            seen.add(step)
            assert step == under_way - 1
    # The reads of the log are noticed, and so would be others.
    assert seen == set(range(1, STEPS - 1))
    assert float(jnp.ones(())) == 1 and reads[-1] == ("read", None)
