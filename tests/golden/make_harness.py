"""Golden results of lm-evaluation-harness: what its own `hf` model in float64 answers to requests and tasks.

Run by `make goldens`, in a venv with torch and lm-eval. Writes tests/golden/harness/golden.json: of the model of
`tests/evaluation/harness_cases.py`, with a tokenizer that puts a first token before each text (`bos`) and one that does
not (`plain`), the log-prob and the greedy flag of each of LIKELIHOOD, the log-prob of each of ROLLING, the text of each
of GENERATION and of TURNS, and the metrics of TASKS, asked in each of WAYS; versions.

In float64, as torch's float32 log-softmax is off by 1e-5 nats a token over large vocabularies.
"""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.evaluation import harness_cases as cases

FILE = Path(__file__).parent / "harness" / "golden.json"


def golden(folder: str) -> dict:
    """Results of every request; one at a time, so that nothing depends on what else is in a batch."""
    model = HFLM(pretrained=folder, dtype="float64", device="cpu", batch_size=1)
    return {
        "loglikelihood": model.loglikelihood(cases.requests(cases.LIKELIHOOD)),
        "loglikelihood_rolling": model.loglikelihood_rolling(cases.requests(cases.ROLLING)),
        "generate_until": model.generate_until(cases.requests(cases.GENERATION)),
        "chat": [
            model.apply_chat_template(turns, add_generation_prompt=turns[-1]["role"] == "user")
            for turns in cases.TURNS
        ],
    }


def tasks(model: str, include: str) -> dict:
    """Metrics by the way in which the tasks are asked."""
    manager = TaskManager(include_path=include, include_defaults=False)
    return {
        way: cases.measured(
            lm_eval.simple_evaluate(
                model="hf",
                model_args={"pretrained": model, "dtype": "float64"},
                batch_size=1,
                device="cpu",
                bootstrap_iters=0,
                task_manager=manager,
                **options,
            )
        )
        for way, options in cases.WAYS.items()
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folders = {
            name: cases.write_folder(Path(place) / name, puts_bos=name == "bos") for name in ("plain", "bos")
        }
        found = {name: golden(folder) for name, folder in folders.items()}
        found["tasks"] = tasks(folders["plain"], cases.write_tasks(Path(place) / "tasks"))
    found["versions"] = ", ".join(f"{name} {version(name)}" for name in ("lm-eval", "transformers", "torch"))
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{FILE}: {found['tasks']}")


if __name__ == "__main__":
    main()
