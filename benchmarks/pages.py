"""Fills in what is measured in docs/: text between two lines of a page, and a picture beside it."""

from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
# What a user reads, and all the rest.
PAGE, APPENDIX = "performance.md", "performance_appendix.md"


@dataclass(frozen=True)
class Part:
    """What stands between the markers of a name.

    Attributes:
      page: file in docs/.
      name: of the markers.
      text: Markdown.
      picture: PNG shown before the text, kept as performance/NAME.png; empty for none.
      title: of the picture.
    """

    page: str
    name: str
    text: str
    picture: bytes = b""
    title: str = ""


def marker(name: str, end: str) -> str:
    """The line before (`begin`) or after (`end`) what is filled in."""
    return f"<!-- {name}: {end} -->"


def fill(*parts: Part) -> None:
    """Puts each part between its markers.

    Raises:
      SystemExit: a page has no such markers; one line, nothing is written.
    """
    pages: dict[Path, str] = {}
    for part in parts:
        page = DOCS / part.page
        begin, end = marker(part.name, "begin"), marker(part.name, "end")
        before, found, rest = pages.get(page, page.read_text()).partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise SystemExit(f"error: {page}: expected the lines {begin} and {end}")
        shown = f"![{part.title}](performance/{part.name}.png)\n\n" if part.picture else ""
        pages[page] = f"{before}{begin}\n\n{shown}{part.text}\n\n{end}{after}"
    (DOCS / "performance").mkdir(exist_ok=True)
    for part in parts:
        if part.picture:
            (DOCS / "performance" / f"{part.name}.png").write_bytes(part.picture)
    for page, text in pages.items():
        page.write_text(text)
