"""Kills runs at random points, resumes them until they are done, and compares with runs that nobody disturbed.

usage: python benchmarks/soak.py [--kills 200] [--minutes 60] [--trainers sft,ppo] [--processes 2] [--seed N]
                                 [--output FOLDER]

Every attempt is a real process of the command line in a real run folder, killed by SIGKILL, or stopped by SIGTERM, at
a random time after it entered a random phase (the main thread's; a save goes on behind it). Most are forked from a
process that has imported all and started nothing, which saves seconds each; those killed while they import are not.
With --processes an attempt is so many that train together (gloo, one CPU device each), one of which is hit; the
others must end by themselves within a minute, unless it had not joined them yet.
Exit status 1 where a resumed run differs from its undisturbed one by a bit, or an attempt ends in another way.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from soak_process import PHASES, TRAINERS, Marks, forked, import_all, spawned

ON_POLICY = ("ppo", "grpo", "online-dpo")
KILLS_A_RUN = 8
TIMEOUT = 300  # seconds for an attempt, after which it hangs
# Seconds for a process that another has left. One that waits to be joined cannot know: JAX gives it 300.
LEFT, NOT_JOINED = 60, 30
HUNG = -1000
REWARD = """
def kind(prompts, completions, **_):
    return [text.count("helped") - text.count("pushed") + 0.01 * len(text) for text in completions]
"""


# --- the commands -----------------------------------------------------------------------------


def make_inputs(folder: Path, seed: int) -> dict[str, list[str]]:
    """A tiny model and small files of the demo's world; the arguments of each trainer."""
    import jax

    from jaxalign import models
    from jaxalign.pipelines import story_world

    files = story_world.write_world(folder / "data", seed=seed, stories=120, preferences=120, held_out=12)
    tokenizer = story_world.build_tokenizer()
    shape = models.ModelConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, num_kv_heads=1,
        head_dim=8, max_positions=96, bos_id=tokenizer.bos_token_id, eos_ids=(tokenizer.eos_token_id,),
        pad_id=tokenizer.pad_token_id,
    )  # fmt: skip
    for number, name in enumerate(("model", "teacher")):
        model = models.create(shape, key=jax.random.key(seed + number))
        models.save_pretrained(model, folder / name, tokenizer=tokenizer)
    (folder / "reward.py").write_text(REWARD)
    usual = [
        "--data.template=plain", "--data.max_length=64", "--optimizer.learning_rate=1e-2", "--run.save_every=2",
        "--run.log_every=3", "--run.eval_every=4", "--run.sample_every=5", "--run.progress=false",
        f"--run.seed={seed}",
    ]  # fmt: skip
    supervised = ["--train.steps=12", "--train.batch_size=4", "--train.eval_batches=2"]
    sampled = [
        "--train.updates=8", "--train.prompts=4", "--sampling.max_new_tokens=8", "--train.eval_prompts=4",
        "--sampling.num_samples=2", f"--reward.functions=[{folder / 'reward.py'}:kind]",
    ]  # fmt: skip
    short = ["--sampling.max_new_tokens=8"]
    stories, pairs = f"--data.train=[{files.stories}]", f"--data.train=[{files.preferences}]"
    prompts, model = f"--data.train=[{files.prompts}]", f"--model.path={folder / 'model'}"
    own = {
        "sft": [model, stories, *supervised, *short, "--run.best_metric=eval/loss"],
        "reward": [model, pairs, *supervised, "--run.best_metric=eval/loss"],
        "distill": [model, f"--teacher.path={folder / 'teacher'}", stories, *supervised, *short],
        "dpo": [model, pairs, *supervised, *short],
        "ppo": [model, prompts, *sampled, "--train.epochs=2", "--train.minibatches=2"],
        "grpo": [model, prompts, *sampled],
        "online-dpo": [model, prompts, *sampled],
        "tfpo": [
            f"--patient.path={folder / 'model'}", pairs, *supervised, *short,
            "--rewards.positive=Mia helped it .", "--rewards.negative=Mia pushed it .",
        ],
    }  # fmt: skip
    return {name: [name, *arguments, *usual] for name, arguments in own.items()}


def outcome(run: Path) -> dict[str, Any]:
    """What two runs are compared by: the logs but for wall-clock fields, the exported weights, the final metrics."""

    def rows(name: str) -> list[Any]:
        lines = (run / name).read_text().splitlines() if (run / name).is_file() else []
        return [timeless(json.loads(line)) for line in lines]

    def timeless(row: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in row.items() if not key.startswith("time/")}

    weights = {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((run / "export").rglob("*.safetensors"))
    }
    metadata = json.loads((run / "metadata.json").read_text())
    return {
        "weights": weights,
        "metrics": rows("metrics.jsonl"),
        "samples": rows("samples.jsonl"),
        "final": timeless(metadata["final_metrics"]),
        "exported_step": metadata["exported_step"],
    }


def differences(ours: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]:
    """What differs, by name; weights that are not there differ too."""
    found = [name for name in reference if ours[name] != reference[name]]
    return found if reference["weights"] else [*found, "no weights"]


# --- killing ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Aim:
    """Where an attempt is to be killed.

    Attributes:
      phase, entry, wait: so many seconds after it entered the phase for the so-maniest time.
      number: of the signal.
      late: where the phase is not entered before the export, so many seconds after that begins; None lets it end.
      rank: of the process that is hit.
    """

    phase: str
    entry: int
    wait: float
    number: signal.Signals
    late: float | None = None
    rank: int = 0


def draw(
    rng: random.Random, trainer: str, resumes: bool, usual: Callable[[str], float], processes: int = 1
) -> Aim:
    """A random aim at one of the processes; `usual` says how long a phase takes."""
    sure = {"import", "opening", "step", "save", "export"}
    weights = {
        phase: weight
        for phase, weight in PHASES.items()
        if phase in sure or (phase == "restore" and resumes) or (phase == "rollout" and trainer in ON_POLICY)
    }
    phase = rng.choices([*weights], [*weights.values()])[0]
    entry = rng.randint(1, 5) if phase in ("step", "save", "rollout") else 1
    number = signal.SIGTERM if rng.random() < 0.25 else signal.SIGKILL
    late = rng.uniform(0, usual("export")) if rng.random() < 0.7 else None
    return Aim(phase, entry, rng.uniform(0, usual(phase)), number, late, rng.randrange(processes))


def wait_for(pids: Sequence[int], marks: Marks, aim: Aim | None) -> tuple[list[int], str]:
    """Sends the signal where it is aimed at.

    Args:
      pids: of the processes of an attempt.
      marks: of the one that is aimed at.
      aim: None for an attempt that nobody disturbs.

    Returns:
      The status of each process, `HUNG` where it had to be killed, and the phase that the signal found its process in;
      the phase is empty where that had ended before.
    """
    began, entered, found = time.monotonic(), None, ""
    left, until = dict(enumerate(pids)), began + TIMEOUT
    statuses = [HUNG] * len(pids)
    while left:
        now = time.monotonic()
        for rank, pid in list(left.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del left[rank]
                statuses[rank] = os.waitstatus_to_exitcode(status)
                until = min(until, now + (NOT_JOINED if found == "import" else LEFT))
        if now > until:
            for pid in left.values():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            break
        if aim is not None and not found and aim.rank in left:
            if aim.late is not None and marks.entries("export"):
                aim = replace(aim, phase="export", entry=1, wait=aim.wait if entered else aim.late, late=None)
            if marks.entries(aim.phase) >= aim.entry:
                entered = entered or now
                if now - entered >= aim.wait:
                    found = marks.now
                    os.kill(left[aim.rank], aim.number)
        time.sleep(0.0003)
    return statuses, found


def ending(status: int, log: str) -> str:
    """How a process ended that was left by another, by its status and what it wrote."""
    if status == HUNG:
        return "killed by us"
    if status == -signal.SIGABRT:
        return "XLA's abort (134)"
    if "this is a bug in jaxalign" in log:
        return f"traceback ({status})"
    return {0: "done (0)", 143: "saved, stopped (143)"}.get(status, f"a line ({status})")


def free_port() -> int:
    """A port of the loopback that nobody uses."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Soak:
    """Runs of every trainer in one folder.

    Args:
      folder: for everything.
      seed: of all that is random.
      processes: of an attempt.
    """

    def __init__(self, folder: Path, seed: int, processes: int = 1) -> None:
        self.folder, self.seed, self.rng = folder, seed, random.Random(seed)
        self.processes = processes
        self.tally: Counter[tuple[str, str, str]] = Counter()
        # (signal, rank of the process that it hit, ending of another) -> how often.
        self.endings: Counter[tuple[str, int, str]] = Counter()
        self.failures: list[str] = []
        self.usual: dict[tuple[str, str], float] = {}
        self.runs = self.resumed = self.cut_off = 0
        self.arguments: dict[str, list[str]] = {}

    def make_inputs(self) -> None:
        """In a process of its own: here nothing may start JAX's threads, or no fork would be whole."""
        code = "import sys, json; sys.path.insert(0, sys.argv[3]); import soak; from pathlib import Path\n"
        code += "print(json.dumps(soak.make_inputs(Path(sys.argv[1]), int(sys.argv[2]))))"
        command = [sys.executable, "-c", code, str(self.folder), str(self.seed), str(Path(__file__).parent)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        self.arguments = json.loads(done.stdout.splitlines()[-1])

    def attempt(self, trainer: str, run: Path, aim: Aim | None) -> tuple[list[int], str]:
        """One process, or several together, resuming where there is something; see `wait_for`."""
        arguments = [*self.arguments[trainer], f"--run.output={run}", "--run.resume=true"]
        several, port = self.processes > 1, free_port()
        pids, every = [], []
        for rank in range(self.processes):
            path = self.folder / f"marks-{rank}"
            path.unlink(missing_ok=True)
            every.append(Marks(path))
            join = [f"--distributed=127.0.0.1:{port},{self.processes},{rank}"] if several else []
            join += [f"--mesh.fsdp={self.processes}"] if several else []
            start = spawned if aim is not None and (aim.phase, aim.rank) == ("import", rank) else forked
            place: Any = path if start is spawned else every[rank]
            pids.append(start(place, [*arguments, *join], self.log(run, rank)))
        statuses, found = wait_for(pids, every[aim.rank if aim else 0], aim)
        if aim is None or not found:
            for phase in PHASES:
                if every[0].entries(phase):
                    self.usual[trainer, phase] = every[0].seconds(phase)
        return statuses, found

    @staticmethod
    def log(run: Path, rank: int) -> Path:
        """What the processes of a run print."""
        return run.with_suffix(f".{rank}.log" if rank else ".log")

    def survived(
        self, run: Path, aim: Aim, statuses: Sequence[int], found: str, begins: Sequence[int]
    ) -> str:
        """Counts how the others of an attempt ended, whose logs began at these bytes; what is wrong with it."""
        for rank, status in enumerate(statuses):
            if rank != aim.rank:
                log = self.log(run, rank).read_bytes()[begins[rank] :].decode(errors="replace")
                how = "waits to be joined" if status == HUNG and found == "import" else ending(status, log)
                self.endings[aim.number.name, aim.rank, how] += 1
                if status == HUNG and found != "import":
                    return f"process {rank} did not end within {LEFT} s"
                if how.startswith("traceback"):
                    return f"process {rank} ended with a traceback"
        return ""

    def reference(self, trainer: str) -> dict[str, Any]:
        """The outcome of a run that nobody disturbed, made once."""
        run = self.folder / f"{trainer}-whole"
        if not (run / "export").is_dir():
            began = time.monotonic()
            statuses, _ = self.attempt(trainer, run, None)
            if any(statuses):
                raise SystemExit(
                    f"{trainer}: the undisturbed run failed ({statuses}); see {run.with_suffix('.log')}"
                )
            print(f"{trainer}: undisturbed {time.monotonic() - began:.1f} s", flush=True)
        return outcome(run)

    def usual_seconds(self, trainer: str, phase: str) -> float:
        """How long the phase takes; of those that are not measured what is seen of them on two cores."""
        return self.usual.get((trainer, phase), 0.0) or {"import": 6.0, "opening": 2.0}.get(phase, 0.2)

    def disturbed(self, trainer: str, kills: int) -> int:
        """One run, killed so often or until it is done, then left alone; the number of kills."""
        run, done = self.folder / f"{trainer}-{self.runs}", 0
        self.runs += 1
        while True:
            checkpoints = run / "checkpoints"
            resumes = checkpoints.is_dir() and any(path.name.isdigit() for path in checkpoints.iterdir())
            aim = (
                draw(
                    self.rng,
                    trainer,
                    resumes,
                    lambda phase: self.usual_seconds(trainer, phase),
                    self.processes,
                )
                if done < kills
                else None
            )
            logs = [self.log(run, rank) for rank in range(self.processes)]
            begins = [log.stat().st_size if log.is_file() else 0 for log in logs]
            statuses, found = self.attempt(trainer, run, aim)
            self.resumed += resumes
            wrong = ""
            if found and aim is not None:
                done += 1
                half = checkpoints.is_dir() and any(checkpoints.glob("*.orbax-checkpoint-tmp"))
                self.cut_off += half
                where = "save" if half and aim.number == signal.SIGKILL else found
                self.tally[trainer, where, aim.number.name] += 1
                usual = (-aim.number, 128 + aim.number) if aim.number == signal.SIGTERM else (-aim.number,)
                wrong = self.survived(run, aim, statuses, found, begins)
                if not wrong and statuses[aim.rank] in usual:
                    continue
            if wrong or any(statuses):
                wrong = wrong or f"ended with status {statuses}"
                self.failures.append(f"{trainer}: {run.name}: {wrong} ({aim}); see its log")
                print(self.failures[-1], flush=True)
                return done
            break
        if wrong := differences(outcome(run), self.reference(trainer)):
            self.failures.append(f"{trainer}: {run.name} differs in {', '.join(wrong)}")
            print(self.failures[-1], flush=True)
        else:
            shutil.rmtree(run)
        return done

    def all(self, trainers: Sequence[str], kills: int, end: float) -> None:
        """So many kills, run by run, the trainers in turn; no run begins after `end`."""
        for trainer in trainers:
            self.reference(trainer)
        done = 0
        while done < kills and time.monotonic() < end:
            for trainer in trainers:
                if done < kills and time.monotonic() < end:
                    here = self.disturbed(trainer, min(KILLS_A_RUN, kills - done))
                    done += here
                    print(f"{trainer}: {here} kills, {done} of {kills}", flush=True)

    def table(self, trainers: Sequence[str]) -> str:
        """The tally as Markdown: kills by trainer and phase, those by SIGTERM in brackets."""

        def cell(names: Sequence[str], phases: Sequence[str]) -> str:
            total, polite = (
                sum(self.tally[name, phase, each] for name in names for phase in phases for each in numbers)
                for numbers in (("SIGKILL", "SIGTERM"), ("SIGTERM",))
            )
            return f"{total} ({polite})" if polite else str(total)

        lines = ["| | " + " | ".join(PHASES) + " | all |", "|---|" + "---:|" * (len(PHASES) + 1)]
        for label, names in [*((name, [name]) for name in trainers), ("all", trainers)]:
            cells = [cell(names, [phase]) for phase in PHASES] + [cell(names, [*PHASES])]
            lines.append(f"| {label} | {' | '.join(cells)} |")
        return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="how many in all")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no run begins")
    parser.add_argument("--trainers", default=",".join(TRAINERS), help="names, separated by commas")
    parser.add_argument("--processes", type=int, default=1, help="that train together; one of them is killed")
    parser.add_argument("--seed", type=int, default=None, help="of everything random; a new one by default")
    parser.add_argument("--output", type=Path, default=Path("runs/soak"), help="folder, replaced")
    chosen = parser.parse_args()
    trainers = chosen.trainers.split(",")
    if unknown := [name for name in trainers if name not in TRAINERS]:
        parser.error(f"--trainers: {unknown[0]} is none of {', '.join(TRAINERS)}")
    seed = random.SystemRandom().randrange(10**6) if chosen.seed is None else chosen.seed
    print(f"seed {seed}, process {os.getpid()}", flush=True)
    folder = chosen.output.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # The command line would start anew for its memory settings, and every process would compile.
    os.environ |= {
        "JAXALIGN_HUGE_PAGES": "0",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
    }
    os.environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "OPENBLAS_NUM_THREADS": "1"}
    os.environ |= {
        "JAXALIGN_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    soak, began = Soak(folder, seed, chosen.processes), time.monotonic()
    soak.make_inputs()
    import_all()
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        print(f"{threads} threads before the first fork: forks may hang", file=sys.stderr)
    soak.all(trainers, chosen.kills, began + 60 * chosen.minutes)
    print(f"\n{soak.table(trainers)}\n")
    for (name, rank, how), count in sorted(soak.endings.items()):
        print(f"{name} at process {rank}, another: {how}: {count}")
    print(
        f"{sum(soak.tally.values())} kills of {soak.runs} runs in {time.monotonic() - began:.0f} s; {soak.resumed} "
        f"attempts resumed from a checkpoint; {soak.cut_off} left half a save; {len(soak.failures)} failures"
    )
    print("\n".join(soak.failures))
    return int(bool(soak.failures))


if __name__ == "__main__":
    sys.exit(main())
