"""Prompts with names of fields in braces, filled by `str.format`: what fills a field is not looked at again."""

import string


def fields_of(template: str) -> set[str]:
    """The names in braces.

    Raises:
      ValueError: a brace that is not closed, or one without a name.
    """
    names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    if not all(name.isidentifier() for name in names):
        raise ValueError("expected a name in each pair of braces")
    return names
