"""Profiles of named steps: what they hold, and that the profiler never stays on."""

import re

import jax
import jax.numpy as jnp
import pytest

from jaxalign.config import parse
from jaxalign.errors import ConfigError
from jaxalign.runs import Profile, Run, RunConfig
from jaxalign.training.sft import SFTConfig


def opened(folder, steps):
    config = RunConfig(output=str(folder), profile_steps=steps, progress=False)
    return Run.open(config, SFTConfig(run=config), "sft")


def traces(folder):
    return list((folder / "profile").rglob("*.xplane.pb"))


def running():
    """Whether a trace is under way: another cannot begin."""
    try:
        jax.profiler.stop_trace()
    except RuntimeError:
        return False
    return True


def steps_of(path):
    """The numbers of the steps that a trace names."""
    data = jax.profiler.ProfileData.from_file(str(path))
    events = [event for plane in data.planes for line in plane.lines for event in line.events]
    return sorted({dict(event.stats)["step_num"] for event in events if event.name == "step"})


def test_a_trace_holds_the_steps_that_were_asked_for_by_their_numbers(tmp_path):
    double = jax.jit(lambda x: 2 * x)
    with opened(tmp_path / "run", "3:4") as run, Profile(run) as profile:
        x = jnp.ones(4)
        for number in range(1, 7):
            x = profile.step(number, double, x)
    assert float(x[0]) == 64
    (trace,) = traces(tmp_path / "run")
    assert steps_of(trace) == [3, 4]
    assert "profile: steps 3 to 4: " in (tmp_path / "run" / "run.log").read_text()
    assert not running()


def test_an_exception_ends_the_trace_which_is_not_in_the_way_of_the_next_try(tmp_path):
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), opened(tmp_path / "run", "1:9") as run, Profile(run) as profile:
        profile.step(1, fail)
    assert not running() and traces(tmp_path / "run")
    with opened(tmp_path / "run", "1:9") as run:
        assert not run.resumed


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ("8:9", "run.profile_steps=8:9: the run took none of these steps; nothing was traced"),
        ("2:9", "profile: steps 2 to the end of the run, which came before that of step 9: "),
    ],
)
def test_a_range_that_the_run_does_not_reach_or_finish_is_said(steps, said, tmp_path):
    with opened(tmp_path / "run", steps) as run, Profile(run) as profile:
        for number in range(1, 4):
            profile.step(number, int)
    assert said in (tmp_path / "run" / "run.log").read_text()
    assert not running()


@pytest.mark.parametrize("steps", ["10", "10:", "5:4", "0:3", "a:b", "1:2:3", "-1:2"])
def test_a_range_that_is_none_is_refused(steps):
    with pytest.raises(ValueError, match=re.escape(f"must be first:last, such as 10:15, got '{steps}'")):
        RunConfig(profile_steps=steps)


def test_a_range_in_a_file_is_text_and_not_a_number_to_the_base_of_60(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("run:\n  profile_steps: 10:15\n  seed: 010\n  log_every: 1_0\n")
    run = parse(SFTConfig, str(file), []).run
    assert (run.profile_steps, run.seed, run.log_every) == ("10:15", 8, 10)
    with pytest.raises(ConfigError, match=r"run\.profile_steps must be first:last"):
        parse(SFTConfig, str(file), ["--run.profile_steps=15:10"])
