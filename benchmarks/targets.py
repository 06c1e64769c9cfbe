"""What is aimed at, and how far it is: a row a target, whether it was measured or not."""

from typing import Any

from cases import CASES, Case
from compare import WAITED, ratio
from once import memory_ratio, start_ratio

Results = list[tuple[Case, dict[str, Any]]]
SIDES = ("ours", "peer")

WHAT = {
    "sft": "SFT step",
    "reward": "reward model's step",
    "dpo": "DPO step",
    "grpo": "GRPO step",
    "ppo": "PPO step",
    "generate": "generation",
}


def value(case: Case, result: dict[str, Any]) -> float:
    """What a result is judged by."""
    if case.kind == "memory":
        return memory_ratio(result)
    return (start_ratio(result) if case.kind == "start" else ratio(result))[0]


def shown(case: Case, result: dict[str, Any]) -> str:
    """The ratio with its interval, and whether other processes are in it; one memory has none."""
    if case.kind == "memory":
        return f"{memory_ratio(result):.2f}"
    middle, low, high = start_ratio(result) if case.kind == "start" else ratio(result)
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]{busy(result)}"


def busy(result: dict[str, Any]) -> str:
    """Says how many repetitions other processes held up; nothing where none were, or nobody looked."""
    shares = [share for side in SIDES for share in result.get("waited_share", {}).get(side, [])]
    late = sum(share > WAITED for share in shares)
    return f", busy {late}/{len(shares)}" if late else ""


def forms(case: Case) -> list[Case]:
    """The cases that share a target with this one, the first of them the one that others are rivals of."""
    name = case.rival_of or case.name
    return [c for c in CASES if name in (c.name, c.rival_of)]


def counts(case: Case, found: Results) -> tuple[Case, dict[str, Any]] | None:
    """The result that a case's target is judged by: against the faster of the peer's forms that were measured."""
    names = {form.name for form in forms(case)}
    measured = [(c, result) for c, result in found if c.name in names]
    return min(measured, key=lambda row: value(*row), default=None)


def missed(case: Case, result: dict[str, Any]) -> bool:
    """Whether a result is on the wrong side of its case's target."""
    assert case.target is not None
    return value(case, result) > case.target if case.kind == "memory" else value(case, result) < case.target


def verdict(case: Case, found: Results) -> str:
    """The target of a case, and whether it is missed, for a row of its own; nothing where there is no target."""
    if case.target is None:
        return ""
    row = counts(case, found)
    if row is None or not missed(*row):
        return f"{case.target}"
    return f"{case.target}, missed" + (f" by {row[0].name}" if row[0].name != case.name else "")


def current(found: Results) -> Results:
    """The results of cases that are measured today as they were then."""
    return [(case, result) for case, result in found if result.get("asked", {}).get("case") == case.measured]


def status(found: Results) -> str:
    """The table of all targets; a result of other settings than today's counts as none."""
    lines = ["| what | precision | target | reached (95% interval) | case |", "|---|---|---|---|---|"]
    found = current(found)
    there = {case.name for case, _ in found}
    for case in CASES:
        if case.target is None or case.rival_of:
            continue
        reached, name = "not measured", case.name
        if row := counts(case, found):
            reached, name = shown(*row) + (", missed" if missed(*row) else ""), row[0].name
            reached += "".join(
                f"; {form.name} not measured" for form in forms(case) if form.name not in there
            )
        precision = "bfloat16" if case.bf16 else "float32"
        if case.peer.get("bf16") and not case.bf16:
            precision += ", TRL bfloat16"
        lines.append(f"| {what(case)} | {precision} | {aim(case)} | {reached} | {name} |")
    return "\n".join(lines)


def what(case: Case) -> str:
    """What a target is about, and against whom."""
    if case.kind == "memory":
        return f"peak memory of an SFT step, V = {case.shape['vocab']:,}, against TRL's defaults"
    if case.kind == "start":
        return f"process start to first training step, {case.model}, against TRL"
    if case.task == "generate":
        return f"generation, {case.model}, against the faster form of transformers"
    rows = ", real chat lengths, against TRL's defaults" if case.chat else ", against TRL"
    return f"{WHAT[case.task]}, {case.model}{rows}"


def aim(case: Case) -> str:
    """A target in words."""
    if case.kind == "memory":
        return f"at most {case.target} of it"
    return f"{case.target} times as fast"
