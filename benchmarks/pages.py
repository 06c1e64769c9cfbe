"""Fills in what is measured in docs/performance.md: text between two lines of the page, and a picture beside it."""

from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"


def marker(name: str, end: str) -> str:
    """The line before (`begin`) or after (`end`) what is filled in."""
    return f"<!-- {name}: {end} -->"


def fill(name: str, text: str, picture: bytes, *, title: str) -> None:
    """Puts picture and text between the markers of the name; the picture lies in performance/NAME.png.

    Raises:
      SystemExit: the page has no such markers; one line, nothing is written.
    """
    page = DOCS / "performance.md"
    begin, end = marker(name, "begin"), marker(name, "end")
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"error: {page}: expected the lines {begin} and {end}")
    (DOCS / "performance").mkdir(exist_ok=True)
    (DOCS / "performance" / f"{name}.png").write_bytes(picture)
    shown = f"![{title}](performance/{name}.png)"
    page.write_text(f"{before}{begin}\n\n{shown}\n\n{text}\n\n{end}{after}")
