"""Writes docs/reference/: the command line and every configuration key, from what `--help-all` prints.

    python docs/make_reference.py

`make docs` runs it before the site is built; git ignores what it writes.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from jaxalign import config as configs  # noqa: E402
from jaxalign.cli import help as help_texts  # noqa: E402
from jaxalign.cli import main as cli  # noqa: E402

FOLDER = Path(__file__).parent / "reference"
# What a choice may be beside a value of its own.
TYPES = {"text", "int", "float", "bool", "null", "empty"}


def command_page(name: str) -> str:
    """The page of one command: what it does, the common keys, and all keys by section."""
    command = cli.COMMANDS[name]
    cls = cli.load(command.config)
    keys = configs.describe(cls)
    flags = {key: flag for flag, key in cli.short_flags(cls, command).items() if flag != key}
    usage = f"jaxalign {name}" + (f" [{command.positional.upper()}]" if command.positional else "")
    summary = (cli.load(command.function).__doc__ or "").strip().partition("\n\n")[0]
    lines = [
        f"# `jaxalign {name}`",
        "",
        " ".join(summary.split()),
        "",
        "```",
        f"{usage} [--config FILE_OR_NAME] [--key=value ...]",
        "```",
        "",
        f"How to use it: [{name}](../howto/{name}.md). `jaxalign {name} --help-all` prints this page on the terminal.",
        "",
    ]
    known = {key.name: key for key in keys}
    dotted = any("." in key.name for key in keys)
    chosen = [known[key] for some in help_texts.COMMON.values() for key in some if key in known]
    if dotted and chosen:
        lines += ["## Common keys", "", *table(chosen, flags)]
    sections: dict[str, list[configs.Key]] = {}
    for key in keys:
        sections.setdefault(key.name.rpartition(".")[0], []).append(key)
    for section, members in sections.items():
        lines += [f"## {f'`{section}`' if section else 'Top-level keys'}", "", *table(members, flags)]
    return "\n".join(lines)


def table(keys: Iterable[configs.Key], flags: dict[str, str]) -> list[str]:
    """Rows of a table: key with its short flag, type and default, meaning."""
    lines = ["| key | type, default | meaning |", "|---|---|---|"]
    for key in keys:
        short = f"<br>`--{flags[key.name].replace('_', '-')}`" if key.name in flags else ""
        default = "default " + ("empty" if key.default == "''" else f"`{key.default}`")
        kind = f"{typed(key.type) or cell(key.type)}<br>{'**required**' if key.default == 'required' else default}"
        lines.append(f"| `{key.name}`{short} | {kind} | {cell(sentence(key))} |")
    return [*lines, ""]


def typed(kind: str) -> str:
    """A type for people; the choices of a setting each as code."""
    return " · ".join(choice if choice in TYPES else f"`{choice}`" for choice in choices(kind))


def choices(kind: str) -> list[str]:
    """The types and values of which a setting takes one."""
    found = [choice.strip() or "empty" for choice in re.split(r" \| | or ", kind)]
    return found if len(found) > 1 else []


def sentence(key: configs.Key) -> str:
    """What a key means, with a capital at its beginning unless that is a symbol or one of its choices."""
    text, first = key.meaning, re.split(r"[ ,:;]", key.meaning, maxsplit=1)[0]
    word = re.fullmatch(r"a|[a-z][a-z'-]+", first) and first not in choices(key.type)
    return text[:1].upper() + text[1:] if word else text


def cell(text: str) -> str:
    """Text that Markdown shows as it is, in a cell of a table; code between backticks stays code."""
    parts = " ".join(text.split()).split("`")
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([*_\[\]])", r"\\\1", parts[i].replace("&", "&amp;").replace("<", "&lt;"))
    return "`".join(parts).replace("|", r"\|")


def cli_page() -> str:
    """Commands, flags that all share, exit statuses."""
    rows = [f"| [`{name}`]({name}.md) | {cell(c.summary)} |" for name, c in cli.COMMANDS.items()]
    plain = [f"| `--{flag}` | {cell(text)} |" for flag, text in cli.PLAIN_FLAGS.items()]
    short = [f"| `--{flag.replace('_', '-')}` | `--{key}` |" for flag, key in cli.SHORT_FLAGS.items()]
    return "\n".join(
        [
            "# The command line",
            "",
            "```",
            "jaxalign COMMAND [--config FILE_OR_NAME] [--dotted.key=value ...]",
            "```",
            "",
            "Settings come from the defaults, a YAML file (`--config`: a path, or the name of a",
            "[shipped configuration](configs.md)) and flags; later sources override earlier ones. A flag is the key's",
            "dotted name, `--train.steps=200` or `--train.steps 200`. Lists and mappings are YAML or JSON,",
            "`--data.train='[a.jsonl, b.jsonl]'`. An unknown key, a duplicate key or a value of the wrong type stops",
            "the command with a one-line error that names it.",
            "",
            "## Commands",
            "",
            *["| command | what it does |", "|---|---|", *rows, ""],
            "## Common flags",
            "",
            *["| flag | meaning |", "|---|---|", *plain, ""],
            "## Short flags",
            "",
            "A command accepts a short flag if it has the key and no other key of that name.",
            "",
            *["| flag | stands for |", "|---|---|", *short, ""],
            "## Help",
            "",
            "`jaxalign COMMAND --help` prints the common keys, `--help-all` all keys, and `--help SECTION` one section",
            "(`data`, `loss`, `optimizer`, ...).",
            "",
            "## Exit status",
            "",
            *["| status | meaning |", "|---:|---|"],
            "| 0 | success |",
            "| 1 | a bug in jaxalign or a library; the traceback shows where |",
            "| 2 | a mistake in the input: a one-line error names the key, file, row or device and what was expected |",
            "| 130, 143 | stopped by SIGINT or SIGTERM after saving a checkpoint; `--resume` continues the run |",
            "",
        ]
    )


def configs_page() -> str:
    """The configurations that the package ships, whole."""
    lines = [
        "# Shipped configurations",
        "",
        "Select one with `--config NAME`; flags override its keys.",
        "",
    ]
    for name, path in configs.shipped_configs().items():
        lines += [f"## `{name}`", "", "```yaml", path.read_text().rstrip(), "```", ""]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """File name -> text."""
    made = {f"{name}.md": command_page(name) for name in cli.COMMANDS}
    return {"cli.md": cli_page(), "configs.md": configs_page(), **made}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    made = pages()
    for stale in set(FOLDER.glob("*.md")) - {FOLDER / name for name in made}:
        stale.unlink()
    for name, text in made.items():
        if not (FOLDER / name).is_file() or (FOLDER / name).read_text() != text:
            (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
