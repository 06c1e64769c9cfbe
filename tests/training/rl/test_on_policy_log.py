"""What a run that learns from its own samples logs: means over the updates since the last record, also when resumed."""

from contextlib import nullcontext
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from jaxalign.mesh import MeshConfig, make_mesh
from jaxalign.rollout import SamplingConfig
from jaxalign.runs import Run, RunConfig, records
from jaxalign.training.core.state import TrainState
from jaxalign.training.rl import on_policy_run
from jaxalign.training.sft import SFTConfig

SCORES = [4.0, 1.0, 2.0, 6.0, 8.0, 1.0, 5.0]
GAPS = [0.0, 3.0, 2.0, -5.0, -4.0, -6.0, 0.5]


def rates(number):
    return {"policy/learning_rate": 1.0 / number, "objective/kl_coefficient": 0.1 * number}


class Killed(Exception):
    """Stands for what leaves no time to save."""


def updated(folder, monkeypatch, *, resume=False, killed=0, **changes):
    """The records of a trainer whose scores are known, and what it returns; it is killed in one update, if any."""
    monkeypatch.setattr(
        on_policy_run, "evaluate_policy", lambda trainer, number: {"eval/score": float(number)}
    )
    monkeypatch.setattr(on_policy_run, "truncation_warning", lambda config: "")
    run_config = RunConfig(
        output=str(folder), log_every=3, save_every=2, resume=resume, progress=False, **changes
    )
    trainer = SimpleNamespace(noted={}, number=0)

    def update(number):
        if number == killed:
            raise Killed
        trainer.number = number
        metrics = {"objective/score": SCORES[number - 1], "policy/gap_max": GAPS[number - 1]}
        metrics["rollout/logp_gap"] = GAPS[number - 1]
        # Not all updates measure everything.
        found = {"policy/rare": float(number)} if number % 2 else {}
        return metrics | found | {"time/tokens_per_second": 1.0}, []

    with Run.open(run_config, SFTConfig(run=run_config), "ppo") as run:
        vars(trainer).update(
            run=run,
            mesh=make_mesh(MeshConfig()),
            config=SimpleNamespace(
                run=run_config,
                train=SimpleNamespace(updates=len(SCORES), prompts=4, epochs=2, minibatches=1),
                sampling=SamplingConfig(),
            ),
            generator=SimpleNamespace(close=lambda: None),
            prompts=SimpleNamespace(per_epoch=2.5),
            state=TrainState(jnp.int32(0), {"policy": jnp.zeros(3)}, {}),
            update=update,
            learning_rates=lambda: rates(trainer.number),
            warn_of_collapse=lambda number, metrics: None,
            extra=dict,
            restore=lambda state, extra: None,
        )
        with pytest.raises(Killed) if killed else nullcontext():
            final = on_policy_run.run_updates(trainer)
            return list(records.read(folder / "metrics.jsonl")), final
    return [], {}


def test_a_record_is_the_mean_over_its_updates_and_a_resumed_run_logs_the_same(tmp_path, monkeypatch):
    rows, final = updated(tmp_path / "whole", monkeypatch)
    # After the first update, every third, and the last.
    assert [(row["step"], row["objective/score"]) for row in rows] == [(1, 4.0), (3, 1.5), (6, 5.0), (7, 5.0)]
    assert [row["policy/gap_max"] for row in rows] == [0.0, 3.0, -4.0, 0.5]
    assert [row["rollout/logp_gap"] for row in rows] == [0.0, 3.0, -4.0, 0.5]
    # A mean over the updates that have it, and the last of what is set.
    assert [row["policy/rare"] for row in rows] == [1.0, 3.0, 5.0, 7.0]
    assert [row["policy/learning_rate"] for row in rows] == [1.0, 1 / 3, 1 / 6, 1 / 7]
    assert [row["objective/kl_coefficient"] for row in rows] == pytest.approx([0.1, 0.3, 0.6, 0.7])
    assert final == {k: v for k, v in rows[-1].items() if k != "step"}
    # Saved after the fourth, whose record was still to come.
    updated(tmp_path / "halves", monkeypatch, killed=5)
    assert updated(tmp_path / "halves", monkeypatch, resume=True)[0] == rows


def test_a_run_of_updates_says_how_long_it_is(tmp_path, monkeypatch):
    updated(tmp_path, monkeypatch)
    log = (tmp_path / "run.log").read_text()
    assert (
        "train: 7 updates of 4 prompts x 1 completions, 2 optimizer steps each; 2.5 per epoch; 3 trainable"
        in log
    )
    assert log.index("compiling sampling, scoring") < log.index(
        "first update (including compilation) finished in "
    )


def test_updates_are_profiled_by_their_numbers(tmp_path, monkeypatch):
    updated(tmp_path / "run", monkeypatch, profile_steps="6:6")
    assert len(list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))) == 1
    assert "profile: steps 6 to 6: " in (tmp_path / "run" / "run.log").read_text()
