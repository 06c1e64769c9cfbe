"""The collectives of a compiled program, read from its text, each as often as the loops around it run."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Between slices XLA for TPUs has none of these: each device sends its part to its host, which says what becomes of it.
_TO_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
# Bytes of an element, by HLO's names; what has no whole byte counts as one.
BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2,
    "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8, "c64": 8,
}  # fmt: skip

_COMPUTATION = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s*\(.*\)\s*->.*\{\s*$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][a-z0-9\-]*)\((.*)")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:to_apply|calls|(?:true|false)_computation)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}"
)


@dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Attributes:
      kind: one of `KINDS`.
      count: how often a run of the program executes it; loops of unknown length count once.
      bytes: of the array that it makes (all-gather, all-reduce, ...) or takes (reduce-scatter), a device, each time.
      in_loop: whether it lies inside a loop.
      operation: the JAX operation that it comes from, as far as the compiler kept it.
      across: whether it joins slices; its bytes are then those that a device hands over.
    """

    kind: str
    count: int
    bytes: int
    in_loop: bool
    operation: str
    across: bool = False

    @property
    def total_bytes(self) -> int:
        """Bytes of all its executions."""
        return self.count * self.bytes


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program, largest total first.

    Args:
      text: optimized HLO, `jax.stages.Compiled.as_text()`, of any backend.
    """
    computations, entry = _computations(text)
    found = _walk(computations, entry, 1, in_loop=False)
    return sorted(found, key=lambda one: -one.total_bytes)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by its name, and the name of the one where the program begins."""
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if begins := _COMPUTATION.match(line):
            name = begins[2]
            computations[name] = []
            entry = name if begins[1] else entry
        elif name and line.startswith("  "):
            computations[name].append(line)
    return computations, entry


def _walk(
    computations: dict[str, list[str]], name: str, count: int, *, in_loop: bool
) -> Iterator[Collective]:
    for line in computations.get(name, ()):
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        types, operation, rest = match.groups()
        kind, source = operation.removesuffix("-start"), re.search(r'op_name="([^"]*)"', rest)
        name = source[1] if source else ""
        if kind in KINDS:
            yield Collective(kind, count, _bytes(kind, operation, types, rest), in_loop, name)
        elif operation == "send" and (sent := _TO_SLICES.search(rest)):
            kind = sent[1].lower().replace("_", "-")
            yield Collective(kind, count, _size(_top_level(types)[0]), in_loop, name, across=True)
        elif operation == "while":
            # What decides whether a loop goes on may take a collective too.
            parts = re.findall(r"(?:body|condition)=%?([\w.\-]+)", rest)
            times = _trips(rest, computations)
            for part in parts:
                yield from _walk(computations, part, count * times, in_loop=True)
        else:
            for one, several in _CALLED.findall(rest):
                for called in [one] if one else several.split(","):
                    yield from _walk(computations, called.strip().lstrip("%"), count, in_loop=in_loop)


def _trips(rest: str, computations: dict[str, list[str]]) -> int:
    """How often a loop runs: as XLA notes it (not for TPUs), else what its counter, from 0, is compared with."""
    if noted := re.search(r"known_trip_count[^0-9]*(\d+)", rest):
        return int(noted[1])
    condition = re.search(r"condition=%?([\w.\-]+)", rest)
    lines = "\n".join(computations.get(condition[1], ())) if condition else ""
    numbers = dict(re.findall(r"%?([\w.\-]+) = [su]32\[\]\S* constant\((\d+)\)", lines))
    below = re.search(r"ROOT .* compare\([^,]*%?\b[\w.\-]+, (?:\S+ )?%?([\w.\-]+)\), direction=LT", lines)
    return int(numbers.get(below[1], 1)) if below else 1


def _bytes(kind: str, operation: str, types: str, rest: str) -> int:
    if operation.endswith("-start") and kind != "all-reduce" and types.startswith("("):
        # Operands and results side by side: the larger are the whole.
        return max(_size(part) for part in _top_level(types))
    return _size(types) * (_group_size(rest) if kind == "reduce-scatter" else 1)


def _size(types: str) -> int:
    """Bytes of all arrays in a type."""
    arrays = _ARRAY.findall(types)
    return sum(prod(int(n) for n in shape.split(",") if n) * BYTES.get(dtype, 1) for dtype, shape in arrays)


def _group_size(rest: str) -> int:
    """Devices that a collective joins: of `replica_groups={{0,1},{2,3}}` or `[2,2]<=[4]`, two."""
    if explicit := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return explicit[1].count(",") + 1
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", rest)
    return int(iota[1]) if iota else 1


def _top_level(types: str) -> Sequence[str]:
    """The members of a tuple type."""
    parts, depth, start = [], 0, 1
    for place, character in enumerate(types):
        depth += (character in "([{") - (character in ")]}")
        if (character == "," and depth == 1) or (depth == 0 and place):
            parts.append(types[start:place])
            start = place + 1
    return parts
