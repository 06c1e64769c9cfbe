"""What the experiments on a real chat model share: stages that are kept, samples that are measured, tables."""

import argparse
import json
import re
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from llmdoctor_measure import distinct

import jaxalign as ja
from jaxalign import models
from jaxalign.evaluation.policy import make_scorer, summed_logps
from jaxalign.rollout import Completions, Sampler, join_rows
from jaxalign.uncertainty import bootstrap_interval

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Stages:
    """Folders of what was done; a stage that has ended is not done again.

    Attributes:
      output: the folder of all stages.
    """

    output: Path

    def _files(self, name: str) -> tuple[Path, Path]:
        return self.output / name / "stage.json", RESULTS / self.output.name / f"{name}.json"

    def done(self, name: str) -> bool:
        """Whether the figures of a stage are there."""
        return any(file.exists() for file in self._files(name))

    def once(
        self,
        name: str,
        make: Callable[[ja.RunConfig], dict[str, Any]],
        seed: int = 0,
        *,
        weights: bool = False,
    ) -> dict[str, Any]:
        """What a stage found, with its seconds and the most memory it held; `stage.json` is its last file.

        Figures, without texts, also go to `results/`, from which they are read where the stage's folder is not there:
        all runs together take a day. With `weights` the stage is done again where its folder is not there.
        """
        file, kept = self._files(name)
        if not file.exists() and kept.exists() and not weights:
            return json.loads(kept.read_text())
        if not file.exists():
            shutil.rmtree(file.parent, ignore_errors=True)
            start = time.perf_counter()
            reset_peak()
            found = make(
                ja.RunConfig(
                    output=str(file.parent),
                    seed=seed,
                    sample_rows=0,
                    save_every=0,
                    log_every=1,
                    progress=False,
                )
            )
            found |= {
                "seconds": round(time.perf_counter() - start),
                "peak_gib": round(peak_bytes() / 2**30, 2),
            }
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found))
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps({key: x for key, x in found.items() if key != "texts"}) + "\n")
            print(f"{name}: {found['seconds']} s, {found['peak_gib']} GiB", flush=True)
            jax.clear_caches()
        return json.loads(file.read_text())


def arguments(about: str | None, output: str, *, shared: bool = True) -> argparse.ArgumentParser:
    """What all of them are told: the model, where to write, the seeds, and of those that read it the real data."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    if shared:
        parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--output", type=Path, default=Path(output))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser


def reset_peak() -> None:
    """Begins the count of `peak_bytes` anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most memory that this process held, in bytes, since `reset_peak`."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def held_out(result: Any) -> dict[str, Any]:
    """The final figures on held-out rows."""
    return {name: float(value) for name, value in result.metrics.items() if name.startswith("eval/")}


def asked(tokenizer: Any, prompts: Sequence[str], told: str = "") -> list[list[int]]:
    """Each prompt as a user's turn, after a system turn where something is `told`."""
    before = [{"role": "system", "content": told}] if told else []
    return [
        tokenizer.apply_chat_template(
            [*before, {"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in prompts
    ]


def sampled(
    model: Any,
    start: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    seed: int,
    max_new_tokens: int,
    samples: int = 1,
    temperature: float = 1.0,
    told: str = "",
) -> dict[str, Any]:
    """`samples` answers to each prompt (a user's turn), prompt by prompt; see `measured`."""
    ids = asked(tokenizer, [text for text in prompts for _ in range(samples)], told)
    done = Sampler(model).generate(
        ids, max_new_tokens=max_new_tokens, key=jax.random.key(seed), temperature=temperature
    )
    return measured(done, ids if not told else asked(tokenizer, prompts), start, tokenizer)


def measured(
    done: Completions, prompt_ids: Sequence[Sequence[int]], start: Any, tokenizer: Any
) -> dict[str, Any]:
    """Texts of answers, and figures of each.

    `kl` is of each answer log p - log p_start, p being what it was sampled from; its mean estimates the KL from the
    start (nats a sequence).
    """
    definition, params = models.split(start)
    theirs = summed_logps(make_scorer(definition), params, join_rows(prompt_ids, done), batch_size=32)
    ours = np.where(done.mask, done.logps, 0.0).astype(np.float64).sum(1)
    texts = done.texts(tokenizer)
    return {
        "texts": texts,
        "distinct_2": distinct_words(texts, 2),
        "tokens": done.lengths.tolist(),
        "stopped": [reason == "stop" for reason in done.finish_reason],
        "kl": (ours - theirs).tolist(),
    }


def distinct_words(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words as a part of all, over all texts together."""
    return distinct([[text.split() for text in texts]], n)


def with_interval(points: Any, form: str = ".3f") -> str:
    """The mean over rows with its bootstrap interval; [S, N] are first averaged over seeds."""
    rows = np.atleast_2d(np.asarray(points, np.float64)).mean(0)
    low, high = bootstrap_interval(rows, seed=0)
    return f"{rows.mean():{form}} [{low:{form}}, {high:{form}}]"


def over_seeds(values: Sequence[float], form: str = ".3f") -> str:
    """Mean, and least and largest of the seeds."""
    return f"{np.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def cost(runs: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Columns of a table: mean seconds of a run and the most memory that one held."""
    return {
        "s a run": f"{np.mean([run['seconds'] for run in runs]):.0f}",
        "GiB": f"{max(run['peak_gib'] for run in runs):.1f}",
    }


def drop_weights(run: ja.RunConfig) -> None:
    """Half a gigabyte a run is not kept; figures and texts are."""
    for name in ("export", "checkpoints"):
        shutil.rmtree(Path(run.output) / name, ignore_errors=True)
