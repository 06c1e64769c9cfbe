"""Token rewards to look at: texts whose tokens are coloured by reward, in one HTML file that needs no other."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxalign.runs.page import write_page

STYLE = """
.pair { border-top: 1px solid var(--line); padding: 14px 0; }
.prompt { white-space: pre-wrap; overflow-wrap: anywhere; color: var(--dim); margin: 0 0 10px; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 18px; }
.sides h3 { font-size: 14px; margin: 0 0 4px; } .sides h3 span { font-weight: 400; color: var(--dim); }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.9; }
.tokens span { border-radius: 3px; cursor: default; }
.tokens span:hover { outline: 1px solid var(--ink); }
.plus { background: rgb(5 150 105 / calc(var(--s) * .55)); font-weight: 700; }
.minus { background: rgb(220 38 38 / calc(var(--s) * .45)); text-decoration: underline;
  text-decoration-thickness: calc(1px + var(--s) * 2px); text-underline-offset: 3px; }
"""


@dataclass(frozen=True)
class ResponseView:
    """A response to be shown; all lists have one item a token.

    Attributes:
      texts: what each token writes; empty for one that only begins a character.
      positive_logps, negative_logps: log-probs under the two instructions, nats.
      importances: in [0, 1].
      rewards: in [-1, 1].
    """

    texts: Sequence[str]
    positive_logps: Sequence[float]
    negative_logps: Sequence[float]
    importances: Sequence[float]
    rewards: Sequence[float]


@dataclass(frozen=True)
class PairView:
    """Two responses to one prompt; `source` says where they come from."""

    prompt: str
    chosen: ResponseView
    rejected: ResponseView
    source: str = ""


def write_token_view(
    path: Path, pairs: Sequence[PairView], *, title: str, subtitle: str = "", notes: Sequence[str] = ()
) -> Path:
    """Writes pairs with the chosen response beside the rejected one.

    A token with a positive reward is green and bold, one with a negative reward red and underlined, the stronger the
    larger the reward; pointing at a token shows its numbers.

    Args:
      path: the HTML file, which appears whole or not at all.
      pairs: what is shown, in this order.
      title, subtitle: of the page, plain text.
      notes: paragraphs above the pairs, plain text.
    """
    legend = (
        "<p class=dim><span class=tokens><span class=plus style='--s:.9'>green and bold</span></span>: a positive "
        "reward; <span class=tokens><span class=minus style='--s:.9'>red and underlined</span></span>: a negative "
        "one; plain: none. Stronger marks are larger rewards. Hover over a token for its numbers.</p>"
    )
    body = [f"<h1>{html.escape(title)}</h1><p class=dim>{html.escape(subtitle)}</p>"]
    body += [f"<p class=dim>{html.escape(note)}</p>" for note in notes]
    body += [legend, *(_pair(pair) for pair in pairs)]
    return write_page(path, f"{title} · jaxalign", body, style=STYLE)


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token writes; joined, the text. Of a character's tokens the last one has it, the others are empty."""
    texts, before, begin = [], "", 0
    plain = {"clean_up_tokenization_spaces": False}
    for end in range(1, len(ids) + 1):
        whole = tokenizer.decode(ids[begin:end], **plain)
        if whole.endswith("\ufffd") and end < len(ids):
            texts.append("")
            continue
        texts.append(whole[len(before) :])
        # One token more is kept, as some tokenizers leave out the space before the first.
        begin = end - 1
        before = tokenizer.decode(ids[begin:end], **plain)
    return texts


def _pair(pair: PairView) -> str:
    sides = "".join(
        f"<div><h3>{name} <span>{_facts(side)}</span></h3><div class=tokens>{_tokens(side)}</div></div>"
        for name, side in (("chosen", pair.chosen), ("rejected", pair.rejected))
    )
    place = f"<p class=dim>{html.escape(pair.source)}</p>" if pair.source else ""
    return (
        f"<section class=pair>{place}<p class=prompt>{html.escape(pair.prompt.strip())}</p>"
        f"<div class=sides>{sides}</div></section>"
    )


def _facts(side: ResponseView) -> str:
    count = len(side.rewards)
    gaps = [abs(p - n) for p, n in zip(side.positive_logps, side.negative_logps, strict=True)]
    rewarded = sum(reward != 0 for reward in side.rewards)
    return (
        f"{rewarded} of {count} tokens rewarded; the log-probs differ by {sum(gaps) / max(count, 1):.3g} nats "
        "per token"
    )


def _tokens(side: ResponseView) -> str:
    columns = (side.texts, side.positive_logps, side.negative_logps, side.importances, side.rewards)
    return "".join(_token(*values) for values in zip(*columns, strict=True))


def _token(text: str, positive: float, negative: float, importance: float, reward: float) -> str:
    # A mark for what cannot be seen; the new line itself follows it.
    shown = html.escape(text.replace("\n", "↵\n")) or "·"
    kind = f" class={'plus' if reward > 0 else 'minus'} style='--s:{abs(reward):.2f}'" if reward else ""
    told = (
        f"log-prob {positive:.3f} under the positive, {negative:.3f} under the negative instruction; "
        f"difference {positive - negative:+.3f} nats; importance {importance:.3f}; reward {reward:+.3f}"
    )
    return f'<span{kind} title="{told}">{shown}</span>'
