"""The child that runs TRL (or transformers' generate), stopped between steps by the driver.

usage: peer.py CASE FOLDER (started by run.py, with the Python of .venv-parity)
"""

import contextlib
import itertools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from cases import BY_NAME, CHECKED, GROUP, LEARNING_RATE, NEW, SEED, Case, given_completions
from gate import Gate, Stop, memory, peak_memory
from transformers import AutoTokenizer, LlamaForCausalLM, LlamaForSequenceClassification, TrainerCallback


class Gated(TrainerCallback):
    """Waits for the driver after each optimizer step, and keeps what was logged."""

    def __init__(self, gate: Gate) -> None:
        self.gate, self.logged = gate, []

    def on_train_begin(self, args, state, control, **_):
        """The first step."""
        self._between(control)

    def on_step_end(self, args, state, control, **_):
        """The next step."""
        self._between(control)

    def on_log(self, args, state, control, logs=None, **_):
        """A row of the log."""
        if logs and "grad_norm" in logs:
            self.logged.append(logs)

    def _between(self, control) -> None:
        try:
            self.gate.between()
        except Stop:
            control.should_training_stop = True


class InOrder:
    """Reads the rows from the first to the last, as the file of the case gives them."""

    def _get_train_sampler(self, *_, **__):
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Watched:
    """Counts a step's tokens, and takes the time of its batch and of the log."""

    gate: Gate
    count_tokens: Any

    def compute_loss(self, model, inputs, *args, **options):
        """The trainer's own."""
        self.gate.count(self.count_tokens(inputs))
        return super().compute_loss(model, inputs, *args, **options)

    def get_batch_samples(self, *args, **options):
        """The trainer's own."""
        with self.gate.clock("data"):
            return super().get_batch_samples(*args, **options)

    def log(self, *args, **options):
        """The trainer's own."""
        with self.gate.clock("logging"):
            return super().log(*args, **options)


# A pair counts by its whole rows in reward modelling, else a row by the tokens in its loss; a first token has none.
TOKENS = {
    "sft": lambda inputs: (inputs["labels"][:, 1:] != -100).sum(),
    "reward": lambda inputs: inputs["attention_mask"].sum(),
    "dpo": lambda inputs: inputs["completion_mask"][:, 1:].sum(),
    "grpo": lambda inputs: inputs["completion_mask"].sum(),
}


def arguments(case: Case) -> dict[str, Any]:
    """What all trainers are told."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": case.batch,
        "use_cpu": True,
        "bf16": bool(case.peer.get("bf16", case.bf16)),
        "gradient_checkpointing": bool(case.peer.get("checkpointing", False)),
        "report_to": "none",
        "save_strategy": "no",
        "max_steps": 100_000,
        "logging_steps": 1,
        "disable_tqdm": True,
        "seed": SEED,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
    }


def trainer_of(case: Case, folder: Path, callback: Gated, gate: Gate) -> Any:
    """The trainer of a case over the case's rows."""
    import trl
    from datasets import Dataset

    rows = json.loads((folder / "rows.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    common = {"processing_class": tokenizer, "callbacks": [callback]}
    length = case.shape["length"]
    if case.task == "sft":
        data = Dataset.from_dict({"input_ids": [row["text"] for row in rows]})
        packing = bool(case.peer.get("packing", False))
        config = trl.SFTConfig(**arguments(case), max_length=length, packing=packing)
        base = trl.SFTTrainer
    elif case.task == "reward":
        data = Dataset.from_dict(
            {f"{name}_ids": [row["prompt"] + row[name] for row in rows] for name in ("chosen", "rejected")}
        )
        model = LlamaForSequenceClassification.from_pretrained(folder / "scalar", dtype=torch.float32)
        config = trl.RewardConfig(**arguments(case), max_length=length)
        base = trl.RewardTrainer
    elif case.task == "dpo":
        data = Dataset.from_dict(
            {f"{name}_ids": [row[name] for row in rows] for name in ("prompt", "chosen", "rejected")}
        )
        precompute = bool(case.peer.get("precompute", False))
        config = trl.DPOConfig(**arguments(case), max_length=length, precompute_ref_log_probs=precompute)
        base = trl.DPOTrainer
        if not precompute:
            common["ref_model"] = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        # The rows are token ids already.
        base._prepare_dataset = lambda self, dataset, *_: dataset
    elif case.task == "grpo":
        data = Dataset.from_dict({"prompt": [" ".join(f"w{i}" for i in row["prompt"]) for row in rows]})
        config = trl.GRPOConfig(
            **arguments(case),
            max_completion_length=NEW,
            num_generations=GROUP,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            beta=0.0,
            shuffle_dataset=False,
            generation_kwargs={"min_new_tokens": NEW},
        )
        common["reward_funcs"] = lambda completion_ids, **_: [float(sum(i[:4]) % 7) for i in completion_ids]
        base = trl.GRPOTrainer
        give_completions(case, model, gate)
    else:
        raise SystemExit(f"{case.task}: no such trainer here")
    parts = (Watched, base) if case.task == "grpo" else (Watched, InOrder, base)
    watched = type(
        "Watched" + base.__name__, parts, {"gate": gate, "count_tokens": staticmethod(TOKENS[case.task])}
    )
    return watched(model=model, args=config, train_dataset=data, **common)


def give_completions(case: Case, model: Any, gate: Gate) -> None:
    """In the compared steps `generate` returns what jaxalign is given too."""
    sample, calls = model.generate, 0

    def generate(**inputs):
        nonlocal calls
        calls += 1
        if calls > CHECKED:
            with gate.clock("sample"):
                return sample(**inputs)
        return torch.cat([inputs["input_ids"], torch.tensor(given_completions(case, calls))], dim=1)

    model.generate = generate


def train(case: Case, folder: Path, gate: Gate) -> None:
    """Trains until the driver stops it."""
    callback = Gated(gate)
    trainer = trainer_of(case, folder, callback, gate)
    gap = packing_gap(trainer) if case.peer.get("packing") else 0.0
    gate.report = lambda: {
        "losses": [row["loss"] for row in callback.logged],
        "grad_norms": [row["grad_norm"] for row in callback.logged],
        "packing_gap": gap,
    }
    trainer.train()
    gate.answer(memory=peak_memory())


def packing_gap(trainer: Any) -> float:
    """How much packing changes the logits of rows: not at all, unless packed rows see each other."""
    rows = [trainer.train_dataset[i] for i in range(2)]
    inputs = trainer.data_collator(rows)
    model, ids, gap = trainer.model, inputs["input_ids"][0], 0.0
    starts = [*inputs["cu_seq_lens_q"].tolist()]
    with torch.no_grad():
        packed = model(**{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False).logits[0]
        for start, end in itertools.pairwise(starts):
            alone = model(input_ids=ids[None, start:end], use_cache=False).logits[0]
            gap = max(gap, float((packed[start:end] - alone).abs().max()))
    return gap


def generate(case: Case, folder: Path, gate: Gate) -> None:
    """Samples completions again and again; reports greedy tokens for the check."""
    dtype = torch.bfloat16 if case.bf16 else torch.float32
    model = LlamaForCausalLM.from_pretrained(folder / "model", dtype=dtype).eval()
    rows = json.loads((folder / "rows.json").read_text())
    prompts = torch.tensor([row["prompt"] for row in rows[: case.batch]])
    how = str(case.peer.get("cache", "dynamic"))
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 0, "use_cache": True}
    options["attention_mask"] = torch.ones_like(prompts)
    if how != "dynamic":
        options["cache_implementation"] = "static"
    if how == "static-compile":
        # generate() compiles by itself on accelerators only.
        options["disable_compile"] = True
        model.forward = torch.compile(model.forward, dynamic=True)

    def report() -> dict[str, Any]:
        return {"greedy": model.generate(prompts, do_sample=False, **options)[:, prompts.shape[1] :].tolist()}

    gate.report = report
    with torch.no_grad(), contextlib.suppress(Stop):
        while True:
            gate.between()
            gate.count(case.batch * NEW)
            model.generate(prompts, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, **options)
    gate.answer(memory=peak_memory())


def main() -> None:
    """Reads the case's name and folder from the command line."""
    case, folder = BY_NAME[sys.argv[1]], Path(sys.argv[2])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(SEED)
    gate = Gate(lambda: None)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    if case.task == "ppo":
        sys.path.insert(0, os.environ["BENCH_PPO_RELEASE"])
    if case.task != "generate":
        import trl

        versions["trl"] = trl.__version__
        if case.task != "ppo":
            # Imported when it is first named: what that takes is no memory of training.
            trl.SFTTrainer  # noqa: B018
    gate.answer(versions=versions, baseline=memory())
    if case.task == "ppo":
        import peer_ppo

        peer_ppo.train(case, folder, gate, arguments(case))
    else:
        (generate if case.task == "generate" else train)(case, folder, gate)


if __name__ == "__main__":
    main()
