"""`jaxalign generate` and `chat` with doctors."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

from jaxalign import models
from jaxalign.cli import main as cli
from jaxalign.cli.chat import ChatConfig, chat
from jaxalign.errors import ConfigError, UserError
from jaxalign.inference.generate import GenerateConfig, generate
from jaxalign.inference.loading import load_speaker
from jaxalign.llmdoctor import GuideConfig
from jaxalign.rollout import SamplingConfig

SHORT = SamplingConfig(max_new_tokens=6)
PROMPTS = ("one", "two", "three")


def written(**settings):
    """(completion, logp) of each prompt."""
    rows = generate(GenerateConfig(prompt=PROMPTS, sampling=SHORT, **settings))
    return [(row["completion"], row["logp"]) for row in rows]


@pytest.mark.long
def test_a_doctor_and_prompts_suffice(make_doctor, tmp_path):
    out = tmp_path / "out.jsonl"
    arguments = ["--doctor", str(make_doctor("kind")), "--prompt=[one, two, three]"]
    assert cli.main(["generate", *arguments, "--sampling.max_new_tokens=6", "--output", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == list(PROMPTS)
    assert all(1 <= row["tokens"] <= 6 for row in rows)


def test_with_beta_0_the_patient_writes_and_with_more_it_is_steered(make_doctor, tiny_model_folder):
    doctor = (str(make_doctor("kind")),)
    patient = written(model=str(tiny_model_folder))
    assert written(doctor=doctor, beta=0.0) == patient
    assert written(doctor=doctor, beta=3.0) != patient


@pytest.mark.long
def test_preference_weights_change_what_is_written(make_doctor):
    doctors = (str(make_doctor("kind")), str(make_doctor("safe", seed=2)))
    alone = written(doctor=doctors[1:], beta=3.0)
    weighed = [
        written(doctor=doctors, beta=3.0, preference_weights={"kind": 1.0 - w, "safe": w}) for w in (0.0, 1.0)
    ]
    assert weighed[0] != weighed[1]
    assert weighed[1] == alone


def test_the_model_is_the_patient(make_doctor, tiny_model_folder):
    doctor, other = (str(make_doctor("kind", patient="gone")),), make_doctor("other", seed=5)
    named = [written(doctor=doctor, **{key: str(tiny_model_folder)}) for key in ("model", "patient")]
    assert named[0] == named[1] != written(doctor=doctor, model=str(other))
    with pytest.raises(ConfigError, match=r"--model=.* and --patient=other: both name the patient"):
        written(doctor=doctor, model=str(tiny_model_folder), patient="other")


@pytest.mark.slow
def test_an_adapter_is_merged_into_the_patient_alone(make_doctor, tiny_model_folder):
    run = make_doctor("kind", adapter=True)
    chat_model = load_speaker("", adapter=str(run / "adapter"), guide=GuideConfig(doctor=(str(run),)))
    params, merged = chat_model.sampler.params, models.load_pretrained(run / "export").params
    np.testing.assert_allclose(params["patient"]["layers"]["q_proj"], merged["layers"]["q_proj"], atol=1e-6)
    # Not the adapted patient under the doctor's adapter.
    assert "adapters" not in params["experts"][0]
    np.testing.assert_array_equal(
        params["experts"][0]["base"]["layers"]["q_proj"], merged["layers"]["q_proj"]
    )


@pytest.mark.slow
def test_8_bit_weights_are_those_of_the_patient(make_doctor):
    params = load_speaker(
        "", weights="int8", guide=GuideConfig(doctor=(str(make_doctor("kind")),))
    ).sampler.params
    kinds = [type(part["layers"]["q_proj"]) for part in (params["patient"], params["experts"][0]["base"])]
    assert kinds[0] is models.Int8
    assert kinds[1] is not models.Int8


def test_context_is_the_smallest(make_doctor, tiny_model_folder):
    run = make_doctor("kind")
    shape = json.loads((run / "export" / "config.json").read_text())
    (run / "export" / "config.json").write_text(json.dumps(shape | {"max_position_embeddings": 40}))
    assert load_speaker("", guide=GuideConfig(doctor=(str(run),))).context == 40
    assert load_speaker(str(tiny_model_folder)).context == 64


def test_prompts_are_written_as_in_the_run_of_the_doctor(make_doctor):
    run = make_doctor("kind")
    (run / "metadata.json").write_text("{}")
    (run / "config.yaml").write_text(
        yaml.safe_dump({"data": {"template": "markers", "human": "Q:", "assistant": "A:"}})
    )
    for folder in (run, run / "export"):
        chat_model = load_speaker("", guide=GuideConfig(doctor=(str(folder),)))
        assert chat_model.tokenizer.decode(chat_model.encode("hi")) == "Q: hiA:"


def test_a_conversation_with_a_doctor(make_doctor):
    said = {}
    for beta in (0.0, 3.0):
        config = ChatConfig(doctor=(str(make_doctor(f"kind{beta}")),), beta=beta, sampling=SHORT)
        said[beta] = []
        chat(config, lines=["one\n", "/quit\n"], write=said[beta].append)
        assert len(said[beta]) == 1
    assert said[0.0] != said[3.0]


def test_a_mistake_gets_one_line_and_status_2(make_doctor, tiny_model_folder, capsys):
    doctor = str(make_doctor("kind"))
    for arguments, words in (
        (["--doctor", doctor, "--preference-weights", '{"kind": -1}'], "preference_weights.kind must be"),
        (["--doctor", doctor, "--preference-weights", '{"safe": 1}'], "no doctor of 'safe'"),
        (["--doctor", str(tiny_model_folder)], "no doctor.json"),
        (["--beta=1", "--model", str(tiny_model_folder)], "beta needs doctors"),
    ):
        assert cli.main(["generate", "--prompt=one", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


def test_numbers_of_the_command_itself_are_still_checked():
    with pytest.raises(ValueError, match="batch_size"):
        replace(GenerateConfig(), batch_size=0)
    with pytest.raises(UserError, match="expected --prompt"):
        generate(GenerateConfig(doctor=("d",)))
