"""`jaxalign generate` and `chat` on a mesh: what one device writes, from parts of the weights."""

import jax
import numpy as np
import pytest

from jaxalign.cli import main as cli
from jaxalign.cli.chat import ChatConfig, chat
from jaxalign.inference.generate import GenerateConfig, generate
from jaxalign.inference.loading import load_speaker
from jaxalign.llmdoctor import GuideConfig
from jaxalign.mesh import MeshConfig
from jaxalign.models.memory import bytes_a_device, bytes_of, sized
from jaxalign.rollout import SamplingConfig, decode

GREEDY = SamplingConfig(max_new_tokens=6, temperature=0.0, stop_tokens=())
MESHES = [MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2)]
# Three rows, which no mesh here divides.
PROMPTS = ("one", "two and three", "four")


@pytest.fixture
def doctors(make_doctor):
    """A doctor with weights of its own, and two adapters on the patient."""
    kind = make_doctor("kind", reference="")
    return (
        str(kind),
        *(str(make_doctor(name, seed=seed, adapter=True)) for name, seed in (("safe", 2), ("short", 3))),
    )


def written(**settings):
    rows = generate(GenerateConfig(prompt=PROMPTS, sampling=GREEDY, **settings))
    return [row["completion"] for row in rows], [row["logp"] for row in rows]


def compare(one, many):
    assert many[0] == one[0]
    np.testing.assert_allclose(many[1], one[1], atol=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_mesh_writes_what_one_device_writes(mesh, tiny_model_folder, capsys):
    settings = {"model": str(tiny_model_folder)}
    compare(written(**settings), written(mesh=mesh, **settings))
    said = capsys.readouterr().err
    assert f"devices: 8 of 8 cpu: mesh data={mesh.data}" in said


@pytest.mark.long
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_mesh_writes_what_one_device_writes_with_doctors(mesh, doctors):
    settings = {"doctor": doctors, "beta": 1.0}
    compare(written(**settings), written(mesh=mesh, **settings))


def test_rows_are_split_over_the_devices_that_share_them(tiny_model_folder, monkeypatch):
    seen, block = [], decode.decode_block

    def watched(definition, weights, cache, *args, **options):
        found = block(definition, weights, cache, *args, **options)
        rows = (args[0], found[0].keys[0], found[0].values[-1])
        seen.append([x.sharding.shard_shape(x.shape)[0] / x.shape[0] for x in rows])
        return found

    monkeypatch.setattr(decode, "decode_block", watched)
    written(model=str(tiny_model_folder), mesh=MeshConfig(data=4, tensor=2))
    assert all(parts == [1 / 4] * 3 for parts in seen)


@pytest.mark.parametrize("weights", ["same", "int8"])
def test_no_device_holds_all_of_patient_or_doctors(weights, doctors):
    lines = []
    chat_model = load_speaker(
        "",
        guide=GuideConfig(doctor=doctors),
        weights=weights,
        mesh=MeshConfig(fsdp=4, tensor=2),
        tell=lines.append,
    )
    params = chat_model.sampler.params
    parts = {"patient": params["patient"]} | {
        f"doctor {i}": p["base"] for i, p in enumerate(params["experts"])
    }
    for name, tree in parts.items():
        assert bytes_a_device(tree) < 0.35 * bytes_of(tree), name
        matrices = [x for x in jax.tree.leaves(tree["layers"]) if x.ndim == 3 and min(x.shape[1:]) > 1]
        assert matrices
        for x in matrices:
            assert x.addressable_shards[0].data.size == x.size / 8
    assert f", {sized(bytes_a_device(params['patient']))} a device)" in lines[0]
    assert lines[1].startswith("doctors: kind, safe, short (")


@pytest.mark.long
def test_chat_answers_on_a_mesh_as_on_one_device(tiny_model_folder):
    answers = []
    for mesh in (MeshConfig(), MeshConfig(data=2, fsdp=4)):
        config = ChatConfig(model=str(tiny_model_folder), sampling=GREEDY, mesh=mesh)
        answers.append([])
        chat(config, lines=["hello", "and?"], write=answers[-1].append)
    assert answers[0] == answers[1]
    assert len(answers[0]) == 2


def test_a_mesh_of_more_devices_than_there_are_gets_one_line(tiny_model_folder, capsys):
    assert cli.main(["generate", str(tiny_model_folder), "--prompt=one", "--mesh.fsdp=16"]) == 2
    assert "(1, 16, 1, 1, 1) needs 16 devices, but there are 8" in capsys.readouterr().err
