"""jaxalign's models in lm-evaluation-harness answer as the harness's own `hf` model (tests/golden/make_harness.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.tasks import TaskManager  # noqa: E402

from jaxalign.errors import UserError  # noqa: E402
from jaxalign.evaluation import harness  # noqa: E402
from jaxalign.evaluation.harness import JaxalignLM  # noqa: E402
from tests.evaluation import harness_cases as cases  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = json.loads((ROOT / "tests/golden/harness/golden.json").read_text())
# Nats of one request; log-probs go down to -1700.
NEAR = 1e-4


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("harness")
    return {name: cases.write_folder(home / name, puts_bos=name == "bos") for name in ("plain", "bos")}


@pytest.fixture(scope="module")
def include(tmp_path_factory):
    return cases.write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def model(folders):
    made = {}

    def at(name="plain", batch_size=16):
        if (name, batch_size) not in made:
            made[name, batch_size] = JaxalignLM(folders[name], dtype="float32", batch_size=batch_size)
        return made[name, batch_size]

    return at


@pytest.fixture
def evaluate(include):
    def run(model, way="plain", **options):
        manager = TaskManager(include_path=include, include_defaults=False)
        options = {"bootstrap_iters": 0} | cases.WAYS[way] | options
        return lm_eval.simple_evaluate(model=model, task_manager=manager, **options)

    return run


MODELS = pytest.mark.parametrize(
    ("name", "batch_size"), [pytest.param("plain", 1, marks=pytest.mark.long), ("plain", 16), ("bos", 16)]
)


@MODELS
def test_log_likelihoods_are_those_of_the_harness(model, name, batch_size):
    found = model(name, batch_size).loglikelihood(cases.requests(cases.LIKELIHOOD), disable_tqdm=True)
    golden = GOLDEN[name]["loglikelihood"]
    assert [logp for logp, _ in found] == pytest.approx([logp for logp, _ in golden], abs=NEAR, rel=0)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in golden]
    assert len({greedy for _, greedy in golden}) == 2


@MODELS
def test_log_probs_of_whole_texts_are_those_of_the_harness(model, name, batch_size):
    found = model(name, batch_size).loglikelihood_rolling(cases.requests(cases.ROLLING))
    # The sum over a long text's windows has more of them to be off by.
    for logp, golden, (text,) in zip(
        found, GOLDEN[name]["loglikelihood_rolling"], cases.ROLLING, strict=True
    ):
        assert logp == pytest.approx(golden, abs=NEAR * max(1, len(text) / cases.LENGTH), rel=0)


@MODELS
def test_texts_are_those_of_the_harness(model, name, batch_size):
    found = model(name, batch_size).generate_until(cases.requests(cases.GENERATION), disable_tqdm=True)
    assert found == GOLDEN[name]["generate_until"]


def test_an_answer_ends_where_the_harness_stops_whatever_the_batch_has_left(model):
    # The tokens T T T T m; "TT" is complete first, so that "TTTT" ends nothing.
    tokens = model().tokenizer.encode("TTTTm")
    assert model()._text(tokens, ["TTTT", "TT"]) == ""
    assert model()._text(tokens, ["Tm"]) == "TTT"
    assert model()._text(model().tokenizer.encode("ab") + [257], []) == "ab"
    assert model()._text([*(model().tokenizer.encode(x)[0] for x in "ab</s>c")], []) == "ab"


def test_chats_are_written_as_by_the_harness(model):
    found = [
        model().apply_chat_template(turns, add_generation_prompt=turns[-1]["role"] == "user")
        for turns in cases.TURNS
    ]
    assert found == GOLDEN["plain"]["chat"]
    assert model().chat_template(True) == cases.TEMPLATE and model().chat_template(False) is None


def test_a_chat_without_a_template_is_refused(folders, tmp_path):
    folder = Path(cases.write_folder(tmp_path / "model"))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="tokenizer has no chat template"):
        JaxalignLM(str(folder)).apply_chat_template(cases.TURNS[0])


# --- tasks ------------------------------------------------------------------------------------


def near(found, golden):
    assert found.keys() == golden.keys()
    for task, metrics in golden.items():
        assert found[task] == pytest.approx(metrics, rel=1e-4)


def test_tasks_of_the_users_own_give_the_metrics_of_the_harness(evaluate, folders):
    found = evaluate(
        "jaxalign", model_args={"pretrained": folders["plain"], "dtype": "float32"}, batch_size=16
    )
    near(cases.measured(found), GOLDEN["tasks"]["plain"])
    assert found["config"]["model_num_parameters"] == 12976
    assert found["max_length"] == cases.LENGTH


@pytest.mark.parametrize("way", ["examples", "chat"])
def test_examples_and_chats_are_written_as_in_the_harness(evaluate, model, way):
    near(cases.measured(evaluate(model(), way)), GOLDEN["tasks"][way])
    assert GOLDEN["tasks"][way]["own_choices"] != GOLDEN["tasks"]["plain"]["own_choices"]


def test_errors_are_estimated_without_forks_which_jax_would_hang_in(evaluate, model, monkeypatch):
    monkeypatch.setattr("multiprocessing.Pool", lambda *_: pytest.fail("forked"))
    found = evaluate(model(), tasks=["own_answers"], bootstrap_iters=100)
    assert found["results"]["own_answers"]["chrf_stderr,none"] > 0


def test_results_in_the_harness_cache_are_not_computed_again(evaluate, model, monkeypatch, tmp_path):
    options = {"use_cache": str(tmp_path / "cache")}
    first = cases.measured(evaluate(model(), **options))
    for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        monkeypatch.setattr(JaxalignLM, kind, lambda *_: pytest.fail("asked again"))
    assert cases.measured(evaluate(model(), **options)) == first


def test_each_result_is_kept_with_the_arguments_of_its_request(model):
    kept = []

    class Hook:
        def add_partial(self, kind, arguments, result):
            kept.append((kind, arguments, result))

    one = model()
    given, one.cache_hook = one.cache_hook, Hook()
    asked = {
        "loglikelihood": cases.LIKELIHOOD,
        "loglikelihood_rolling": cases.ROLLING,
        "generate_until": cases.GENERATION,
    }
    try:
        for kind, arguments in asked.items():
            found = getattr(one, kind)(cases.requests(arguments), disable_tqdm=True)
            mine = [(known, result) for of, known, result in kept if of == kind]
            assert len(mine) == len(arguments)
            assert all((known, result) in mine for known, result in zip(arguments, found, strict=True))
    finally:
        one.cache_hook = given


def test_the_files_of_requests_have_names_without_folders(evaluate, model, monkeypatch, tmp_path):
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tmp_path))
    evaluate(model(), tasks=["own_choices"], cache_requests=True)
    assert len(list(tmp_path.iterdir())) == 1


def test_repeated_samples_differ_and_a_repeated_run_does_not(model):
    sampled = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12}
    asked = cases.requests([("a", sampled)] * 4)
    found = model().generate_until(asked, disable_tqdm=True)
    assert len(set(found)) == 4
    assert model().generate_until(asked, disable_tqdm=True) == found


# --- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"pretrained": "nowhere/to/be/found"}, "nowhere/to/be/found"),
        ({"pretrained": ""}, "expected pretrained="),
        ({"dtype": "float16"}, "dtype=float16: expected auto, float32 or bfloat16"),
        ({"batch_size": "0"}, "batch_size=0: expected a whole number of at least 1"),
        ({"batch_size": "many"}, "batch_size=many: expected"),
        ({"max_length": "long"}, "max_length=long: expected"),
        ({"max_gen_toks": -1}, "max_gen_toks=-1: expected"),
        ({"device": "cuda"}, "no gpu found; available: cpu"),
        ({"device": "cuda:1"}, "device=cuda:1: expected"),
        ({"adapter": "a", "peft": "b"}, "adapter and peft both name an adapter"),
        ({"parallelize": True}, "jaxalign does not know parallelize"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_argument_is_said_in_one_line(folders, arguments, words):
    with pytest.raises(UserError, match=words) as error:
        JaxalignLM(**{"pretrained": folders["plain"]} | arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("given", "size"), [("auto", 16), ("auto:4", 16), ("7", 7), (2, 2)])
def test_batch_sizes_are_those_of_the_command_line(folders, given, size):
    assert JaxalignLM(folders["plain"], batch_size=given, device="cuda:0").subject.batch_size == size


def test_requests_that_do_not_fit_are_said_in_one_line(model):
    with pytest.raises(UserError, match="a continuation of 65 tokens, which begins with 'x"):
        model().loglikelihood(cases.requests([("a", "x" * 65)]), disable_tqdm=True)
    with pytest.raises(UserError, match="max_new_tokens=64: leaves no room for a prompt"):
        model().generate_until(cases.requests([("a", {"max_gen_toks": 64})]), disable_tqdm=True)


def test_the_command_tells_a_mistake_in_one_line(folders, monkeypatch, capsys):
    def evaluated():
        JaxalignLM(folders["plain"]).generate_until(cases.requests([("a", {"until_end": True})]))

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", evaluated)
    with pytest.raises(SystemExit) as status:
        harness.main()
    assert status.value.code == 2
    said = "jaxalign: generation_kwargs: until_end=True is not supported by jaxalign"
    assert capsys.readouterr().err.splitlines()[-1] == said


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.models", None)
    with pytest.raises(UserError, match=r"pip install 'jaxalign\[harness\]'"):
        harness.register.__wrapped__()


def test_the_harness_keeps_its_own_models():
    from lm_eval.api.registry import get_model, model_registry

    assert get_model("jaxalign") is JaxalignLM
    assert "hf" in model_registry and "vllm" in model_registry


# The command reads all tasks of the harness, which takes it long.
def command(folder, include, home, *words):
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "jaxalign.evaluation.harness",
            "--model",
            "jaxalign",
            "--include_path",
            include,
        ]
        + ["--model_args", f"pretrained={folder},dtype=float32", *words],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.long
def test_the_command_evaluates_a_task_of_the_users_own(folders, include, tmp_path):
    words = ["--tasks", "own_choices,own_texts", "--batch_size", "auto:4", "--output_path", "out"]
    done = command(folders["plain"], include, tmp_path, *words, "--log_samples")
    assert done.returncode == 0, done.stderr
    (results,) = (tmp_path / "out").rglob("results_*.json")
    golden = {task: GOLDEN["tasks"]["plain"][task] for task in ("own_choices", "own_texts")}
    near(cases.measured(json.loads(results.read_text())), golden)
    assert "own_choices" in done.stdout


@pytest.mark.long
def test_the_command_tells_a_missing_device_in_one_line(folders, include, tmp_path):
    done = command(folders["plain"], include, tmp_path, "--tasks", "own_choices", "--device", "cuda")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "jaxalign: --device gpu: no gpu found; available: cpu"
    assert "Traceback" not in done.stderr
