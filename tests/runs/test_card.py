"""A model card says what was made of what, and no more than was measured."""

import pytest
import yaml

from jaxalign.runs.card import CardFacts, model_card

METADATA = {
    "command": "dpo",
    "seed": 3,
    "arguments": ["dpo", "--model.path=owner/base", "--data.train=a b.jsonl"],
    "config": {
        "loss": {"name": "ipo"},
        "lora": {"enabled": True},
        "data": {"train": ["owner/pairs:default@main#train", "a b.jsonl"], "validation": ["held.jsonl"]},
    },
    "data": {
        "read": 50,
        "used": 40,
        "filtered": {"too long": 10},
        "truncated": 2,
        "train_rows": 36,
        "validation_rows": 4,
    },
    "versions": {"jaxalign": "0.1.0", "jax": "0.10.2"},
    "python": "3.11.7",
    "backend": "cpu",
}
MEASURED = {
    "eval/accuracy": 0.75,
    "eval/accuracy_low": 0.3,
    "eval/accuracy_high": 0.95,
    "eval/margin": 0.123456,
    "train/loss": 9.0,
    "time/seconds": 3.0,
}


def card(metadata=METADATA, **changes):
    facts = {
        "run": "first",
        "step": 40,
        "form": "model",
        "metrics": MEASURED,
        "dtype": "bfloat16",
        "base": "owner/base",
        "settings": {"loss.name": "ipo", "run.output": "x", "data.train": ["secret"]},
    }
    return model_card(metadata, CardFacts(**(facts | changes)))


def front(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_the_front_matter_names_what_lies_on_the_hub_and_nothing_else(tmp_path):
    said = front(card())
    assert said == {
        "library_name": "transformers",
        "base_model": "owner/base",
        "base_model_relation": "finetune",
        "pipeline_tag": "text-generation",
        "tags": ["jaxalign", "dpo", "lora"],
        "datasets": ["owner/pairs"],
    }
    assert front(card(form="adapter"))["base_model_relation"] == "adapter"
    assert front(card(form="adapter"))["library_name"] == "peft"
    assert "base_model" not in front(card(base=str(tmp_path))) | front(card(base=""))
    scores = front(card({**METADATA, "command": "reward"}, form="reward"))
    assert scores["pipeline_tag"] == "text-classification" and "reward-model" in scores["tags"]


def test_a_card_has_command_data_settings_metrics_and_versions():
    text = card()
    assert "aligned to preferences with ipo, exported at step 40 in bfloat16" in text
    assert "jaxalign dpo --model.path=owner/base '--data.train=a b.jsonl'" in text and "seed 3" in text
    assert "| `loss.name` | `ipo` |" in text
    assert "run.output" not in text and "secret" not in text
    assert "- `held.jsonl`" in text
    assert (
        "50 rows read, 40 used; dropped: 10 too long; 2 cut to length. 36 training examples, 4 held out."
        in text
    )
    assert "| eval/accuracy | 0.75 | 0.3 to 0.95 |" in text and "| eval/margin | 0.1235 |  |" in text
    assert "train/loss" not in text and "time/seconds" not in text
    assert "jax 0.10.2, Python 3.11.7, on cpu" in text


def test_a_card_claims_nothing_that_was_not_measured():
    text = card(metrics={"train/loss": 1.0})
    assert "This checkpoint was not evaluated." in text and "accuracy" not in text
    assert "license" not in front(text) and "This card states no license" in text


@pytest.mark.parametrize(
    ("metadata", "form", "said"),
    [
        ({"command": "tfpo"}, "model", "A doctor: a language model that guides a larger frozen one"),
        ({"command": "reward", "config": {"loss": {"labels": "steps"}}}, "reward", "A process reward model"),
        (
            {"command": "reward", "config": {"ensemble": {"size": 3}}},
            "ensemble",
            "an ensemble of 3, one per folder",
        ),
        ({"config": {"model": {"random_init": True}}}, "model", "It was trained from random weights"),
        ({"arguments": ["train.py"]}, "model", "dpo, called from Python"),
        ({"config": {}}, "model", "rows passed from Python"),
    ],
)
def test_a_card_says_what_kind_of_model_it_is(metadata, form, said):
    assert said in card(METADATA | metadata, form=form)
