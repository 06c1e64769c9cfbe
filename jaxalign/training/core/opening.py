"""What a run prints at its start: model, rows, devices, length and compilation.

Each is one line on standard error and in run.log, and a field of metadata.json, which report.html shows.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from jaxalign import models
from jaxalign.data import DataConfig, Dataset
from jaxalign.data.stream import Stream
from jaxalign.data.table import lengths_of
from jaxalign.mesh import AXES, devices_of
from jaxalign.models.memory import weights_text
from jaxalign.runs import Run
from jaxalign.training.core.mesh_fit import tell_idle
from jaxalign.training.core.moments_8bit import BLOCK, MIN_SIZE, numbers_in_8_bits

# Warn if more than this fraction of the rows is lost.
LOSS = 0.05
# Prefixes of the reasons for dropping rows that the user asked for, or that lose nothing.
ASKED_FOR = (
    "duplicate", "repeats a held-out row", "left out by", "over data.limit", "other type", "unscored",
    "score below data.min_score", "labeled undesirable",
)  # fmt: skip
# Reason -> the keys that change it.
KEYS = {
    "too long": ("data.max_length", "data.truncation=cut_completion"),
    "prompt too long": ("data.max_length", "data.max_prompt_length", "data.truncation=cut_prompt_start"),
    "completion too long": ("data.max_length", "data.truncation=cut_completion"),
    "malformed line": ("see the first with data.on_bad_row=stop",),
    "bad row": ("see the first with data.on_bad_row=stop",),
    "shorter than data.prompt_tokens": ("data.prompt_tokens",),
    "the separator inside a step": ("data.separator",),
}


def tell_model(run: Run, section: str, source: Any, model: Any, why: str) -> None:
    """Prints what a section of the configuration loaded.

    Args:
      run: the open run.
      section: of the configuration.
      source: the section, which names the model.
      model: it.
      why: it computes in its dtype.
    """
    params = models.split(model)[1]
    noted = run.metadata().get("models", {})
    # Where it lies is noted when its files are found, see `exports.note_model`.
    before = noted.get(section, {})
    found = {
        "family": model.config.family,
        "parameters": models.params_count(params),
        "param_dtype": model.config.param_dtype,
        "compute_dtype": model.config.compute_dtype,
        "compute_dtype_reason": why,
    }
    run.add_metadata(models=noted | {section: before | found})
    drawn = "random weights; " if source.random_init else ""
    size = weights_text(
        model.config,
        params,
        key=f"{section}.param_dtype",
        setting=source.param_dtype,
        files=None if source.random_init else before.get("dtype"),
        why=f"{section}.compute_dtype=auto: {why}" if source.compute_dtype == "auto" else "",
    )
    run.tell(section, f"{source.path} ({drawn}{model.config.family}, {size})")


def tell_devices(run: Run, mesh: Mesh) -> None:
    """Prints the devices of the mesh; warns if some are unused."""
    run.add_metadata(mesh=dict(mesh.shape))
    run.tell("devices", devices_text(mesh, len(devices_of(run.config.device))))
    if folder := jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        run.info(f"compiled programs are kept in {folder}")
    tell_idle(run, mesh)


def devices_text(mesh: Mesh, there: int) -> str:
    """The devices of a mesh, of `there` in all: `8 of 8 gpu (H100): mesh data=2, fsdp=4`."""
    first = mesh.devices.flat[0]
    axes = ", ".join(f"{name}={mesh.shape[name]}" for name in AXES if mesh.shape[name] > 1)
    kind = "" if first.device_kind == first.platform else f" ({first.device_kind})"
    return f"{mesh.size} of {there} {first.platform}{kind}{': mesh ' + axes if axes else ''}"


def tell_rows(run: Run, config: DataConfig, data: Dataset, shape: Any) -> None:
    """Prints how many rows were read, used and cut; warns if many were lost, with the keys that change that.

    Args:
      run: the open run.
      config: the section `data`, with `max_length` set.
      data: the loaded data.
      shape: configuration of the model, which is printed too if it was passed live.
    """
    if not {"model", "patient"} & run.metadata().get("opening", {}).keys():
        run.tell("model", f"passed live ({shape.family})")
    context = shape.max_positions
    counts, summary = data.counts, run.metadata()["data"]
    cut = summary["truncated"]
    filtered = ", ".join(f"{reason}: {number:,}" for reason, number in counts.filtered.most_common())
    parts = [f"{counts.read:,} rows read", f"{counts.used:,} used"]
    parts += [f"{counts.read - counts.used:,} filtered ({filtered})"] if filtered else []
    parts += [f"{cut:,} cut to {config.max_length:,} tokens"] if cut else []
    streamed = isinstance(data.train, Stream)
    lengths = lengths_of(data.train)
    parts.append(f"{len(data.train):,} for training, {len(data.validation):,} held out")
    parts.append(f"{lengths.mean():,.0f} tokens on average, at most {lengths.max():,}")
    run.tell("data", ("in the first window: " if streamed else "") + "; ".join(parts))
    measured = run.config.eval_every or run.config.best_metric.startswith("eval/")
    if not len(data.validation) and measured:
        run.warn(
            "data: no held-out rows, so nothing is evaluated: set data.validation, or raise "
            f"data.validation_fraction={config.validation_fraction:g}"
        )
    lost = Counter({r: n for r, n in counts.filtered.items() if not r.startswith(ASKED_FOR)})
    meant = counts.used + lost.total()
    if lost.total() > LOSS * meant:
        why = "; ".join(
            f"{reason}: {n:,}{_keys(reason, config, context)}" for reason, n in lost.most_common()
        )
        run.warn(f"data: {_share(lost.total(), meant)} were dropped: {why}")
    if cut > LOSS * meant:
        more = f"; the model's context is {context:,}" if context > config.max_length else ""
        run.warn(
            f"data: {_share(cut, meant)} were cut by data.truncation={config.truncation} to "
            f"data.max_length={config.max_length}{more}"
        )


def _keys(reason: str, config: DataConfig, context: int) -> str:
    """The keys that change it, of those that would."""
    useless = {f"data.truncation={config.truncation}"}
    useless |= {"data.max_length"} if config.max_length >= context else set()
    useless |= set() if config.max_prompt_length else {"data.max_prompt_length"}
    keys = [key for key in KEYS.get(reason, ()) if key not in useless]
    return f" ({' or '.join(keys)})" if keys else ""


def _share(number: int, total: int) -> str:
    return f"{number:,} of {total:,} rows ({number / total:.0%})"


def announced(loop: Any, state: Any) -> Callable[[Any, Any], Any]:
    """The update of a `Loop` that starts from `state`: before its first step it prints the length of the run."""
    update, run, first = loop.update, loop.run, True

    def told(state: Any, batch: Any) -> Any:
        nonlocal first
        if not first:
            return update(state, batch)
        first = False
        tokens = int(loop.tokens_in(batch))
        _tell_length(
            run,
            f"{loop.total_steps:,} steps, {loop.batches.per_epoch:,.1f} per epoch; {tokens:,} tokens in the first "
            "batch",
            state,
            steps=loop.total_steps,
            batches_per_epoch=loop.batches.per_epoch,
            first_batch_tokens=tokens,
        )
        run.note("compiling the training step ...")
        began = time.perf_counter()
        result = update(state, batch)
        _tell_compiled(run, "training step compiled", began)
        return result

    return told


def tell_updates(trainer: Any) -> Callable[[], None]:
    """Prints the length of a run of updates; call the returned function after the first of them."""
    run, train, copies = trainer.run, trainer.config.train, trainer.config.sampling.num_samples
    steps = train.epochs * train.minibatches
    _tell_length(
        run,
        f"{train.updates:,} updates of {train.prompts:,} prompts x {copies:,} completions, {steps:,} optimizer "
        f"step{'s' if steps > 1 else ''} each; {trainer.prompts.per_epoch:,.1f} per epoch",
        trainer.state,
        updates=train.updates,
        batches_per_epoch=trainer.prompts.per_epoch,
        steps_per_update=steps,
    )
    run.note("compiling sampling, scoring and the training step ...")
    began = time.perf_counter()
    return lambda: _tell_compiled(run, "first update (including compilation) finished", began)


def _tell_length(run: Run, length: str, state: Any, **facts: Any) -> None:
    trained, whole = (
        models.params_count(state.params),
        run.metadata().get("models", {}).get("model", {}).get("parameters", 0),
    )
    run.add_metadata(training={**facts, "trained_parameters": trained})
    share = f" ({trained / whole:.2%} of the model)" if trained < whole else ""
    run.tell("train", f"{length}; {trained:,} trainable parameters{share}")
    if run.metadata()["config"].get("optimizer", {}).get("moment_dtype") == "8bit":
        _tell_moments(run, state.opt_state)


def _tell_moments(run: Run, opt_state: Any) -> None:
    if count := numbers_in_8_bits(opt_state):
        run.tell("moments", f"{count:,} numbers in 8 bits")
    else:
        run.warn(
            f"optimizer.moment_dtype=8bit has no effect: no trained matrix has {MIN_SIZE:,} numbers and a last axis of "
            f"{BLOCK} or more"
        )


def _tell_compiled(run: Run, what: str, began: float) -> None:
    seconds = time.perf_counter() - began
    run.add_metadata(compile_seconds=round(seconds, 1))
    run.note(f"{what} in {seconds:.1f} s")
