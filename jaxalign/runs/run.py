"""The run folder: configuration, metadata, metrics, samples and a log."""

import json
import logging
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxalign import processes, remote
from jaxalign.config import defaults, save_yaml, to_dict
from jaxalign.errors import ConfigError
from jaxalign.runs import records
from jaxalign.runs.callbacks import Callbacks
from jaxalign.runs.config import RunConfig
from jaxalign.runs.given import Given, check_given_again
from jaxalign.runs.mirror import Mirror, check_shared, mirror_of, run_folder
from jaxalign.runs.progress import Progress
from jaxalign.runs.trackers import Tracker, make_trackers

# Keys that may differ between a run and its resumption: they change no number of the training, or (forms of attention
# and products, and the mesh) its rounding only, so that a run can go on on another kind of machine, or on more of them.
FREE_KEYS = {
    "model.attention", "model.products", "reference.attention", "reference.products",
    "patient.attention", "patient.products", "rewards.folder", "data.cache", "data.workers", "data.max_bytes",
    "run.output", "run.device", "run.distributed", "run.resume", "run.log_every", "run.eval_every", "run.save_every",
    "run.sample_every", "run.sample_rows", "eval.generate.every", "run.keep_last", "run.best_metric", "run.best_mode",
    "run.tensorboard", "run.wandb", "run.mlflow", "run.trackio", "run.progress", "run.export_dtype",
    "run.profile_steps", "run.compile_cache", "run.hang_minutes", "run.hang_exit",
    "rollout.engine.url", "rollout.engine.api_key_env", "rollout.engine.folder", "rollout.engine.concurrency",
    "mesh.data", "mesh.fsdp", "mesh.expert", "mesh.context", "mesh.tensor",
    "rollout.engine.timeout", "rollout.engine.retries", "train.offload",
}  # fmt: skip
# Keys of its length, which a resumed run may raise.
LENGTHS = {"train.steps", "train.epochs", "train.updates"}
# What a run may compute before its first step, by names that say what it belongs to: the next try goes on from it.
# And the trace of a try that failed, which is not in the way.
CACHES = {"reference", "token_rewards", "patient", "profile"}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "transformers", "jaxalign")


class Run:
    """The folder of one run; a context manager. Create it with `Run.open`.

    Of several processes the first reads and writes it; what the metadata hold the others keep in memory.

    Attributes:
      folder: the run folder; where that is a URL, its copy on this host, see `mirror`.
      config: its `RunConfig`.
      resumed: whether the folder already held this run.
      raised: whether it is resumed for more steps than before.
      given: live objects of a Python call.
      callbacks: the callbacks among them.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        command: str,
        *,
        resumed: bool,
        given: Given,
        callbacks: Callbacks,
        trackers: Sequence[Tracker],
    ) -> None:
        self.folder, self.config, self.resumed, self.raised = folder, config, resumed, False
        self.given, self.callbacks, self._trackers = given, callbacks, list(trackers)
        self._kept: dict[str, Any] | None = None
        self._mirror: Mirror | None = None
        self._progress = Progress(config.progress, command)
        self._log = logging.getLogger(f"jaxalign.run.{folder}")
        self._log.setLevel(logging.INFO)
        self._log.propagate = False
        self._handler: logging.Handler = logging.NullHandler()
        if processes.first():
            self._handler = logging.FileHandler(folder / "run.log", encoding="utf-8")
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._log.addHandler(self._handler)
        self._started = time.time()
        self._at = (0, 0)
        self._warned: set[str] = set()

    @staticmethod
    def open(config: RunConfig, full_config: Any, command: str, given: Given | None = None) -> "Run":
        """Opens the folder `config.output` for `command`.

        Raises:
          ConfigError: no folder; the folder holds another run (or one, without resume); or a resumed run has other
            keys or other Python objects, naming them.
          RemoteError: a URL that cannot be read or written, or that stands where only a path can.
        """
        given = given or Given()
        remote.refuse(to_dict(full_config))
        check_shared(config.output)
        mine: list[Run] = []

        def opened() -> tuple[bool, bool, dict[str, Any]]:
            mine.append(Run._open(config, full_config, command, given))
            return mine[0].resumed, mine[0].raised, mine[0].metadata()

        resumed, raised, kept = processes.by_first(opened)
        if mine:
            return mine[0]
        folder = run_folder(config.output)
        callbacks = Callbacks(given.callbacks, command, folder)
        quiet = replace(config, progress=False)
        run = Run(folder, quiet, command, resumed=resumed, given=given, callbacks=callbacks, trackers=[])
        run.raised, run._kept = raised, kept
        return run

    @staticmethod
    def _open(config: RunConfig, full_config: Any, command: str, given: Given) -> "Run":
        if not config.output:
            raise ConfigError("run.output: expected a folder for the run (or --output FOLDER)")
        mirror, said = mirror_of(config.output), list[str]()
        if mirror is None:
            return Run._open_folder(run_folder(config.output), config, full_config, command, given)
        try:
            mirror.begin(resume=config.resume, caches=CACHES, warn=said.append)
            run = Run._open_folder(mirror.folder, config, full_config, command, given)
        except BaseException:
            mirror.release()
            raise
        run._mirror = mirror
        try:
            for line in said:
                run.warn(line)
            mirror.claim()
        except BaseException:
            run.__exit__(*sys.exc_info())
            raise
        return run

    @staticmethod
    def _open_folder(folder: Path, config: RunConfig, full_config: Any, command: str, given: Given) -> "Run":
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"run.output: {folder} is a file; expected a folder for the run")
        full = to_dict(full_config)
        before = folder / "metadata.json"
        resumed, raised, old = before.is_file(), {}, {}
        if resumed:
            raised = _raised(before, command, full_config, config.resume)
            old = json.loads(before.read_text())
            if "given" in old:  # earlier versions did not note it
                check_given_again(old["given"], given.described())
        elif folder.is_dir() and any(path.name not in CACHES for path in folder.iterdir()):
            raise ConfigError(
                f"run.output: {folder} is not empty and not a run folder; choose another folder"
            )
        # Before anything is written: what they refuse leaves no folder behind.
        callbacks = Callbacks(given.callbacks, command, folder)
        trackers = [*make_trackers(config, folder, full), *given.trackers]
        folder.mkdir(parents=True, exist_ok=True)
        save_yaml(full_config, folder / "config.yaml")
        run = Run(
            folder, config, command, resumed=resumed, given=given, callbacks=callbacks, trackers=trackers
        )
        if not resumed:
            run._write_metadata(_environment(command, config.seed, full) | {"given": given.described()})
        run.info(f"{'resumed' if resumed else 'started'}: {command}")
        own = defaults(type(full_config))
        said = [k for k, v in _flat(full).items() if k.startswith("optimizer.") and v != own.get(k)]
        if said and hasattr(given.optimizer, "update"):
            run.warn(
                f"optimizer: an optimizer was passed in Python, so {', '.join(said)} of the configuration are not "
                "used"
            )
        was, now = old.get("config", {}).get("mesh"), full.get("mesh")
        if (
            was and now and (was := dict.fromkeys(now, 1) | was) != now
        ):  # an earlier version may have had fewer axes
            axes = [", ".join(f"{axis}={size}" for axis, size in mesh.items()) for mesh in (now, was)]
            run.warn(
                f"resumed on another mesh ({' where it was '.join(axes)}): the same data, other rounding"
            )
            run.add_metadata(config={**old["config"], "mesh": now})
        if raised:
            run.raised = True
            # From now on the run is this long; what it was stays beside it.
            changes = [f"{key} is {now:g} where it was {old:g}" for key, (old, now) in raised.items()]
            longer = [*run.metadata().get("raised", []), *changes]
            # What models compute in was decided when it began.
            for section, keys in full.items():
                if isinstance(keys, dict) and keys.get("compute_dtype") == "auto":
                    keys["compute_dtype"] = old["config"].get(section, {}).get("compute_dtype", "auto")
            run.add_metadata(config=full, raised=longer, finished=False)
            run.warn(f"resumed: {', '.join(changes)}; the learning rate follows the longer schedule")
        return run

    def __enter__(self) -> "Run":
        if self._mirror is not None:
            self._mirror.start(self.warn)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._progress.close()
        if error is not None:
            self._log.error("%s: %s", type(error).__name__, error)
        for tracker in self._trackers:
            tracker.close()
        self._log.removeHandler(self._handler)
        self._handler.close()
        if error is not None and not self.resumed and processes.first():
            self._leave_nothing()
        if self._mirror is not None:
            self._mirror.close(failed=error is not None)

    def _leave_nothing(self) -> None:
        """A run that failed before it logged anything leaves nothing that would be in the way of the next try."""
        if (self.folder / "metrics.jsonl").exists():
            return
        for name in ("run.log", "config.yaml", "metadata.json"):
            (self.folder / name).unlink(missing_ok=True)
        for folder in (self.folder / "checkpoints", self.folder):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def info(self, message: str) -> None:
        """A line in run.log."""
        self._log.info(message)

    def note(self, message: str) -> None:
        """A line in run.log and on standard error."""
        self._log.info(message)
        self._progress.note(message)

    def tell(self, part: str, message: str) -> None:
        """A line of what the run begins with; the report shows it too."""
        self.note(f"{part}: {message}")
        self.add_metadata(opening=self.metadata().get("opening", {}) | {part: message})

    def warn(self, message: str) -> None:
        """A line in run.log and on standard error."""
        self._log.warning(message)
        self._progress.note(f"warning: {message}")

    def warn_once(self, section: str, message: str) -> None:
        """A warning about a section of the configuration, unless the same was said of another."""
        if message not in self._warned:
            self._warned.add(message)
            self.warn(f"{section}: {message}")

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """A record in metrics.jsonl (and the trackers). Wall-clock fields are named `time/...`."""
        if not values or not processes.first():
            return
        if self._mirror is not None:
            self._mirror.check()
        records.append(self.folder / "metrics.jsonl", [{"step": step, **dict(sorted(values.items()))}])
        for tracker in self._trackers:
            tracker.log(step, values)

    def log_samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Rows in samples.jsonl (and the trackers that take them)."""
        if not processes.first():
            return
        records.append(self.folder / "samples.jsonl", [{"step": step, **row} for row in rows])
        for tracker in self._trackers if rows else ():
            # A tracker of the user's may take numbers alone.
            if log_samples := getattr(tracker, "log_samples", None):
                log_samples(step, rows)

    def rewind(self, step: int) -> None:
        """Drops the log after `step`, which a resumed run writes again."""
        for name in ("metrics.jsonl", "samples.jsonl") if processes.first() else ():
            records.keep_until(self.folder / name, step)
        self.info(f"resumed from step {max(step, 0)}")

    def progress(self, step: int, total: int, name: str, value: float, tokens_per_second: float) -> None:
        """Shows the progress of the run, with a named value."""
        self._at = (step, total)
        self._progress.show(step, total, name, value, tokens_per_second)

    def note_stopped(self, step: int) -> None:
        """Logs that a callback stopped the run, if one did."""
        if reason := self.callbacks.stopped:
            self.info(f"stopped at step {step}: {reason}")
            self._progress.note(f"stopped at step {step}: {reason}")
            self.add_metadata(stopped={"step": step, "reason": reason})

    def metadata(self) -> dict[str, Any]:
        """What metadata.json holds."""
        if self._kept is not None:
            return dict(self._kept)
        return json.loads((self.folder / "metadata.json").read_text())

    def add_metadata(self, **values: Any) -> None:
        """Adds fields to metadata.json."""
        self._write_metadata(self.metadata() | values)

    def final_metrics(self) -> dict[str, float]:
        """Those that the run ended with, where it has ended before; else none."""
        return dict(self.metadata().get("final_metrics", {}))

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Writes the final metrics and report.html, and tells the callbacks."""
        from jaxalign.runs.report import write_report

        self.add_metadata(
            final_metrics=records.clean(dict(metrics)),
            seconds=round(time.time() - self._started, 3),
            finished=True,
        )
        if processes.first():
            write_report(self.folder)
        self.info("finished")
        self.callbacks.tell("on_end", *self._at, metrics)

    def _write_metadata(self, values: Mapping[str, Any]) -> None:
        if self._kept is not None:
            self._kept = json.loads(json.dumps(records.clean(values)))
            return
        temporary = self.folder / ".metadata.json"
        temporary.write_text(json.dumps(records.clean(values), indent=2, ensure_ascii=False))
        os.replace(temporary, self.folder / "metadata.json")


def ended(folder: Path, full_config: Any) -> dict[str, Any] | None:
    """The metadata of the run in a folder where it has ended as it is configured; None where there is more to do.

    Raises:
      ConfigError: it has other settings; the message names them.
    """
    path = folder / "metadata.json"
    if not path.is_file():
        return None
    raised = _raised(path, "", full_config, resume=True)
    metadata = json.loads(path.read_text())
    return metadata if metadata.get("finished") and not raised else None


def _raised(path: Path, command: str, full_config: Any, resume: bool) -> dict[str, tuple[float, float]]:
    """Key -> value before and now, of the `LENGTHS` that a run is resumed with a larger value of; see `Run.open`.

    An empty command is that of any run.

    Raises:
      ConfigError: it is another run, or has other settings; the message names them.
    """
    try:
        old = json.loads(path.read_text())
    except json.JSONDecodeError:
        raise ConfigError(f"{path}: not valid JSON; the run folder is damaged") from None
    if not resume:
        raise ConfigError(
            f"run.output: {path.parent} already holds a run of `{old.get('command')}`; choose another folder, or "
            "continue it with --resume"
        )
    if command and old.get("command") != command:
        raise ConfigError(
            f"run.output: {path.parent} holds a run of `{old.get('command')}`, not of `{command}`"
        )
    before, now = _flat(old.get("config", {})), _flat(records.clean(to_dict(full_config)))
    # A key that an earlier version did not have: that version did what is the default now.
    before = {k: v for k, v in _flat(records.clean(defaults(type(full_config)))).items() if k in now} | before
    # Earlier versions had two levels of rematerialization, and wrote true and false.
    spelled = {
        k: "full" if v else "none" for k, v in before.items() if k.endswith(".remat") and isinstance(v, bool)
    }
    before |= spelled
    # They wrote AdamW's own numbers where it is null now.
    numbers = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
    before |= {
        k: None
        for k, v in before.items()
        if now.get(k, 0) is None and "optimizer." in k and v == numbers.get(k.rpartition(".")[2])
    }
    before |= _same_dtypes(old, before, now)
    changed = sorted(
        k for k in before.keys() | now.keys() if before.get(k) != now.get(k) and k not in FREE_KEYS
    )
    raised = {k: (before[k], now[k]) for k in changed if k in LENGTHS and 0 < before.get(k, 0) < now[k]}
    changed = [k for k in changed if k not in raised]
    if changed:
        first = changed[0]
        more = f" (and {len(changed) - 1} more: {', '.join(changed[1:4])})" if len(changed) > 1 else ""
        only = " (it may be raised only)" if first in LENGTHS else ""
        # A default may have changed since, so that the command that began it says something else today.
        flags = shlex.join(f"--{k}={_typed(before[k])}" for k in changed[:8] if k in now and k in before)
        began = f": {flags}" if flags and len(changed) <= 8 else ""
        raise ConfigError(
            f"--resume: {first} was {before.get(first)!r} and is now {now.get(first)!r}{only}{more}; a resumed run "
            f"must keep its configuration{began}"
        )
    return raised


def _same_dtypes(old: Mapping[str, Any], before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The compute dtypes as they are set now, where that means what the run began with.

    auto keeps what it began with: what the device chose, or what an earlier version, whose default was a dtype, wrote
    down. The dtype that auto chose can be named too.
    """
    same = {}
    for key in (key for key in now if key.endswith("compute_dtype") and key in before):
        chosen = (old.get("models", {}).get(key.rpartition(".")[0]) or {}).get("compute_dtype")
        began = chosen if before[key] == "auto" else before[key]
        if now[key] in ("auto", began):
            same[key] = now[key]
    return same


def _typed(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping):
        return {k: v for name, value in tree.items() for k, v in _flat(value, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): tree}


def _environment(command: str, seed: int, full: dict[str, Any]) -> dict[str, Any]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "command": command,
        "seed": seed,
        "config": full,
        "versions": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "program": Path(sys.argv[0]).name,
        "arguments": sys.argv[1:],
        "devices": [str(d) for d in jax.devices()],
        "backend": jax.default_backend(),
        "git_revision": _git_revision(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _git_revision() -> str | None:
    try:
        where = Path(__file__).resolve().parent
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=where, capture_output=True, text=True, timeout=5, check=False
        )
        return done.stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
