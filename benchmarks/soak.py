"""Kills runs at random points, resumes them until they are done, and compares with runs that nobody disturbed.

usage: python benchmarks/soak.py [--kills 200] [--minutes 60] [--trainers sft,ppo] [--seed N] [--output FOLDER]

Every attempt is a real process of the command line in a real run folder, killed by SIGKILL, or stopped by SIGTERM, at
a random time after it entered a random phase (the main thread's; a save goes on behind it). Most are forked from a
process that has imported all and started nothing, which saves seconds each; those killed while they import are not.
Exit status 1 where a resumed run differs from its undisturbed one by a bit, or an attempt ends in another way.
"""

import argparse
import contextlib
import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ON_POLICY = ("ppo", "grpo", "online-dpo")
TRAINERS = ("sft", "reward", "dpo", *ON_POLICY, "tfpo")
# In the order in which a run meets them, with how often each is aimed at.
PHASES = {"import": 1, "opening": 2, "restore": 2, "step": 4, "rollout": 4, "save": 5, "export": 3}
KILLS_A_RUN = 8
TIMEOUT = 300  # seconds for an attempt, after which it hangs
REWARD = """
def kind(prompts, completions, **_):
    return [text.count("helped") - text.count("pushed") + 0.01 * len(text) for text in completions]
"""


# --- in the process that is killed ------------------------------------------------------------


class Marks:
    """What a process is at, in memory that outlives it: per phase entries and seconds, and the phase it is in.

    Args:
      path: a file of the memory, which both processes map.
    """

    def __init__(self, path: Path) -> None:
        self.names = [*PHASES]
        size = 8 * (2 * len(self.names) + 1)
        if not path.is_file():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self.cells = memoryview(mmap.mmap(file.fileno(), size)).cast("d")

    def entries(self, phase: str) -> int:
        """How often the process entered a phase."""
        return int(self.cells[self.names.index(phase)])

    def seconds(self, phase: str) -> float:
        """How long it was in it, on average."""
        index = self.names.index(phase)
        return self.cells[len(self.names) + index] / max(self.cells[index], 1)

    @property
    def now(self) -> str:
        """The phase that it is in."""
        return self.names[int(self.cells[-1])]

    @contextlib.contextmanager
    def within(self, phase: str):
        """The phase for a while; then the one before again."""
        before, began = self.now, time.perf_counter()
        self.enter(phase)
        try:
            yield
        finally:
            self.cells[len(self.names) + self.names.index(phase)] += time.perf_counter() - began
            self.cells[-1] = self.names.index(before if before != "opening" or phase != "step" else "step")

    def enter(self, phase: str) -> None:
        """From now on the process is in this phase."""
        self.cells[self.names.index(phase)] += 1
        self.cells[-1] = self.names.index(phase)

    def around(self, owner: Any, name: str, phase: str) -> None:
        """Calls of a function are of a phase from now on."""
        plain = getattr(owner, name)

        def called(*arguments: Any, **named: Any) -> Any:
            with self.within(phase):
                return plain(*arguments, **named)

        setattr(owner, name, called)


def import_all() -> None:
    """What the commands import, sooner or later."""
    import importlib

    import transformers  # noqa: F401

    from jaxalign.cli.main import COMMANDS

    for name in TRAINERS:
        importlib.import_module(COMMANDS[name].function.partition(":")[0])
    for name in ("jaxalign.runs.report", "jaxalign.runs.plots", "jaxalign.rollout"):
        importlib.import_module(name)


def run_command(marks: Marks, arguments: Sequence[str]) -> None:
    """The command line, with its phases marked; does not return."""
    marks.enter("import")
    import_all()
    from jaxalign.checkpoints import CheckpointStore
    from jaxalign.cli import main
    from jaxalign.rollout import Sampler
    from jaxalign.training.core import exports
    from jaxalign.training.core.step import Update

    for name in ("save", "wait", "close"):
        marks.around(CheckpointStore, name, "save")
    marks.around(CheckpointStore, "restore_newest", "restore")
    marks.around(Update, "__call__", "step")
    marks.around(Sampler, "generate", "rollout")
    marks.around(exports, "write_folder", "export")
    marks.enter("opening")
    sys.argv[1:] = arguments
    main.run()


def forked(marks: Marks, arguments: Sequence[str], log: Path) -> int:
    """The process id of a fork that runs the command line."""
    if pid := os.fork():
        return pid
    status = 70
    try:
        os.setsid()
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        run_command(marks, arguments)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def spawned(marks: Path, arguments: Sequence[str], log: Path) -> int:
    """The same as a process of its own, which imports all."""
    command = [sys.executable, __file__, "--marks", str(marks), "--", *arguments]
    with log.open("ab", buffering=0) as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True).pid


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
    models.save_pretrained(
        models.create(shape, key=jax.random.key(seed)), folder / "model", tokenizer=tokenizer
    )
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
    """

    phase: str
    entry: int
    wait: float
    number: signal.Signals
    late: float | None = None


def draw(rng: random.Random, trainer: str, resumes: bool, usual: Callable[[str], float]) -> Aim:
    """A random aim; `usual` says how long a phase takes."""
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
    return Aim(phase, entry, rng.uniform(0, usual(phase)), number, late)


def wait_for(pid: int, marks: Marks, aim: Aim | None) -> tuple[int, str]:
    """Sends the signal where it is aimed at; the status, and the phase that the signal found the process in.

    The phase is empty where the process ended before.
    """
    began, entered, found = time.monotonic(), None, ""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        now = time.monotonic()
        if ended:
            return os.waitstatus_to_exitcode(status), found
        if now - began > TIMEOUT:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return -1000, found
        if aim is not None and not found and aim.late is not None and marks.entries("export"):
            aim = Aim("export", 1, aim.wait if entered else aim.late, aim.number)
        if aim is not None and not found and marks.entries(aim.phase) >= aim.entry:
            entered = entered or now
            if now - entered >= aim.wait:
                found = marks.now
                os.kill(pid, aim.number)
        time.sleep(0.0003)


class Soak:
    """Runs of every trainer in one folder.

    Args:
      folder: for everything.
      seed: of all that is random.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed, self.rng = folder, seed, random.Random(seed)
        self.tally: Counter[tuple[str, str, str]] = Counter()
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

    def attempt(self, trainer: str, run: Path, aim: Aim | None) -> tuple[int, str]:
        """One process, resuming where there is something; see `wait_for`."""
        path = self.folder / "marks"
        path.unlink(missing_ok=True)
        marks = Marks(path)
        arguments = [*self.arguments[trainer], f"--run.output={run}", "--run.resume=true"]
        start = spawned if aim is not None and aim.phase == "import" else forked
        place: Any = path if start is spawned else marks
        status, found = wait_for(start(place, arguments, run.with_suffix(".log")), marks, aim)
        if aim is None or not found:
            for phase in PHASES:
                if marks.entries(phase):
                    self.usual[trainer, phase] = marks.seconds(phase)
        return status, found

    def reference(self, trainer: str) -> dict[str, Any]:
        """The outcome of a run that nobody disturbed, made once."""
        run = self.folder / f"{trainer}-whole"
        if not (run / "export").is_dir():
            began = time.monotonic()
            status, _ = self.attempt(trainer, run, None)
            if status:
                raise SystemExit(f"{trainer}: the undisturbed run failed; see {run.with_suffix('.log')}")
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
                draw(self.rng, trainer, resumes, lambda phase: self.usual_seconds(trainer, phase))
                if done < kills
                else None
            )
            status, found = self.attempt(trainer, run, aim)
            self.resumed += resumes
            if found and aim is not None:
                done += 1
                half = checkpoints.is_dir() and any(checkpoints.glob("*.orbax-checkpoint-tmp"))
                self.cut_off += half
                where = "save" if half and aim.number == signal.SIGKILL else found
                self.tally[trainer, where, aim.number.name] += 1
                usual = (-aim.number, 128 + aim.number) if aim.number == signal.SIGTERM else (-aim.number,)
                if status in usual:
                    continue
            if status:
                self.failures.append(f"{trainer}: {run.name} ended with status {status} ({aim}); see its log")
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
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
    }
    os.environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "OPENBLAS_NUM_THREADS": "1"}
    os.environ |= {
        "JAXALIGN_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    soak, began = Soak(folder, seed), time.monotonic()
    soak.make_inputs()
    import_all()
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        print(f"{threads} threads before the first fork: forks may hang", file=sys.stderr)
    soak.all(trainers, chosen.kills, began + 60 * chosen.minutes)
    print(f"\n{soak.table(trainers)}\n")
    print(
        f"{sum(soak.tally.values())} kills of {soak.runs} runs in {time.monotonic() - began:.0f} s; {soak.resumed} "
        f"attempts resumed from a checkpoint; {soak.cut_off} left half a save; {len(soak.failures)} failures"
    )
    print("\n".join(soak.failures))
    return int(bool(soak.failures))


if __name__ == "__main__":
    if "--marks" in sys.argv[1:2]:
        run_command(Marks(Path(sys.argv[2])), sys.argv[4:])
    sys.exit(main())
