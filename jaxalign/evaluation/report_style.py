"""The look of an evaluation's report, beyond that of all pages: light, dark, on a phone, on paper."""

from jaxalign.runs.plots import COLOURS

_MODELS = "".join(f".m{place} {{ --c: {colour}; }}\n" for place, colour in enumerate(COLOURS))
STYLE = (
    """
:root { color-scheme: light dark; --paper: #fff; --good: #047857; --bad: #b91c1c; --note: #fffbeb; --edge: #d97706; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e7eb; --dim: #9ca3af; --line: #374151; --soft: #1f2937; --paper: #111827; --good: #34d399;
    --bad: #f87171; --note: #2d2410; }
}
"""
    + _MODELS
    + """
body { background: var(--paper); } a { color: inherit; } h3 { font-size: 16px; margin: 30px 0 4px; }
h4 { font-size: 13px; margin: 12px 0 4px; } section { border-top: 1px solid var(--line); margin-top: 26px; }
section h3 { margin-top: 16px; } section > p { margin: 0 0 8px; overflow-wrap: anywhere; }
h1 { overflow-wrap: anywhere; }
.note { background: var(--note); border-left: 3px solid var(--edge); margin: 6px 0; padding: 4px 10px;
  font-size: 14px;
  font-weight: 400; overflow-wrap: anywhere; }
.dot { background: var(--c); border-radius: 50%; display: inline-block; height: 9px; margin-right: 6px; width: 9px; }
.right { color: var(--good); } .wrong { color: var(--bad); }
.figures td { vertical-align: middle; }
.figures td.head { vertical-align: top; overflow-wrap: break-word; min-width: 130px; max-width: 300px; }
.figures small { display: block; } .figures .across td { background: var(--soft); padding-top: 10px; }
.figures .across a { font-weight: 600; } .figures .number { white-space: nowrap; }
.figures td.model { max-width: 210px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.figures td.bars { min-width: 150px; width: 28%; }
.figures th.less { max-width: 170px; overflow-wrap: anywhere; white-space: normal; }
.figures tr:not(.last):not(.across) td:not(.head) { border-bottom-color: transparent; padding-bottom: 2px; }
svg.bar { display: block; height: 20px; width: 100%; overflow: visible; }
.bar .track { fill: var(--line); opacity: .55; } .bar .fill { fill: var(--c); opacity: .75; }
.bar line { stroke: var(--ink); stroke-width: 1.5; } .bar .chance { stroke-dasharray: 3 2; }
.bar .zero { stroke: var(--dim); }
dl { display: grid; grid-template-columns: fit-content(220px) 1fr; gap: 2px 14px; margin: 8px 0; font-size: 14px; }
dt { color: var(--dim); overflow-wrap: anywhere; } dd { margin: 0; overflow-wrap: anywhere; }
.groups > summary { color: var(--ink); font-size: 14px; margin: 8px 0; }
.groups small { display: inline; margin-left: 8px; }
.browser { margin-top: 14px; } .tools { display: none; } .js .tools { display: flex; flex-wrap: wrap; gap: 8px; }
.tools { align-items: center; margin: 0 0 8px; font-size: 14px; } .tools output { color: var(--dim); }
.tools input, .tools select, .tools button { background: var(--paper); border: 1px solid var(--line);
  border-radius: 6px;
  color: var(--ink); font: inherit; max-width: 100%; padding: 4px 8px; }
.item, .opening { border-bottom: 1px solid var(--line); font-size: 14px; }
.item > summary, .opening > summary { padding: 5px 0; overflow-wrap: anywhere; } .item .line { color: var(--ink); }
.item[open] > summary .line { color: var(--dim); } .mark { white-space: nowrap; margin-right: 5px; }
.tag { background: var(--soft); border: 1px solid var(--line); border-radius: 9px; display: inline-block;
  font-size: 12px; line-height: 17px; margin-left: 4px; max-width: 220px; overflow: hidden; padding: 0 7px;
  text-overflow: ellipsis;
  vertical-align: middle; white-space: nowrap; }
.inside { padding: 2px 0 14px 18px; } .text { white-space: pre-wrap; overflow-wrap: anywhere; }
.text details > summary { color: inherit; } .text details[open] > summary { color: var(--dim); font-size: 0; }
.text details[open] > summary::after { content: "fold"; font-size: 13px; }
.prompt { background: var(--soft); border-radius: 6px; margin: 0 0 8px; padding: 8px 10px; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(280px, 100%), 1fr)); gap: 14px; }
.side { border-left: 3px solid var(--c); padding-left: 10px; min-width: 0; } .side h4 { margin-top: 0; }
.scores { color: var(--dim); margin: 6px 0 0; } .scores b { color: var(--ink); font-weight: 600; }
.choices { margin-bottom: 10px; } .choices td:first-child { white-space: nowrap; width: 1%; }
.choices td.text { min-width: 160px; } .choices th.number { overflow-wrap: anywhere; width: 110px; }
.share { background: linear-gradient(to right, color-mix(in srgb, var(--c) 25%, transparent) var(--p), transparent 0);
  white-space: nowrap; width: 110px; }
ul { margin: 0; padding-left: 20px; } tr.differs td { background: var(--note); }
@media (max-width: 640px) {
  body { padding: 14px; } .inside { padding-left: 6px; } dl { grid-template-columns: 1fr; } dt { margin-top: 4px; }
  .figures thead { display: none; } .figures, .figures tbody { display: block; }
  .figures tr { display: flex; flex-wrap: wrap; border-bottom: 1px solid var(--line); padding: 4px 0; gap: 0 10px; }
  .figures tr:not(.last):not(.across) { border-bottom: 0; } .figures tr.across { background: var(--soft); }
  .figures td { border: 0; padding: 2px 4px; }
  .figures td.head, .figures td.bars, .figures .across td { width: 100%; }
  .figures td.head { font-weight: 600; } .figures td.model { flex: 1 1 100%; max-width: none; order: 1; }
  .figures td.value { flex: 1; order: 2; text-align: left; } .figures td.n { order: 3; } .figures td.bars { order: 4; }
  .figures td.less { order: 5; } .figures td.less:empty { display: none; } .figures td.n::before { content: "n "; }
  .figures td.less::before { content: "difference "; color: var(--dim); }
}
@media print {
  body { max-width: none; padding: 0; } .js .tools { display: none; } tr, .item > summary { break-inside: avoid; }
  h2, h3 { break-after: avoid; } .wide { overflow: visible; } table { font-size: 11px; } th, td { padding: 3px 5px; }
  .figures td.head { min-width: 80px; max-width: 130px; } .figures td.model { max-width: 140px; }
  .figures td.bars { min-width: 80px; width: 18%; } .figures th.less { max-width: 110px; }
}
"""
)
