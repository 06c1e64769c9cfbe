"""What a run teaches as the end of a turn stops everything after it: samples, the next run, generate, chat, others."""

import json
from contextlib import contextmanager
from dataclasses import replace

import jax
import pytest

from jaxalign import llmdoctor, models
from jaxalign.cli.chat import ChatConfig, chat
from jaxalign.data import DataConfig
from jaxalign.inference.generate import GenerateConfig, generate
from jaxalign.llmdoctor.tfpo import train_tfpo
from jaxalign.rollout import EngineConfig, Sampler, SamplingConfig
from jaxalign.runs import RunConfig, records
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.core.stops import with_stops
from jaxalign.training.preference.dpo import DPOConfig, train_dpo
from jaxalign.training.rl.grpo import train_grpo
from jaxalign.training.rl.grpo_config import GRPOConfig, GRPOTrainConfig
from jaxalign.training.rl.on_policy_config import RolloutConfig
from jaxalign.training.rl.online_dpo import OnlineDPOConfig, train_online_dpo
from jaxalign.training.rl.ppo import train_ppo
from jaxalign.training.rl.ppo_config import CriticConfig, PPOConfig, PPOTrainConfig
from jaxalign.training.sft import SFTConfig, train_sft
from tests.rollout.stub_server import StubServer

END, EOS = 259, 257
TEMPLATE = (
    "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)
ANSWERS = {"ab?": "yes", "cd?": "never"}
GREEDY = SamplingConfig(max_new_tokens=16, temperature=0.0)


@pytest.fixture(scope="module")
def base(tiny_model_folder, tmp_path_factory):
    """A base model as many are published: its chat template ends turns, its files name another end of text."""
    tokenizer = models.load_tokenizer(tiny_model_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.chat_template = TEMPLATE
    config = models.ModelConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        max_positions=64,
        bos_id=256,
        eos_ids=(EOS,),
        pad_id=258,
    )
    folder = tmp_path_factory.mktemp("base") / "model"
    models.save_pretrained(models.create(config, key=jax.random.key(0)), folder, tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in ANSWERS.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(train=(str(path),), max_length=40, validation_fraction=0.0)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"prompt": q, "chosen": a, "rejected": a[::-1]} for q, a in ANSWERS.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(train=(str(path),), max_length=40, validation_fraction=0.0)


def run_of(output, **changes):
    return RunConfig(output=str(output), log_every=1, progress=False, save_every=0, **changes)


def common(base, data):
    return {
        "model": ModelSource(path=str(base)),
        "data": data,
        "optimizer": OptimizerConfig(learning_rate=1e-2, warmup_steps=5),
    }


@contextmanager
def finished():
    """Why each completion ended that is sampled from now on."""
    reasons, plain = [], Sampler.generate

    def generate(self, prompts, **arguments):
        done = plain(self, prompts, **arguments)
        reasons.extend(done.finish_reason)
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "generate", generate)
        yield reasons


@pytest.fixture(scope="module")
def sft(base, chats, tmp_path_factory):
    """The run of a base model that has learnt to answer, and to end its turn; and why its last samples ended."""
    output = tmp_path_factory.mktemp("runs") / "sft"
    train = TrainConfig(batch_size=2, steps=120)
    run = run_of(output, sample_every=120)
    with finished() as reasons:
        train_sft(SFTConfig(run=run, train=train, sampling=GREEDY, **common(base, chats)))
    return output, reasons[-2:]


@pytest.fixture(scope="module")
def taught(sft):
    return sft[0]


def ends_of(export):
    """The end tokens of both files of an export."""
    return [
        json.loads((export / name).read_text())["eos_token_id"]
        for name in ("generation_config.json", "config.json")
    ]


def length_rewarded(prompts, completions, *, completion_ids, columns):
    del prompts, completions, columns
    return [float(sum(ids)) for ids in completion_ids]


def ppo_of(output, base, data, **changes):
    parts = {
        "train": PPOTrainConfig(updates=1, prompts=2, score_batch_size=4, eval_prompts=0),
        "critic": CriticConfig(),
        "sampling": SamplingConfig(max_new_tokens=12, num_samples=2, temperature=0.3),
    }
    return PPOConfig(run=run_of(output), **(common(base, data) | parts | changes))


@pytest.mark.long
def test_a_run_exports_the_end_that_it_taught(taught):
    assert ends_of(taught / "export") == [[EOS, END], [EOS, END]]
    from transformers import GenerationConfig

    assert GenerationConfig.from_pretrained(taught / "export").eos_token_id == [EOS, END]


def test_samples_of_a_run_stop_where_it_teaches_to(sft):
    folder, reasons = sft
    last = [row["completion"] for row in records.read(folder / "samples.jsonl") if row["step"] == 120]
    assert last == list(ANSWERS.values())
    assert reasons == ["stop", "stop"]


def test_generate_stops_after_a_run(taught):
    rows = generate(GenerateConfig(model=str(taught), prompt=tuple(ANSWERS), sampling=GREEDY))
    assert [(row["completion"], row["finish_reason"]) for row in rows] == [
        (answer, "stop") for answer in ANSWERS.values()
    ]


@pytest.mark.long
def test_generate_stops_a_base_with_the_adapter_of_a_run(base, chats, tmp_path):
    config = SFTConfig(
        run=run_of(tmp_path / "run"),
        train=TrainConfig(batch_size=2, steps=1),
        lora=models.LoraConfig(enabled=True, rank=2),
        sampling=GREEDY,
        **common(base, replace(chats, template="markers", end_token="~")),
    )
    train_sft(config)
    from jaxalign.inference.loading import load_speaker

    speaker = load_speaker(str(base), adapter=str(tmp_path / "run" / "adapter"))
    end = speaker.tokenizer.convert_tokens_to_ids("~")
    assert speaker.sampler.config.eos_ids == (EOS, end, END)
    assert ends_of(tmp_path / "run" / "export")[0] == [EOS, end]


def test_chat_stops_after_a_run(taught):
    said = []
    with finished() as reasons:
        chat(
            ChatConfig(model=str(taught), sampling=GREEDY), lines=["ab?", "/reset", "cd?"], write=said.append
        )
    assert said == list(ANSWERS.values())
    assert reasons == ["stop", "stop"]


@pytest.mark.long
def test_ppo_stops_on_the_export_of_a_run(taught, chats, tmp_path):
    result = train_ppo(ppo_of(tmp_path / "ppo", taught, chats), reward=length_rewarded)
    assert result.metrics["rollout/stop_rate"] == 1.0
    assert ends_of(tmp_path / "ppo" / "export")[0] == [EOS, END]


def test_other_programs_stop_on_the_export_of_a_run(taught):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(taught / "export")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    for question, answer in ANSWERS.items():
        turns = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
        assert tokenizer.decode(out[0, ids.shape[1] :]) == f"{answer}<|im_end|>"


def grpo_of(output, base, data, **changes):
    parts = {
        "train": GRPOTrainConfig(updates=1, prompts=2, score_batch_size=4, eval_prompts=0),
        "sampling": SamplingConfig(max_new_tokens=4, num_samples=2),
    }
    return GRPOConfig(run=run_of(output), **(common(base, data) | parts | changes))


@pytest.mark.long
def test_rollouts_of_a_base_stop_at_the_end_of_its_template(base, chats, tmp_path):
    # Without a run before it that taught this.
    result = train_grpo(grpo_of(tmp_path / "grpo", base, chats), reward=length_rewarded)
    assert result.model.config.eos_ids == (EOS, END)
    assert ends_of(tmp_path / "grpo" / "export")[0] == [EOS, END]


@pytest.mark.long
@pytest.mark.parametrize(("chosen", "told"), [(None, (EOS, END)), ((7,), (7,)), ((), ())])
def test_an_engine_is_told_where_completions_end(base, chats, tmp_path, chosen, told):
    stops = []

    class Told(Sampler):
        def generate(self, prompts, **arguments):
            stops.append(tuple(arguments["stop_tokens"]))
            return super().generate(prompts, **arguments)

    config = grpo_of(tmp_path / "run", base, chats)
    config = replace(config, sampling=replace(config.sampling, stop_tokens=chosen))
    train_grpo(config, reward=length_rewarded, engine=Told(models.load_pretrained(base)))
    assert stops == [told]


@pytest.mark.long
def test_a_server_is_told_where_completions_end(base, chats, tmp_path):
    with StubServer(base) as server:
        engine = EngineConfig(kind="vllm", url=server.url, retries=0)
        config = grpo_of(tmp_path / "run", base, chats, rollout=RolloutConfig(engine=engine))
        train_grpo(config, reward=length_rewarded)
        bodies = server.bodies("/v1/completions")
    assert bodies
    assert all(body["stop_token_ids"] == [EOS, END] for body in bodies)


@pytest.mark.slow
def test_online_dpo_stops_policy_and_reference_alike(base, chats, tmp_path, monkeypatch):
    asked = []
    plain = Sampler.generate

    def generate(self, prompts, **arguments):
        asked.append(tuple(arguments["stop_tokens"]))
        return plain(self, prompts, **arguments)

    monkeypatch.setattr(Sampler, "generate", generate)
    config = OnlineDPOConfig(
        run=run_of(tmp_path / "run"),
        reference=ModelSource(path=str(base)),
        train=GRPOTrainConfig(updates=1, prompts=2, score_batch_size=4, eval_prompts=0),
        sampling=SamplingConfig(max_new_tokens=4, num_samples=2),
        **common(base, chats),
    )

    def judge(prompts, first, second, *, columns):
        del first, second, columns
        return [0.9] * len(prompts)

    result = train_online_dpo(config, judge=judge)
    assert len(asked) == 2
    assert {*asked} == {(EOS, END)}
    assert result.model.config.eos_ids == (EOS, END)


@pytest.mark.long
def test_dpo_exports_the_end_that_it_taught(base, pairs, tmp_path):
    train = TrainConfig(batch_size=2, steps=1)
    config = DPOConfig(run=run_of(tmp_path / "dpo"), train=train, sampling=GREEDY, **common(base, pairs))
    assert train_dpo(config).model.config.eos_ids == (EOS, END)
    assert ends_of(tmp_path / "dpo" / "export")[0] == [EOS, END]


@pytest.mark.long
def test_a_doctor_carries_its_end_to_a_patient_that_does_not_know_it(base, pairs, configs, tmp_path):
    config = configs.tfpo(tmp_path / "doctor", data=pairs, train=TrainConfig(batch_size=2, steps=1))
    config = replace(
        config,
        model=ModelSource(path=str(base)),
        patient=replace(config.patient, path=str(base)),
        run=run_of(tmp_path / "doctor"),
    )
    train_tfpo(config)
    assert ends_of(tmp_path / "doctor" / "export")[0] == [EOS, END]
    guided, _ = llmdoctor.load_guided(llmdoctor.GuideConfig(doctor=(str(tmp_path / "doctor"),)))
    assert guided.config.eos_ids == (EOS, END)


def test_a_live_model_gets_the_ends_of_its_tokenizer_and_data(base, chats):
    tokenizer = models.load_tokenizer(base)
    bare = models.with_config(models.load_pretrained(base), eos_ids=())
    assert with_stops(bare, chats, tokenizer).config.eos_ids == (EOS, END)
    plain = replace(chats, template="plain", end_token="none")
    assert with_stops(bare, plain, tokenizer).config.eos_ids == (EOS,)
    marked = replace(plain, template="markers", end_token="<|im_end|>")
    assert with_stops(bare, marked, tokenizer).config.eos_ids == (EOS, END)
    tokenizer.eos_token = None
    assert with_stops(bare, plain, tokenizer).config.eos_ids == ()
