"""Shows the equations of docstrings as code: paragraphs whose lines, but for indented ones, are equations."""

import re
from typing import Any

import griffe

# A name, perhaps with arguments or an index, then = or <= or ~ between spaces.
EQUATION = re.compile(r"^[A-Za-z_][\w.,'*/|^ ()\[\]<>+-]{0,60}?\s(=|<=|>=|~)\s\S")


class Equations(griffe.Extension):
    """Fences the equations of functions, classes and modules."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """The docstring with its equations between fences; what stands in a section (Args: ...) is left alone."""
    paragraphs = text.split("\n\n")
    for i, paragraph in enumerate(paragraphs):
        lines = paragraph.strip("\n").split("\n")
        if re.match(r"(Args|Returns|Raises|Attributes|Yields|Example)s?:", lines[0]):
            continue
        starts = [line for line in lines if not line.startswith(" ")]
        if all(is_equation(line) for line in starts) and "`" not in paragraph:
            paragraphs[i] = "\n".join(["```text", *lines, "```"])
    return "\n\n".join(paragraphs)


def is_equation(line: str) -> bool:
    """No sentence: an equation, which does not end with a full stop."""
    return bool(EQUATION.match(line)) and not line.endswith(".")
