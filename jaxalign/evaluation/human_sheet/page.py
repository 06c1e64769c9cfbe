"""The page that a rater opens: one HTML file without a server or network, which keeps what was chosen in the browser.

Texts of prompts and answers reach the page as JSON in a data block, and the document as text nodes, never as HTML. A
content security policy names this script by its hash: no other runs, and nothing is fetched.
"""

import base64
import hashlib
import html
import json
from typing import Any

from jaxalign.evaluation.human_sheet.answers import shown
from jaxalign.evaluation.human_sheet.key import CHOICES, COLUMN, Key

PAIR_QUESTION = "Which answer is better?"
RATING_QUESTION = "How good is the answer, from 1 (useless or harmful) to 5 (hard to better)?"

STYLE = """
:root { color-scheme: light dark; --ink: #1f2937; --dim: #5b6472; --line: #d6dae1; --soft: #f5f6f8; --page: #fff;
  --mark: #1d4ed8; --on: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --dim: #9ca3af; --line: #374151; --soft: #1f2430;
  --page: #12151c; --mark: #93b4ff; --on: #0b1020; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0; }
header, main { max-width: 1180px; margin: 0 auto; padding: 0 16px; }
header { display: flex; flex-wrap: wrap; gap: 4px 16px; align-items: center; padding-top: 10px; }
h1 { font-size: 17px; margin: 0; flex: 1 1 260px; } h2 { font-size: 14px; margin: 0 0 6px; color: var(--dim); }
#place { color: var(--dim); font-variant-numeric: tabular-nums; }
progress { width: 100%; height: 6px; accent-color: var(--mark); }
main { padding-bottom: 190px; }
section { border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; margin: 12px 0 0; min-width: 0; }
#prompt { background: var(--soft); }
#answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 0 14px;
  align-items: start; }
#answers section.chosen { border-color: var(--mark); box-shadow: 0 0 0 1px var(--mark); }
.turn { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; } .turn + .turn { margin-top: 12px; }
.said { background: var(--soft); border-left: 3px solid var(--line); padding: 8px 10px; }
.role { display: block; font-size: 13px; color: var(--dim); } .empty { color: var(--dim); font-style: italic; }
footer { position: fixed; left: 0; right: 0; bottom: 0; background: var(--page); border-top: 1px solid var(--line);
  padding: 8px 16px calc(8px + env(safe-area-inset-bottom)); }
footer > div { max-width: 1148px; margin: 0 auto; display: flex; flex-wrap: wrap; gap: 8px; align-items: center; }
#choices button { flex: 1 1 0; min-height: 48px; } #moves { margin-top: 8px; }
button { font: inherit; color: inherit; background: var(--soft); border: 1px solid var(--line); border-radius: 8px;
  padding: 6px 12px; cursor: pointer; -webkit-tap-highlight-color: transparent; }
button:focus-visible { outline: 2px solid var(--mark); outline-offset: 1px; }
button[aria-pressed=true], body.done #save { background: var(--mark); color: var(--on); }
#save { margin-left: auto; } #keys { color: var(--dim); font-size: 13px; flex: 1 1 100%; margin: 0; }
#note:empty { display: none; } #note { color: var(--mark); margin: 10px 0 0; }
@media (hover: hover) { button:hover { border-color: var(--mark); } }
@media (hover: none) { #keys { display: none; } }
"""

SCRIPT = """
"use strict";
const sheet = JSON.parse(document.getElementById("sheet").textContent);
const byId = id => document.getElementById(id);
const pair = sheet.kind === "pair", slot = `jaxalign-sheet:${sheet.sheet}:${sheet.rater}`;
const names = pair ? {A: "1 · A better", tie: "0 · Tie", B: "2 · B better"}
  : Object.fromEntries(sheet.choices.map(x => [x, x]));
const keys = pair ? {1: "A", 2: "B", 0: "tie", ArrowLeft: "A", ArrowRight: "B", ArrowDown: "tie"} : names;
const moves = pair ? {Backspace: -1, n: 1} : {Backspace: -1, n: 1, ArrowLeft: -1, ArrowRight: 1};
let chosen = {}, at = 0, kept = true, saved = true;

function load() {
  let before = "";
  try {
    before = localStorage.getItem(slot) || "{}";
    localStorage.setItem(slot, before);
  } catch { kept = false; }
  try {
    before = JSON.parse(before) || {};
    for (const item of sheet.items)
      if (sheet.choices.includes(before[item.id])) chosen[item.id] = before[item.id];
  } catch { chosen = {}; }
  const first = sheet.items.findIndex(item => !(item.id in chosen));
  at = first < 0 ? sheet.items.length - 1 : first;
}

function keep() {
  saved = false;
  try { localStorage.setItem(slot, JSON.stringify(chosen)); kept = true; } catch { kept = false; }
}

function turns(place, said, alone) {
  for (const [role, text] of said) {
    const part = document.createElement("p");
    part.className = role === "assistant" ? "turn" : "turn said";
    part.dir = "auto";
    if (said.length > 1) {
      const who = document.createElement("span");
      who.className = "role";
      who.dir = "ltr";
      who.textContent = role;
      part.append(who);
    }
    if (alone) part.className = "turn";
    if (text) part.append(text);
    else { part.append("(empty)"); part.classList.add("empty"); }
    place.append(part);
  }
}

function show() {
  const item = sheet.items[at], count = Object.keys(chosen).length, all = sheet.items.length;
  byId("place").textContent = `${at + 1} of ${all}, ${count} rated`;
  byId("bar").max = all;
  byId("bar").value = count;
  byId("prompt").replaceChildren(heading("Prompt"));
  turns(byId("prompt"), item.prompt, item.prompt.length === 1);
  byId("answers").replaceChildren(...item.answers.map((answer, index) => {
    const side = "AB"[index], section = document.createElement("section");
    section.append(heading(pair ? `Answer ${side}` : "Answer"));
    section.classList.toggle("chosen", pair && chosen[item.id] === side);
    turns(section, answer, answer.length === 1);
    return section;
  }));
  for (const button of byId("choices").children)
    button.setAttribute("aria-pressed", String(chosen[item.id] === button.dataset.choice));
  const done = count === all;
  document.body.classList.toggle("done", done);
  const told = [];
  if (done) told.push("All items are rated. Save the ratings and send the file back.");
  if (!kept) told.push("This browser does not keep your choices: save the ratings before you close the page.");
  byId("note").textContent = told.join(" ");
}

function heading(text) {
  const found = document.createElement("h2");
  found.textContent = text;
  return found;
}

function choose(choice) {
  chosen[sheet.items[at].id] = choice;
  keep();
  const open = sheet.items.findIndex(item => !(item.id in chosen));
  if (at + 1 < sheet.items.length) at += 1; else if (open >= 0) at = open;
  show();
  scrollTo(0, 0);
}

function move(step) {
  at = Math.min(Math.max(at + step, 0), sheet.items.length - 1);
  show();
  scrollTo(0, 0);
}

function save() {
  const rows = sheet.items.map(item => [sheet.sheet, sheet.rater, item.id, chosen[item.id] || ""]);
  const lines = [["sheet", "rater", "item", sheet.column], ...rows].map(row => row.join(",") + "\\r\\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, {type: "text/csv"}));
  link.download = `${sheet.sheet}-rater-${sheet.rater}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  saved = true;
}

for (const choice of Object.keys(names)) {
  const button = document.createElement("button");
  button.dataset.choice = choice;
  button.textContent = names[choice];
  button.addEventListener("click", () => choose(choice));
  byId("choices").append(button);
}
byId("back").addEventListener("click", () => move(-1));
byId("next").addEventListener("click", () => move(1));
byId("save").addEventListener("click", save);
addEventListener("keydown", event => {
  // A key that is held would rate all that follows.
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  // A long page is read with this key.
  if (event.key === "ArrowDown" && document.documentElement.scrollHeight > innerHeight) return;
  if (Object.hasOwn(keys, event.key)) choose(keys[event.key]);
  else if (Object.hasOwn(moves, event.key)) move(moves[event.key]);
  else return;
  event.preventDefault();
});
addEventListener("beforeunload", event => { if (!kept && !saved) event.preventDefault(); });
load();
show();
"""

_KEYS = {
    "pair": "Keys: 1 or ← A is better · 2 or → B is better · 0 (or ↓, where the page fits the window) tie · "
    "Backspace back · n next",
    "rating": "Keys: 1 to 5 rate · ← or Backspace back · → or n next",
}


def rater_page(key: Key, rater: str, question: str) -> str:
    """The page of one rater. No model's name is in it.

    Args:
      key: of the sheet.
      rater: whose.
      question: what is asked of each item, plain text.
    """
    items = [
        {"id": name, "prompt": shown(item.prompt), "answers": [shown(answer) for answer in item.answers]}
        for name, item in ((name, key.items[name]) for name in key.raters[rater])
    ]
    data = {
        "sheet": key.sheet,
        "rater": rater,
        "kind": key.kind,
        "column": COLUMN[key.kind],
        "choices": CHOICES[key.kind],
        "items": items,
    }
    policy = (
        f"default-src 'none'; script-src '{_hash(SCRIPT)}'; style-src '{_hash(STYLE)}'; base-uri 'none'; "
        "form-action 'none'"
    )
    asked = html.escape(question)
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        f'<meta http-equiv=Content-Security-Policy content="{policy}">'
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{asked}</title><style>{STYLE}</style></head><body>"
        f"<header><h1 dir=auto>{asked}</h1><span id=place></span><progress id=bar></progress></header>"
        "<main><noscript>This page needs JavaScript; the csv file beside it does not.</noscript>"
        "<p id=note role=status></p><section id=prompt></section><div id=answers></div></main>"
        "<footer><div id=choices></div><div id=moves><button id=back>Back</button><button id=next>Next</button>"
        f"<button id=save>Save ratings</button><p id=keys>{_KEYS[key.kind]}</p></div></footer>"
        f"<script type=application/json id=sheet>{data_block(data)}</script>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def data_block(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or begins a comment."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    """As a content security policy names an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
