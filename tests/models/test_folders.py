"""What a name of a model means: a folder, a run, or a checkpoint of a run."""

import pytest

from jaxalign.errors import ModelError
from jaxalign.export import checkpoint_export
from jaxalign.models.folders import checkpoint_named, model_folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder that looks like a run, whose checkpoints are exported to a name."""
    monkeypatch.setattr(checkpoint_export, "checkpoint_folder", lambda run, name: f"{run}/exported {name}")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metadata.json").write_text("{}")
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["best", "latest", "1200"])
def test_a_checkpoint_is_exported(name, run):
    assert model_folder(f"{run}@{name}") == f"{run}/exported {name}"


def test_a_path_with_an_at_sign_that_is_there_is_itself(run):
    there = run.with_name("run@best")
    there.mkdir()
    assert checkpoint_named(str(there)) is None
    assert model_folder(str(there)) == str(there)


@pytest.mark.parametrize("path", ["owner/name", "some@folder", "@best", "me@1.5", "run@Best"])
def test_other_names_stand_for_themselves(path):
    assert model_folder(path) == path


def test_a_checkpoint_of_what_is_no_run_is_one_line(run):
    with pytest.raises(ModelError, match="nowhere is not a run folder"):
        model_folder("nowhere@best")
    with pytest.raises(ModelError, match=r"this run has no export/ yet.*run@latest"):
        model_folder(str(run))
