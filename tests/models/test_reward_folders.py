"""An ensemble's folder is written whole, and each member loads alone."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.errors import ModelError


@pytest.fixture
def members(tiny_model_folder):
    base = models.load_pretrained(tiny_model_folder)
    return [models.create_scalar_model(base, key=jax.random.key(seed)) for seed in (1, 2)]


def scores(model):
    return model(jnp.arange(12).reshape(2, 6), lengths=jnp.asarray([6, 4]))


@pytest.mark.long
def test_members_come_back_in_order_together_and_alone(members, byte_tokenizer, tmp_path):
    folder = models.save_reward_ensemble(members, tmp_path / "saved", tokenizer=byte_tokenizer)
    assert sorted(p.name for p in folder.iterdir()) == ["ensemble.json", "member-0", "member-1"]
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]
    assert models.is_reward_ensemble(folder)
    assert not models.is_reward_ensemble(folder / "member-0")
    for index, again in enumerate(models.load_reward_ensemble(folder)):
        alone = models.load_reward_model(folder / f"member-{index}")
        np.testing.assert_array_equal(scores(again), scores(members[index]))
        np.testing.assert_array_equal(scores(alone), scores(members[index]))
        assert len(models.load_tokenizer(folder / f"member-{index}")) == len(byte_tokenizer)
    assert not np.allclose(scores(members[0]), scores(members[1]))


def test_a_failed_save_leaves_the_old_ensemble(members, tmp_path, monkeypatch):
    models.save_reward_ensemble(members, tmp_path / "saved")
    plain, written = models.reward_folders.save_reward_model, []

    def full(*arguments, **options):
        if written:
            raise OSError(28, "No space left on device")
        written.append(1)
        return plain(*arguments, **options)

    monkeypatch.setattr("jaxalign.models.reward_folders.save_reward_model", full)
    with pytest.raises(OSError, match="No space"):
        models.save_reward_ensemble(members[::-1], tmp_path / "saved")
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]
    first = models.load_reward_ensemble(tmp_path / "saved")[0]
    np.testing.assert_array_equal(scores(first), scores(members[0]))


@pytest.mark.parametrize("load", [models.load_reward_model, models.load_pretrained, models.load_tokenizer])
def test_an_ensemble_where_one_model_is_expected_is_named(load, members, tmp_path):
    models.save_reward_ensemble(members, tmp_path / "saved")
    with pytest.raises(ModelError, match=r"saved: expected one model, .*/saved/member-0$"):
        load(tmp_path / "saved")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("{", r'expected \{"members"'),
        ('{"parts": []}', r'expected \{"members"'),
        ('{"members": 3}', r'expected \{"members"'),
        ('{"members": []}', "no members"),
        ('{"members": ["member-0", "member-7"]}', "no such folder: .*member-7$"),
    ],
)
def test_a_wrong_ensemble_file_is_named(body, expected, members, tmp_path):
    models.save_reward_ensemble(members, tmp_path / "saved")
    (tmp_path / "saved" / "ensemble.json").write_text(body)
    with pytest.raises(ModelError, match=f"ensemble.json: {expected}"):
        models.load_reward_ensemble(tmp_path / "saved")


def test_a_folder_of_another_kind_is_neither_read_nor_replaced(members, tmp_path):
    models.save_reward_model(members[0], tmp_path / "one")
    with pytest.raises(ModelError, match=r"one: no ensemble\.json; expected a reward ensemble"):
        models.load_reward_ensemble(tmp_path / "one")
    with pytest.raises(ModelError, match=r"has no ensemble\.json; nothing was replaced"):
        models.save_reward_ensemble(members, tmp_path / "one")
    assert json.loads((tmp_path / "one" / "config.json").read_text())["num_labels"] == 1
