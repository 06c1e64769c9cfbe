"""Pages that need no other file: their look, tables, and texts that cannot become HTML."""

import base64
import hashlib
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.runs import records

# Letters of a long text that are shown before it is opened.
FOLDED = 400

STYLE = """
:root { color-scheme: light; --ink: #1f2937; --dim: #6b7280; --line: #e5e7eb; --soft: #f9fafb; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 0 auto; max-width: 1180px; padding: 28px; }
h1 { font-size: 24px; margin: 0 0 2px; } h2 { font-size: 17px; margin: 34px 0 10px; }
p.dim, .dim { color: var(--dim); margin: 0 0 8px; } .wide + p { margin-top: 12px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 14px; }
.grid img { width: 100%; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 6px 10px; border-bottom: 1px solid var(--line); vertical-align: top; }
th { background: var(--soft); font-weight: 600; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.text { white-space: pre-wrap; overflow-wrap: anywhere; } b.best { color: #047857; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; } pre.command { background: var(--soft); padding: 8px 10px; }
details summary { cursor: pointer; color: var(--dim); }
td details summary { color: inherit; } td details[open] summary { color: var(--dim); font-size: 0; }
td details[open] summary::after { content: "fold"; font-size: 13px; } .wide { overflow-x: auto; }
"""


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as an HTML table, whose columns are the names of all of them; columns of numbers to the right."""
    if not rows:
        return "<p class=dim>none</p>"
    columns = list(dict.fromkeys(name for row in rows for name in row))
    numeric = {
        c for c in columns if all(isinstance(r.get(c), (int, float)) or r.get(c) is None for r in rows)
    }
    head = "".join(f"<th{' class=number' if c in numeric else ''}>{escaped(c)}</th>" for c in columns)
    lines = []
    for row in rows:
        cells = [
            f"<td class=number>{escaped(_value(row.get(c)))}</td>"
            if c in numeric
            else f"<td class=text>{folded(_value(row.get(c)))}</td>"
            for c in columns
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<div class=wide><table><tr>{head}</tr>{''.join(lines)}</table></div>"


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def folded(text: str) -> str:
    """A text as HTML; of a long one the beginning, and the whole to be opened."""
    start = "\n".join(text[:FOLDED].split("\n")[:12])
    if len(text) <= len(start) + 100 and text.count("\n") < 15:
        return escaped(text)
    return f"<details><summary>{escaped(start)} …</summary>{escaped(text)}</details>"


def escaped(value: Any) -> str:
    """A value as text that a page shows as it is, also within a quoted attribute."""
    return html.escape(str(value))


def write_page(path: Path, title: str, body: Sequence[str], *, style: str = "", script: str = "") -> Path:
    """Writes an HTML page that needs no other file; it appears whole or not at all.

    Args:
      path: the file.
      title: of the page, plain text.
      body: pieces of HTML.
      style: CSS beyond that of all pages.
      script: run at the end; browsers then run no other script on the page, wherever it came from.
    """
    policy = ended = ""
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        rules = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
        policy = f'<meta http-equiv=Content-Security-Policy content="{rules}">'
        ended = f"<script>{script}</script>"
    page = (
        f"<!doctype html><html lang=en><head><meta charset=utf-8>{policy}"
        f"<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{escaped(title)}</title><style>{STYLE}{style}</style></head>"
        f"<body>{''.join(body)}{ended}</body></html>"
    )
    # Half of a surrogate pair, which JSON can hold and UTF-8 cannot, becomes a question mark.
    records.write_whole(path, page.encode("utf-8", "replace").decode())
    return path
