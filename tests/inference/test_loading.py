"""Where what `load_speaker` loads ends its answers."""

import json
import shutil

import jax
import pytest

from jaxalign import llmdoctor, models
from jaxalign.inference.loading import UntilTexts, load_speaker

# Of the tokenizer of bytes: `<pad>` ends a turn here, as it is the only special token that is free.
EOS, END = 257, 258
TEMPLATE = (
    "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}<pad>\n{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)


@pytest.fixture
def base(tiny_model_folder, tmp_path):
    """A base model with a chat template; its files name token 5 as the end of text, its tokenizer `</s>`."""
    folder = shutil.copytree(tiny_model_folder, tmp_path / "base")
    words = models.load_tokenizer(folder)
    words.chat_template = TEMPLATE
    words.save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        fields = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(fields | {"eos_token_id": 5}))
    return folder


@pytest.mark.parametrize(
    ("template", "ends"),
    [("auto", (5, EOS, END)), ("tokenizer", (5, EOS, END)), ("plain", (5, EOS)), ("markers", (5, EOS))],
)
def test_a_folder_stops_by_its_files_its_tokenizer_and_the_template_in_use(base, template, ends):
    assert load_speaker(str(base), template=template).sampler.config.eos_ids == ends


def test_a_run_of_older_exports_stops_where_it_taught_to(base, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    base.rename(run / "export")
    (run / "metadata.json").write_text("{}")
    (run / "config.yaml").write_text("data: {template: markers, end_token: 'A'}")
    chat_model = load_speaker(str(run))
    assert chat_model.sampler.config.eos_ids == (5, EOS, chat_model.tokenizer.get_vocab()["A"])


def test_a_tokenizer_without_an_end_of_sequence_token_stops_by_the_rest(base):
    config = json.loads((base / "tokenizer_config.json").read_text())
    config["eos_token"] = None
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_speaker(str(base)).sampler.config.eos_ids == (5, END)


def test_what_ends_a_doctors_run_ends_its_patient(base, make_doctor):
    run = make_doctor("kind", patient=str(base))
    (run / "metadata.json").write_text("{}")
    (run / "config.yaml").write_text("data: {template: markers, end_token: 'A'}")
    chat_model = load_speaker("", guide=llmdoctor.GuideConfig(doctor=(str(run),)))
    assert chat_model.sampler.config.eos_ids == (5, EOS, chat_model.tokenizer.get_vocab()["A"])


def test_completions_end_at_texts_and_are_cut_there(tiny_model_folder):
    chat_model = load_speaker(str(tiny_model_folder), template="plain")
    prompts = [chat_model.encode(text) for text in ("one", "two", "three")]

    def generated(on_tokens=None):
        return chat_model.sampler.generate(
            prompts, max_new_tokens=12, key=jax.random.key(0), stop_tokens=(), on_tokens=on_tokens
        )

    chat_model.sampler.block = 2
    free = generated()
    whole = [chat_model.continuation(*pair) for pair in zip(prompts, free.token_lists(), strict=True)]
    ends = [(whole[0][3:5], whole[0][7:9]), (), ("no such text",)]
    until = UntilTexts(chat_model, prompts, ends)
    done = generated(until)
    # Of several texts the first counts, also where all of them stand in the completion.
    assert until.cut(done) == until.cut(free) == [whole[0][:3], *whole[1:]]
    assert done.lengths[0] < free.lengths[0] and done.lengths[1:].tolist() == free.lengths[1:].tolist()


def test_texts_that_end_a_prompts_completions_end_each_of_its_samples_by_itself(tiny_model_folder):
    chat_model = load_speaker(str(tiny_model_folder), template="plain")
    prompts = [chat_model.encode(text) for text in ("one", "two")]

    def generated(on_tokens=None):
        return chat_model.sampler.generate(
            prompts,
            max_new_tokens=12,
            key=jax.random.key(0),
            stop_tokens=(),
            num_samples=2,
            on_tokens=on_tokens,
        )

    whole = UntilTexts(chat_model, prompts, [(), ()], copies=2).cut(generated())
    until = UntilTexts(chat_model, prompts, [(), (whole[3][2:4],)], copies=2)
    cut = until.cut(generated(until))
    assert cut[:2] == whole[:2] and cut[3] == whole[3][:2]
