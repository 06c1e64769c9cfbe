"""Trees of messages that lie in a file one by one (OASST's flat files): put together before they are read.

A message names its parent and its tree, and the messages of a tree follow each other. A tree becomes one row, in the
layout of the files that hold whole trees.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from jaxalign.data.chunks import Chunk, Parsed, Row

NEEDED = ("message_id", "parent_id", "message_tree_id", "text", "role")
TREES = 256


def with_whole_trees(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """The chunks as they are, or of trees where the first good row is a message of one."""
    chunks = iter(chunks)
    first = next(chunks, None)
    if first is None:
        return
    row = next((row for _, _, row in first.numbered_rows() if isinstance(row, Mapping)), {})
    together = chain([first], chunks)
    if all(name in row for name in NEEDED):
        yield from _trees(first.path, together)
    else:
        yield from together


def _trees(path: str, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    start, items = 0, []
    for item in _whole(chunks):
        items.append(item)
        if len(items) == TREES:
            yield Parsed(path, start, items)
            start, items = start + len(items), []
    if items:
        yield Parsed(path, start, items)


def _whole(chunks: Iterable[Chunk]) -> Iterator[tuple[str, Row | str]]:
    """(place of its first message, tree) of each tree; what is wrong as text."""
    begun: set[Any] = set()
    name, messages = None, []
    for chunk in chunks:
        for _, place, row in chunk.numbered_rows():
            if not isinstance(row, Mapping):
                yield place, str(row)
                continue
            missing = next((field for field in NEEDED if field not in row), None)
            if missing is not None:
                yield place, f"expected the field {missing!r} of a message of a tree"
                continue
            if row["message_tree_id"] != name:
                if messages:
                    yield messages[0][0], _grown(messages)
                name, messages = row["message_tree_id"], []
                if name in begun:
                    yield (
                        place,
                        f"the messages of the tree {name} are not together; sort the file by message_tree_id",
                    )
                    name = None
                    continue
                begun.add(name)
            messages.append((place, row))
    if messages:
        yield messages[0][0], _grown(messages)


def _grown(messages: list[tuple[str, Row]]) -> Row | str:
    """One tree from its messages; replies stand in the order of the file."""
    nodes = {row["message_id"]: {**row, "replies": []} for _, row in messages}
    roots = []
    for _, row in messages:
        parent = row["parent_id"]
        if not parent:
            roots.append(nodes[row["message_id"]])
        elif parent in nodes:
            nodes[parent]["replies"].append(nodes[row["message_id"]])
        else:
            return f"the message {row['message_id']} answers {parent}, which is not among those of its tree"
    if len(roots) != 1 or len(nodes) != len(messages):
        return (
            f"expected one first message in a tree, and each message once; there are {len(roots)} first ones"
        )
    first = messages[0][1]
    return {
        "message_tree_id": first["message_tree_id"],
        "tree_state": first.get("tree_state", ""),
        "prompt": roots[0],
    }
