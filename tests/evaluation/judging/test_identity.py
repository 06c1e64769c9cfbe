"""A judge that is the model it judges is seen, by whatever name it comes."""

import pytest

from jaxalign.evaluation.judging.identity import ModelSource, same_model


def at(base_url, model="judge"):
    return ModelSource(base_url=base_url, model=model)


def test_a_folder_is_itself_whatever_leads_there(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    model = ModelSource(path=str(tmp_path / "model"))
    for path in ("model", "model/", "./other/../model", "link"):
        assert same_model(model, ModelSource(path=path))
    assert not same_model(model, ModelSource(path="other"))


def test_hub_ids_are_compared_as_they_are():
    assert same_model(ModelSource(path="owner/name"), ModelSource(path="owner/name"))
    assert not same_model(ModelSource(path="owner/name"), ModelSource(path="owner/name-it"))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://localhost:8000/v1", "http://127.0.0.1:8000/v1/", True),
        ("http://localhost:8000/v1", "http://localhost:8000", True),
        ("https://API.openai.com/v1", "https://api.openai.com:443/v1", True),
        ("http://localhost:8000/v1", "http://localhost:8001/v1", False),
        ("https://one.example/v1", "https://two.example/v1", False),
        ("https://one.example/a/v1", "https://one.example/b/v1", False),
    ],
)
def test_an_endpoint_is_one_however_it_is_written(one, other, same):
    assert same_model(at(one), at(other)) == same_model(at(other), at(one)) == same


def test_two_models_of_one_endpoint_are_two():
    assert not same_model(at("http://localhost:8000/v1"), at("http://localhost:8000/v1", "policy"))


def test_a_server_names_a_model_by_its_path(tmp_path):
    policy = ModelSource(path=str(tmp_path))
    assert same_model(policy, at("http://localhost:8000/v1", f"{tmp_path}/"))
    assert same_model(at("http://localhost:8000/v1", "owner/name"), ModelSource(path="owner/name"))
    assert not same_model(policy, at("http://localhost:8000/v1", "judge"))


@pytest.mark.parametrize(
    "arguments",
    [{}, {"path": "a", "base_url": "http://b", "model": "c"}, {"base_url": "http://b"}, {"model": "c"}],
)
def test_a_source_is_a_path_or_an_endpoint(arguments):
    with pytest.raises(ValueError, match="either a path, or base_url and model"):
        ModelSource(**arguments)
