"""The model card of an export: what the model is, how and from what it was made, and its metrics."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jaxalign.data.datasets_files import is_hub_id

KINDS = {
    "sft": "a language model, fine-tuned on demonstrations",
    "distill": "a language model, distilled from a larger one",
    "dpo": "a language model, aligned to preferences with {loss}",
    "tfpo": "a doctor: a language model that guides a larger frozen one, the patient (LLMDoctor, TFPO)",
    "ppo": "a language model, trained against a reward with PPO",
    "grpo": "a language model, trained against a reward with {loss}",
    "online-dpo": "a language model, aligned to preferences between its own samples with {loss} (online DPO)",
    "reward": "a reward model: one score per completion",
}
# Keys about the machine and the logging, not about what was trained.
LEFT_OUT = re.compile(r"run\.(?!best|export)|data\.(train|validation|cache|workers)$|model\.path$")
SHOWN = ("eval/", "objective/", "final/")


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card shows in addition to a run's metadata.

    Attributes:
      run: the run's name.
      step: the optimizer step (or update) of the weights.
      form: model, reward, ensemble, doctors, adapter or gguf.
      metrics: metrics at that step, by name.
      dtype: dtype of the weights.
      base: folder or hub id of the run's initial model; empty if it has none.
      revision: of a hub id.
      settings: dotted key -> value, for keys that differ from their defaults.
      note: an additional line, such as that scores are raw.
    """

    run: str
    step: int
    form: str
    metrics: Mapping[str, float]
    dtype: str
    base: str = ""
    revision: str = ""
    settings: Mapping[str, Any]
    note: str = ""


def model_card(metadata: Mapping[str, Any], facts: CardFacts) -> str:
    """The text of README.md.

    Args:
      metadata: what a run's metadata.json holds.
      facts: what is exported.
    """
    config, command = metadata.get("config", {}), str(metadata.get("command", ""))
    front = yaml.safe_dump(_front(config, command, facts), sort_keys=False, allow_unicode=True)
    loss = str((config.get("loss") or {}).get("name", "")) or command
    kind = KINDS.get(command, command).format(loss=loss)
    if command == "reward" and (config.get("loss") or {}).get("labels") == "steps":
        kind = "a process reward model: one logit per step of a solution"
    if facts.form == "ensemble":
        kind += f"; an ensemble of {(config.get('ensemble') or {}).get('size')}, one per folder"
    if facts.form == "doctors":
        kind = f"doctors, one per folder: {', '.join(config.get('dimensions') or ())}"
    lora = (config.get("lora") or {}).get("enabled")
    base = f"`{facts.base}`" if facts.base else "a model that was passed live from Python"
    base += f" (revision {facts.revision})" if facts.revision else ""
    if facts.form == "adapter":
        made = f"It is a LoRA adapter on {base}."
    else:
        made = f"Its initial model is {base}" + (
            "; a LoRA adapter was trained and is merged in." if lora else "."
        )
    if (config.get("model") or {}).get("random_init"):
        made = f"It was trained from random weights, with the configuration of {base}."
    parts = [
        f"---\n{front}---\n",
        f"# {facts.run}, step {facts.step}\n",
        f"{kind[0].upper()}{kind[1:]}, exported at step {facts.step} in {facts.dtype}. {made}\n",
        *([f"{facts.note}\n"] if facts.note else []),
        "## Training\n",
        f"With jaxalign {(metadata.get('versions') or {}).get('jaxalign', '')}, seed {metadata.get('seed')}:\n",
        f"```\n{_command(metadata, command)}\n```\n",
        "Keys that differ from their defaults:\n",
        _table(
            ("key", "value"),
            [(f"`{key}`", f"`{value}`") for key, value in facts.settings.items() if not LEFT_OUT.match(key)],
        ),
        "## Data\n",
        _data(metadata.get("data", {}), config.get("data") or {}),
        f"## Metrics at step {facts.step}\n",
        _metrics(facts.metrics),
        "## Versions\n",
        ", ".join(f"{name} {number}" for name, number in metadata.get("versions", {}).items())
        + f", Python {metadata.get('python')}, on {metadata.get('backend')}.\n",
        "This card states no license: the licenses of the initial model and of the data apply.\n",
    ]
    return "\n".join(part for part in parts if part)


def _front(config: Mapping[str, Any], command: str, facts: CardFacts) -> dict[str, Any]:
    """The YAML that the hub reads; `base_model` and `datasets` may name what lies there, and nothing else."""
    library = {"adapter": "peft", "gguf": "gguf"}.get(facts.form, "transformers")
    front: dict[str, Any] = {"library_name": library}
    if on_hub(facts.base):
        front["base_model"] = facts.base
        front["base_model_relation"] = "adapter" if facts.form == "adapter" else "finetune"
    scores = facts.form in ("reward", "ensemble")
    front["pipeline_tag"] = "text-classification" if scores else "text-generation"
    tags = ["jaxalign", command, *(["reward-model"] if scores else [])]
    front["tags"] = [*tags, *(["lora"] if (config.get("lora") or {}).get("enabled") else [])]
    sets = [
        re.split("[:@#]", path)[0] for path in (config.get("data") or {}).get("train", ()) if is_hub_id(path)
    ]
    if sets:
        front["datasets"] = list(dict.fromkeys(sets))
    return front


def on_hub(name: str) -> bool:
    """Whether the name of a model is a hub id."""
    return (
        bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not name.startswith(".") and not Path(name).exists()
    )


def _command(metadata: Mapping[str, Any], command: str) -> str:
    arguments = [str(item) for item in metadata.get("arguments", ())]
    if arguments and arguments[0].replace("_", "-") == command:
        return "jaxalign " + shlex.join(arguments)
    return f"jaxalign.training: {command}, called from Python"


def _data(data: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    files = list(dict.fromkeys([*config.get("train", ()), *config.get("validation", ())]))
    lines = [f"- `{path}`" for path in files] or ["- rows passed from Python"]
    if data:
        filtered = ", ".join(f"{count} {reason}" for reason, count in (data.get("filtered") or {}).items())
        rows = [
            f"{data.get('read')} rows read, {data.get('used')} used",
            *([f"dropped: {filtered}"] if filtered else []),
            *([f"{data['truncated']} cut to length"] if data.get("truncated") else []),
        ]
        examples = data.get("train_rows", data.get("first_window_rows"))
        lines.append(
            f"\n{'; '.join(rows)}. {examples} training examples, {data.get('validation_rows')} held out."
        )
    return "\n".join(lines) + "\n"


def _metrics(metrics: Mapping[str, float]) -> str:
    """A table of what was measured of these weights; bounds of an interval stand beside their metric."""
    rows = []
    for name, value in sorted(metrics.items()):
        if not name.startswith(SHOWN) or name.endswith(("_low", "_high")):
            continue
        low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        between = "" if low is None or high is None else f"{low:.4g} to {high:.4g}"
        rows.append((name, f"{value:.4g}", between))
    if not rows:
        return "This checkpoint was not evaluated.\n"
    return _table(("metric", "value", "95% interval"), rows)


def _table(names: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(names), line(("---",) * len(names)), *map(line, rows)]) + "\n"
