"""How a run shows how far it is, on a terminal and elsewhere."""

import io
import re
import sys

import pytest

from jaxalign.errors import ConfigError
from jaxalign.runs import Run, RunConfig
from jaxalign.runs.progress import Progress
from jaxalign.training.sft import SFTConfig

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


class Terminal(io.StringIO):
    """A terminal as standard error."""

    def isatty(self):
        return True


def on_terminal(monkeypatch):
    """Standard error is a terminal now; pytest would take it back between a fixture and its test."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "50")
    return screen


def frames(screen):
    """What was written, a frame or line each, without colours."""
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", screen.getvalue())]


def test_on_a_terminal_there_is_a_bar_with_what_is_said_above_it(monkeypatch):
    terminal = on_terminal(monkeypatch)
    progress = Progress(True, "sft")
    progress.note("model: tiny")
    progress.show(1, 400, "loss", 2.5, 1234.0)
    progress.note("warning: mind this")
    print("a user's own line", file=sys.stderr)
    progress._shown = 0.0
    progress.show(100, 400, "loss", 1.25, 1234.0)
    progress.close()
    shown = frames(terminal)
    for line in ("model: tiny", "warning: mind this", "a user's own line"):
        assert line in shown
    bars = [line for line in shown if "/400" in line]
    assert "loss 2.5 · 1,234" in bars[1] and "100/400 loss 1.25" in bars[-1]
    # No wider than the terminal, so that each frame replaces the one before.
    assert max(map(len, bars)) <= 50
    # After a line the bar is drawn again.
    assert shown.index("warning: mind this") < max(i for i, line in enumerate(shown) if "  1/400" in line)
    assert sys.stderr is terminal and terminal.getvalue().count(HIDE) == terminal.getvalue().count(SHOW) == 1


def stopped(config, terminal):
    with Run.open(config.run, config, "sft") as run:
        run.progress(1, 4, "loss", 2.5, 10.0)
        assert terminal.getvalue().count(HIDE) == 1
        raise ConfigError("stop")


def test_a_run_that_is_stopped_gives_the_terminal_back(monkeypatch, tmp_path):
    terminal = on_terminal(monkeypatch)
    config = SFTConfig(run=RunConfig(output=str(tmp_path / "run")))
    with pytest.raises(ConfigError, match="stop"):
        stopped(config, terminal)
    assert terminal.getvalue().rstrip().endswith(SHOW)
    assert sys.stderr is terminal


def test_elsewhere_there_are_plain_lines_now_and_then(capsys, monkeypatch):
    progress = Progress(True, "sft")
    for step in range(1, 5):
        progress.show(step, 4, "loss", 2.5, 1234.0)
    progress.note("warning: mind this")
    assert capsys.readouterr().err == (
        "sft 1/4 · loss 2.5 · 1,234 tokens/s\nsft 4/4 · loss 2.5 · 1,234 tokens/s\nwarning: mind this\n"
    )
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "dumb")
    Progress(True, "sft").show(1, 4, "loss", 2.5, 1234.0)
    assert screen.getvalue() == "sft 1/4 · loss 2.5 · 1,234 tokens/s\n"


def test_a_progress_that_is_not_asked_for_is_silent(monkeypatch):
    terminal = on_terminal(monkeypatch)
    progress = Progress(False, "sft")
    progress.show(1, 1, "loss", 2.5, 1.0)
    progress.note("warning: mind this")
    progress.close()
    assert terminal.getvalue() == ""
