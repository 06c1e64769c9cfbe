"""Tables as aligned text, for the terminal."""

from collections.abc import Mapping, Sequence


def format_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows as aligned text: the first column to the left, the others to the right."""
    if not rows:
        return ""
    columns = list(rows[0])
    widths = {c: max(len(c), *(len(r[c]) for r in rows)) for c in columns}

    def line(cells: Mapping[str, str]) -> str:
        return "  ".join(
            cells[c].ljust(widths[c]) if i == 0 else cells[c].rjust(widths[c]) for i, c in enumerate(columns)
        ).rstrip()

    rule = "  ".join("-" * widths[c] for c in columns)
    return "\n".join([line({c: c for c in columns}), rule, *(line(r) for r in rows)])
