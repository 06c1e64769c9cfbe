"""The child that runs jaxalign: the command a user would type, stopped between steps by the driver.

usage: ours.py CASE FOLDER (started by run.py)
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from cases import BY_NAME, CHECKED, GROUP, LEARNING_RATE, NEW, SEED, Case, given_completion
from gate import Gate, Stop, peak_memory

import jaxalign
from jaxalign.cli.main import COMMANDS, load, read_settings, use_device
from jaxalign.data import BatchIterator


class Compilations:
    """Counts what XLA compiles, and how long it takes."""

    def __init__(self) -> None:
        self.programs, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.programs += 1
            self.seconds += seconds

    def facts(self) -> dict[str, Any]:
        """For the gate."""
        return {"programs": self.programs, "compile_seconds": self.seconds}


def give_completions(case: Case) -> None:
    """In the compared steps the sampler returns what the peer is given too; no row of a later step ends early."""
    from jaxalign.rollout import Completions, Sampler

    sample, calls = Sampler.generate, 0

    def generate(self: Sampler, prompts: Any, **options: Any) -> Completions:
        nonlocal calls
        calls += 1
        if calls > CHECKED:
            return sample(self, prompts, **{**options, "stop_tokens": ()})
        rows = [given_completion(calls, row, case.shape["vocab"]) for row in range(case.batch)]
        nothing = np.zeros((case.batch, NEW), np.float32)
        return Completions(
            tokens=np.asarray(rows, np.int32),
            mask=np.ones((case.batch, NEW), bool),
            lengths=np.full(case.batch, NEW, np.int32),
            logps=nothing,
            sampling_logps=nothing,
            finish_reason=["length"] * case.batch,
        )

    Sampler.generate = generate  # type: ignore[method-assign]


def finish() -> None:
    """Waits until no array is still being computed."""
    for array in jax.live_arrays():
        array.block_until_ready()


def settings(case: Case, folder: Path) -> list[str]:
    """The command line of a case."""
    run = folder / "run"
    common = [
        f"--output={run}",
        f"--seed={SEED}",
        f"--model.path={folder / 'model'}",
        f"--model.compute_dtype={'bfloat16' if case.bf16 else 'float32'}",
        f"--data.train={folder / 'data.jsonl'}",
        "--data.template=plain",
        "--data.end_token=none",
        "--data.validation_fraction=0",
        f"--optimizer.learning_rate={LEARNING_RATE}",
        "--optimizer.schedule=constant",
        "--optimizer.warmup_ratio=0",
        "--run.progress=false",
        "--run.log_every=1",
        "--run.sample_rows=0",
        *case.ours,
    ]
    if case.task in ("sft", "reward", "dpo"):
        more = [
            f"--data.max_length={case.shape['length']}",
            f"--train.batch_size={case.batch}",
            "--train.steps=1000000",
        ]
        if case.task == "reward":
            more += ["--head.init_std=0"]
        return [*common, *more]
    return [
        *common,
        "--train.updates=1000000",
        f"--train.prompts={case.batch // GROUP}",
        f"--sampling.max_new_tokens={NEW}",
        f"--sampling.num_samples={GROUP}",
        "--loss.beta=0",
        f"--reward.functions={Path(__file__).parent / 'toy_reward.py'}:reward",
        # The completions given in the compared steps were sampled from nothing.
        "--train.logp_tolerance=1e9",
    ]


def train(case: Case, folder: Path, gate: Gate) -> None:
    """Runs the command until the driver stops it, then reports what its steps logged."""
    take = BatchIterator.next

    def gated(self: BatchIterator) -> Any:
        gate.between()
        return take(self)

    BatchIterator.next = gated  # type: ignore[method-assign]
    if case.task == "grpo":
        give_completions(case)
    command = COMMANDS[case.task]
    config = read_settings(command, settings(case, folder))
    use_device(config)
    with contextlib.suppress(Stop):
        load(command.function)(config)
    gate.answer(**logged(folder / "run" / "metrics.jsonl"), memory=peak_memory())


def logged(path: Path) -> dict[str, Any]:
    """Losses and gradient norms by step, and means of the time splits that were logged."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [r for r in rows if any(k.endswith("grad_norm") for k in r)]
    found: dict[str, Any] = {"losses": [], "grad_norms": [], "split": {}}
    for row in rows:
        found["losses"].append(next((v for k, v in row.items() if k.split("/")[-1] == "loss"), None))
        found["grad_norms"].append(next(v for k, v in row.items() if k.endswith("grad_norm")))
    later = rows[len(rows) // 2 :]
    for name in later[0]:
        if name.startswith("time/"):
            found["split"][name.removeprefix("time/")] = sum(r[name] for r in later) / len(later)
    return found


def generate(case: Case, folder: Path, gate: Gate) -> None:
    """Samples completions again and again; reports greedy tokens for the check."""
    from jaxalign import models
    from jaxalign.rollout import Sampler

    dtype = "bfloat16" if case.bf16 else "float32"
    model = models.load_pretrained(folder / "model", param_dtype="float32", compute_dtype=dtype)
    sampler = Sampler(model)
    prompts = [row["prompt"] for row in json.loads((folder / "rows.json").read_text())[: case.batch]]
    key, number = jax.random.key(SEED), 0
    try:
        while True:
            gate.between()
            done = sampler.generate(
                prompts, max_new_tokens=NEW, key=jax.random.fold_in(key, number), stop_tokens=()
            )
            assert done.mask.all()
            number += 1
    except Stop:
        pass
    memory = peak_memory()
    greedy = sampler.generate(prompts, max_new_tokens=NEW, key=key, temperature=0.0, stop_tokens=())
    gate.answer(tokens=greedy.tokens.tolist(), memory=memory)


def main() -> None:
    """Reads the case's name and folder from the command line."""
    case, folder = BY_NAME[sys.argv[1]], Path(sys.argv[2])
    compilations = Compilations()
    gate = Gate(finish, compilations.facts)
    gate.answer(versions={"jax": jax.__version__, "jaxalign": jaxalign.__version__})
    (generate if case.task == "generate" else train)(case, folder, gate)


if __name__ == "__main__":
    main()
