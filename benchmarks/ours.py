"""The child that runs jaxalign: the command a user would type, stopped between steps by the driver.

usage: ours.py CASE FOLDER (started by run.py)
"""

import contextlib
import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from cases import BY_NAME, CHECKED, GROUP, KL, LEARNING_RATE, NEW, SEED, Case, given_completions
from gate import Gate, Stop, memory, peak_memory

import jaxalign
from jaxalign.cli.main import COMMANDS, load, read_settings, use_device
from jaxalign.data import BatchIterator
from jaxalign.runs import Run
from jaxalign.training.core.batch import TokenRows


class Compilations:
    """Counts what XLA compiles, and how long it takes."""

    def __init__(self) -> None:
        self.programs, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.programs += 1
            self.seconds += duration_secs

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
            return sample(self, prompts, **dict(options, stop_tokens=()))
        rows = given_completions(case, calls)
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
    ]
    own = supervised(case) if case.task in ("sft", "reward", "dpo") else on_policy(case, folder)
    # A case's own settings win over those of its algorithm, and these over those of all.
    merged = dict(setting.split("=", 1) for setting in [*common, *own, *case.ours])
    return [f"{key}={value}" for key, value in merged.items()]


def supervised(case: Case) -> list[str]:
    """Settings of SFT, reward modelling and DPO."""
    return [
        f"--data.max_length={case.shape['length']}",
        f"--train.batch_size={case.batch}",
        "--train.steps=1000000",
        *(["--head.init_std=0"] if case.task == "reward" else []),
    ]


def on_policy(case: Case, folder: Path) -> list[str]:
    """Settings of GRPO and PPO."""
    both = [
        "--train.updates=1000000",
        f"--sampling.max_new_tokens={NEW}",
        # The completions given in the compared steps were sampled from nothing.
        "--train.logp_tolerance=1e9",
    ]
    if case.task == "grpo":
        return [
            *both,
            f"--train.prompts={case.batch // GROUP}",
            f"--sampling.num_samples={GROUP}",
            "--loss.beta=0",
            f"--reward.functions={Path(__file__).parent / 'toy_reward.py'}:reward",
        ]
    # What the peer's trainer does: gradients are not clipped, and policy and critic have one optimizer.
    alone = {"learning_rate": LEARNING_RATE, "schedule": "constant", "max_grad_norm": 0, "epsilon": 1e-8}
    return [
        *both,
        f"--train.prompts={case.batch}",
        f"--train.epochs={case.peer.get('epochs', 1)}",
        "--train.minibatches=1",
        f"--reward.model={folder / 'scalar'}",
        "--critic.init=reward",
        f"--kl.coefficient={KL}",
        *(
            f"--{part}.{name}={value}"
            for part in ("optimizer", "critic.optimizer")
            for name, value in alone.items()
        ),
    ]


def watch_batches(case: Case, gate: Gate) -> None:
    """Stops before each batch, counts its tokens and takes the time of making it."""
    take = BatchIterator.next

    def next_batch(self: BatchIterator) -> Any:
        gate.between()
        with gate.clock("data"):
            batch = take(self)
        # A pair counts by its whole rows in reward modelling, else a row by the tokens in its loss.
        gate.count(batch["lengths"].sum() if case.task == "reward" else batch["mask"].sum())
        return batch

    BatchIterator.next = next_batch  # type: ignore[method-assign]


def watch_updates(case: Case, gate: Gate) -> None:
    """Stops before each rollout, and counts the tokens that its passes are made over."""
    trainer = importlib.import_module(f"jaxalign.training.rl.{case.task}").Trainer
    update, passes = trainer.update, trainer.passes

    # Not before its batch: a trainer's own clock would run while the other side has its turn.
    def gated(self: Any, number: int) -> Any:
        gate.between()
        return update(self, number)

    def counted(self: Any, number: int, rollout: TokenRows, *args: Any, **more: Any) -> Any:
        gate.count(rollout.mask.sum())
        return passes(self, number, rollout, *args, **more)

    trainer.update, trainer.passes = gated, counted


def watch_log(gate: Gate) -> None:
    """Takes the time of the log, and from it the parts of an update."""
    write = Run.log_metrics

    def log_metrics(self: Run, step: int, values: Mapping[str, float]) -> None:
        for part in ("sample", "score", "optimize"):
            if (name := f"time/{part}_seconds") in values:
                gate.spent[part] += values[name]
        with gate.clock("logging"):
            write(self, step, values)

    Run.log_metrics = log_metrics  # type: ignore[method-assign]


def train(case: Case, folder: Path, gate: Gate) -> None:
    """Runs the command until the driver stops it; reports what its steps logged."""
    watch_log(gate)
    if case.task in ("grpo", "ppo"):
        watch_updates(case, gate)
        give_completions(case)
    else:
        watch_batches(case, gate)
    command = COMMANDS[case.task]
    config = read_settings(command, settings(case, folder))
    use_device(config)
    gate.report = lambda: logged(folder / "run" / "metrics.jsonl") | forms(folder / "run" / "metadata.json")
    with contextlib.suppress(Stop):
        load(command.function)(config)
    gate.answer(memory=peak_memory())


def forms(path: Path) -> dict[str, Any]:
    """The forms of products and attention that the run recorded, by model."""
    return {"forms": json.loads(path.read_text())["implementations"]}


def logged(path: Path) -> dict[str, Any]:
    """What the steps logged, by step: losses (in PPO the policy's and the critic's) and gradient norms."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    rows = [r for r in rows if any(k.endswith("grad_norm") for k in r)]
    found: dict[str, Any] = {"losses": [], "grad_norms": []}
    for row in rows:
        found["grad_norms"].append(next(v for k, v in row.items() if k.endswith("grad_norm")))
        if "value/loss" in row:
            found.setdefault("value_losses", []).append(row["value/loss"])
            found["losses"].append(row["policy/loss"])
        else:
            found["losses"].append(next((v for k, v in row.items() if k.split("/")[-1] == "loss"), None))
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

    def report() -> dict[str, Any]:
        greedy = sampler.generate(prompts, max_new_tokens=NEW, key=key, temperature=0.0, stop_tokens=())
        products = models.choose_matmul(model.config, "cpu")
        chosen = {"products": products.implementation, "products_reason": products.reason}
        return {"greedy": greedy.tokens.tolist(), "forms": {"model": chosen}}

    gate.report = report
    with contextlib.suppress(Stop):
        while True:
            gate.between()
            gate.count(case.batch * NEW)
            done = sampler.generate(
                prompts, max_new_tokens=NEW, key=jax.random.fold_in(key, number), stop_tokens=()
            )
            assert done.mask.all()
            number += 1
    gate.answer(memory=peak_memory())


def main() -> None:
    """Reads the case's name and folder from the command line."""
    case, folder = BY_NAME[sys.argv[1]], Path(sys.argv[2])
    compilations = Compilations()
    gate = Gate(finish, compilations.facts)
    if case.task != "generate":
        load(COMMANDS[case.task].function)  # imports what the command needs
    gate.answer(versions={"jax": jax.__version__, "jaxalign": jaxalign.__version__}, baseline=memory())
    (generate if case.task == "generate" else train)(case, folder, gate)


if __name__ == "__main__":
    main()
