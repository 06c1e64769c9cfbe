"""When `benchmarks/growth.py` goes on with what is there."""

import json

import pytest


@pytest.fixture
def growth(benchmark):
    return benchmark("growth")


def stored(growth, path, *, whole=False, **changes):
    """A file as the script leaves it, after one point or at the end."""
    points = {name: [{"at": a} for a in at] for name, at in growth.CURVES.items()}
    found = growth.begin(path, again=True)
    found["points"] = points if whole else {"length": points["length"][:1]}
    for name, value in changes.items():
        found["machine"][name] = value
    path.write_text(json.dumps(found))
    return json.loads(path.read_text())


def test_curves_that_were_begun_here_are_gone_on_with(growth, tmp_path):
    path = tmp_path / "growth.json"
    old = stored(growth, path, date="2020-01-01")
    assert growth.begin(path, again=False) == old
    assert growth.begin(path, again=True)["points"] == {}


@pytest.mark.parametrize("changes", [{"commit": "other"}, {"cpu": "other"}, {"cores": 99}])
def test_curves_are_not_put_together_from_two_machines_or_commits(growth, tmp_path, capsys, changes):
    path = tmp_path / "growth.json"
    stored(growth, path, **changes)
    assert growth.begin(path, again=False)["points"] == {}
    assert "begun on another machine, version or commit" in capsys.readouterr().out


def test_curves_that_are_whole_stand_whatever_measured_them(growth, tmp_path, capsys):
    path = tmp_path / "growth.json"
    old = stored(growth, path, whole=True, commit="other")
    assert growth.begin(path, again=False) == old
    assert "there already, of commit other" in capsys.readouterr().out


def test_other_curves_are_measured_again(growth, tmp_path, monkeypatch):
    path = tmp_path / "growth.json"
    stored(growth, path, whole=True)
    monkeypatch.setitem(growth.CURVES, "rows", (1, 2))
    assert growth.begin(path, again=False)["points"] == {}
