"""What a release is described by agrees: version, citation, changelog, workflow and templates."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import jaxalign

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEMPLATES = ROOT / ".github" / "ISSUE_TEMPLATE"


def read(path):
    return yaml.safe_load((ROOT / path).read_text())


def test_the_citation_is_of_this_version_and_license():
    citation = read("CITATION.cff")
    assert citation["cff-version"] == "1.2.0" and citation["authors"] and citation["message"]
    assert (citation["version"], citation["license"]) == (jaxalign.__version__, PROJECT["license"])
    assert citation["title"].startswith("jaxalign")


def test_the_newest_release_of_the_changelog_is_this_version():
    # A first release is not in it before it is tagged.
    first, *releases = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert first == "Unreleased"
    told = [re.fullmatch(r"(\d+\.\d+\.\d+) \((\d{4}-\d{2}-\d{2})\)", release) for release in releases]
    assert all(told), releases
    citation = read("CITATION.cff")
    assert [one.groups() for one in told[:1]] in ([], [(jaxalign.__version__, citation["date-released"])])
    numbers = [tuple(map(int, one[1].split("."))) for one in told]
    assert numbers == sorted(set(numbers), reverse=True)


def test_the_workflow_runs_what_ci_runs_on_every_python_that_is_named():
    workflow = read(".github/workflows/ci.yml")
    # YAML reads the key `on` as true.
    assert {"push", "pull_request"} <= set(workflow[True])
    (job,) = workflow["jobs"].values()
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert job["strategy"]["matrix"]["python"] == named
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_pre_commit_fetches_nothing_and_runs_the_ruff_of_make_lint():
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    entries = [hook["entry"] for hook in repository["hooks"]]
    assert [entry.split()[:2] for entry in entries] == [
        [".venv/bin/ruff", "check"],
        [".venv/bin/ruff", "format"],
    ]
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("[!c]*.yml")), ids=lambda path: path.stem)
def test_an_issue_form_is_one_that_can_be_filled_in(path):
    form = yaml.safe_load(path.read_text())
    assert form["name"] and form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))
    assert all(
        field["type"] in ("input", "textarea") and field["attributes"]["label"] for field in form["body"]
    )


def test_the_chooser_of_issues_and_the_pull_request_are_there():
    assert set(read(".github/ISSUE_TEMPLATE/config.yml")) == {"blank_issues_enabled"}
    assert {path.stem for path in TEMPLATES.iterdir()} == {"bug", "feature", "config"}
    assert "CHANGELOG" in (ROOT / ".github" / "pull_request_template.md").read_text()
