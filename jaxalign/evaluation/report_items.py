"""The items of a report as HTML: prompts, what each model answered, and how that was scored."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.evaluation.items import Item
from jaxalign.evaluation.report_choice import Items, shares_of, shown_items, verdict, verdict_metric
from jaxalign.evaluation.report_figures import dot
from jaxalign.evaluation.results import Figures
from jaxalign.evaluation.tables import number
from jaxalign.runs.page import escaped, folded

# Characters of a text that a report holds; of a prompt that the list shows; of a beginning worth telling only once.
LONGEST, LINE, OPENING = 4000, 120, 200
MARKS = {"right": "✓", "wrong": "✗", "tie": "="}

SCRIPT = """
document.documentElement.classList.add('js');
for (const box of document.querySelectorAll('.browser')) {
  const find = box.querySelector('input'), pick = box.querySelector('select');
  const said = box.querySelector('output'), open = box.querySelector('button');
  const items = [...box.querySelectorAll('.item')];
  const texts = items.map(item => item.textContent.toLowerCase());
  const show = () => {
    const words = find.value.toLowerCase().trim(), wanted = pick ? pick.value : '';
    let count = 0;
    items.forEach((item, i) => {
      const kinds = item.dataset.kinds.split(' ');
      item.hidden = !texts[i].includes(words) || (wanted !== '' && !kinds.includes(wanted));
      count += !item.hidden;
    });
    said.textContent = count + ' of ' + items.length + ' shown';
  };
  find.addEventListener('input', show);
  if (pick) pick.addEventListener('change', show);
  open.addEventListener('click', () => {
    const closed = items.some(item => !item.hidden && !item.open);
    items.forEach(item => { if (!item.hidden) item.open = closed; });
  });
  show();
}
"""


def browser(
    task: str,
    items: Sequence[Items],
    labels: Sequence[str],
    metrics: Figures,
    *,
    most: int,
    seed: int,
    budget: float = math.inf,
) -> str:
    """A list of items to open, to search, and to narrow to the wrong ones.

    Args:
      task: its name, which is its file's too.
      items: of each model, by index; those of the first model that has any are shown.
      labels: name of each model.
      metrics: of the task.
      most: items to show.
      seed: of those that are drawn.
      budget: bytes of HTML; fewer items are shown where they would take more.
    """
    lead = next((place for place, one in enumerate(items) if one), None)
    if lead is None:
        return ""
    judged = verdict_metric(items, metrics)
    opening = _opening(items[lead])
    while True:
        shown = shown_items(items[lead:], metrics, most=most, seed=seed)
        parts = [
            _item(items[lead][index], why, items, labels, task, judged, opening)
            for index, why in shown.items()
        ]
        size = sum(len(part.encode(errors="replace")) for part in parts)
        if size <= budget or most == 1:
            break
        most = max(1, min(most - 1, len(shown) - 1, int(most * budget / size)))
    told = _told(shown, len(items[lead]), seed)
    same = ""
    if len(opening) >= OPENING:
        inside = f"<summary>Each prompt begins with</summary><div class=text>{_cut(opening, task)}</div>"
        same = f"<details class=opening>{inside}</details>"
    return f"<div class=browser><p class=dim>{told}</p>{_tools(judged, labels)}{same}{''.join(parts)}</div>"


def _told(shown: Mapping[int, Sequence[str]], count: int, seed: int) -> str:
    if len(shown) == count:
        return f"All {count:,} items." if count > 1 else "The only item."
    reasons: dict[str, int] = {}
    for why in shown.values():
        for reason in why:
            reasons[reason] = reasons.get(reason, 0) + 1
    names = {"random": f"random (seed {seed})", "differing": "on which the models differ most"}
    parts = ", ".join(f"{number} {names.get(reason, reason)}" for reason, number in reasons.items())
    return f"{len(shown)} of {count:,} items: {parts}. Only the random ones stand for all."


def _tools(judged: str | None, labels: Sequence[str]) -> str:
    pick = ""
    if judged is not None:
        options = [("", "all items"), ("wrong", f"only wrong ones ({judged})")]
        if len(labels) > 1:
            options += [(f"wrong{place}", f"wrong: {label}") for place, label in enumerate(labels)]
            options += [("split", "right and wrong models")]
        pick = "".join(f'<option value="{value}">{escaped(text)}</option>' for value, text in options)
        pick = f"<select aria-label='which items'>{pick}</select>"
    find = "<input type=search placeholder='filter by words' aria-label='filter by words'>"
    return (
        f"<div class=tools>{find}{pick}<button type=button>open or fold all</button><output></output></div>"
    )


def _opening(items: Items) -> str:
    """What every prompt begins with, up to the end of a line: solved examples, say."""
    prompts = [item.prompt for item in items.values() if isinstance(item.prompt, str)]
    if len(prompts) < max(2, len(items)):
        return ""
    first, last = min(prompts), max(prompts)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[: first.rfind("\n", 0, same) + 1]


def _item(
    own: Item,
    why: Sequence[str],
    items: Sequence[Items],
    labels: Sequence[str],
    task: str,
    judged: str | None,
    opening: str,
) -> str:
    found = [one.get(own.index) for one in items]
    # An item of another prompt under the same number is no answer to this one.
    strange = [item is not None and item.prompt != own.prompt for item in found]
    found = [None if odd else item for item, odd in zip(found, strange, strict=True)]
    verdicts = [verdict(item, judged) for item in found]
    kinds = [f"wrong{place}" for place, one in enumerate(verdicts) if one == "wrong"]
    kinds += ["wrong"] if kinds else []
    kinds += ["split"] if {"wrong", "right"} <= set(verdicts) else []
    several = len(labels) > 1
    marks = "".join(
        f"<span class='mark {one}' title=\"{escaped(label)}: {one}\">{dot(place) if several else ''}{MARKS[one]}</span>"
        for place, (one, label) in enumerate(zip(verdicts, labels, strict=True))
        if one
    )
    tags = "".join(f"<span class=tag>{escaped(tag)}</span>" for tag in (own.group, *why) if tag)
    rest = own.prompt.removeprefix(opening) if isinstance(own.prompt, str) else own.prompt
    prompt = rest if len(opening) >= OPENING else own.prompt
    line = " ".join(_line(rest).split())
    line = line if len(line) <= LINE else f"{line[:LINE]} …"
    head = f"<summary><b>{own.index}</b> {marks} <span class=line>{escaped(line)}</span> {tags}</summary>"
    body = [f"<p class=dim>{escaped(own.place)}</p>" if own.place else "", _prompt(prompt, task)]
    if own.choices:
        body.append(_choices(found, labels, task))
    body.append(
        "<div class=sides>"
        + "".join(
            _side(item, place, label if several else "", task, odd)
            for place, (item, label, odd) in enumerate(zip(found, labels, strange, strict=True))
        )
        + "</div>"
    )
    if own.references:
        rows = "".join(f"<li class=text>{_cut(text, task)}</li>" for text in own.references)
        body.append(f"<h4>references</h4><ul>{rows}</ul>")
    return f"<details class=item data-kinds='{' '.join(kinds)}'>{head}<div class=inside>{''.join(body)}</div></details>"


def _line(prompt: Any) -> str:
    """The prompt, of turns the last one, as one line may show it."""
    return prompt if isinstance(prompt, str) else _content(prompt[-1]) if prompt else ""


def _prompt(prompt: Any, task: str) -> str:
    if isinstance(prompt, str):
        return f"<div class='text prompt'>{_cut(prompt.strip(), task)}</div>"
    turns = [f"<b>{escaped(turn.get('role', ''))}</b>\n{_cut(_content(turn), task)}" for turn in prompt]
    return "".join(f"<div class='text prompt'>{turn}</div>" for turn in turns)


def _content(turn: Mapping[str, Any]) -> str:
    content = turn.get("content", "")
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _choices(found: Sequence[Item | None], labels: Sequence[str], task: str) -> str:
    """A row a choice, with the probability that each model gives it; the likeliest is marked."""
    several = len(labels) > 1
    heads = "".join(
        f"<th class=number>{dot(place)}{escaped(label)}</th>"
        if several
        else "<th class=number>probability</th>"
        for place, label in enumerate(labels)
    )
    known = [item for item in found if item is not None]
    shares = [shares_of(item) if item is not None and item.logps else None for item in found]
    rows = []
    for choice, text in enumerate(known[0].choices):
        right = choice in known[0].right
        cells = []
        for place, share in enumerate(shares):
            if share is None or choice >= len(share):
                cells.append("<td></td>")
                continue
            picked = int(share.argmax()) == choice
            shown = f"{number(float(share[choice]), rate=True)}%"
            shown = f"<b title='the likeliest'>▸ {shown}</b>" if picked else shown
            cells.append(
                f"<td class='number share m{place % 8}' style='--p:{100 * float(share[choice]):.1f}%'>{shown}</td>"
            )
        mark = "<span class=right>✓ right</span>" if right else "<span class=wrong>✗</span>"
        rows.append(f"<tr><td>{mark}</td><td class=text>{_cut(text.strip(), task)}</td>{''.join(cells)}</tr>")
    return f"<div class=wide><table class=choices><tr><th></th><th>choice</th>{heads}</tr>{''.join(rows)}</table></div>"


def _side(item: Item | None, place: int, label: str, task: str, strange: bool) -> str:
    """What one model answered, with its scores."""
    head = f"<h4>{dot(place)}{escaped(label)}</h4>" if label else ""
    if item is None:
        told = "has another prompt under this number" if strange else "has no such item"
        return f"<div class='side m{place % 8}'>{head}<p class=dim>{told}</p></div>"
    parts = [head]
    for count, answer in enumerate(item.answers, 1):
        name = f"<p class=dim>answer {count}</p>" if len(item.answers) > 1 else ""
        empty = "<span class=dim>(empty)</span>"
        parts.append(f"{name}<div class='text answer'>{_cut(answer.strip(), task) or empty}</div>")
    if item.scores:
        scores = [f"{escaped(name)} <b>{_score(score)}</b>" for name, score in item.scores.items()]
        parts.append(f"<p class=scores>{' · '.join(scores)}</p>")
    parts += [f"<p class=note>{escaped(note)}</p>" for note in item.notes]
    if item.judge:
        said = "".join(
            f"<dt>{escaped(name)}</dt><dd class=text>{_cut(_said(value), task)}</dd>"
            for name, value in item.judge.items()
        )
        parts.append(f"<h4>judge</h4><dl>{said}</dl>")
    return f"<div class='side m{place % 8}'>{''.join(parts)}</div>"


def _score(score: float | None) -> str:
    """A score, a whole number as such."""
    return f"{score:,.0f}" if score is not None and score.is_integer() else number(score)


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cut(text: str, task: str) -> str:
    """A text as HTML, its end left out where it is very long."""
    if len(text) <= LONGEST:
        return folded(text)
    rest = f"<span class=dim>… {len(text) - LONGEST:,} more characters in items/{escaped(task)}.jsonl</span>"
    return folded(text[:LONGEST]) + rest
