"""Reads compiled programs: which operations between devices stand in their loops."""

import re
from collections import Counter

COLLECTIVE = re.compile(
    r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast)(?:-start)?\("
)


def computations(text):
    """The lines of each computation of a program, by its name."""
    found, lines = {}, []
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            lines = found.setdefault(head[1], [])
        lines.append(line)
    return found


def collectives(text):
    """How many operations between devices of each kind a program holds."""
    return Counter(COLLECTIVE.findall(text))


def collectives_in_loops(text):
    """The same of the bodies and conditions of its `while` loops, and of what those call."""
    parts = computations(text)
    reached = {
        name
        for lines in parts.values()
        for line in lines
        for name in re.findall(r"(?:body|condition)=%?([\w.\-]+)", line)
    }
    assert reached
    waiting = list(reached)
    while waiting:
        called = {name for line in parts[waiting.pop()] for name in re.findall(r"[\w.\-]+", line)}
        waiting += (called & set(parts)) - reached
        reached |= called & set(parts)
    return collectives("\n".join(line for name in reached for line in parts[name]))
