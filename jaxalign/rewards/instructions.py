"""Instructions that code can check, in the files and under the names of IFEval (Zhou et al. 2023, arXiv:2311.07911).

A row names its instructions in `instruction_id_list` and their arguments in `kwargs`, one object for each:

    {"prompt": "Name three rivers in capitals, in at most 30 words.",
     "instruction_id_list": ["change_case:english_capital", "length_constraints:number_words"],
     "kwargs": [{}, {"num_words": 30, "relation": "at most"}]}

Known are all of IFEval but `language:response_language`. Where IFEval asks a package, plain rules stand in its place:
`change_case:english_capital` and `english_lowercase` look at the case alone, not whether the text is English;
`change_case:capital_word_frequency` takes words at spaces and punctuation; a sentence ends at ., ! or ? before a space
or the end. `relation` may also be `at most` or `exactly`.
"""

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from jaxalign.errors import UserError

_RELATIONS = {
    "less than": operator.lt,
    "at least": operator.ge,
    "at most": operator.le,
    "exactly": operator.eq,
}


def followed_instructions(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]],
) -> list[float | None]:
    """The share of a row's instructions that its completion follows (IFEval's strict accuracy, by instruction).

    An empty completion follows none. None for a row without instructions.

    Raises:
      UserError: the data lacks a column; an instruction is unknown, or its arguments are not those it takes.
    """
    del completion_ids
    scores: list[float | None] = []
    for prompt, text, checks in zip(prompts, completions, _checks(columns, len(prompts)), strict=True):
        results = [bool(text.strip()) and check(text, prompt) for check in checks]
        scores.append(sum(results) / len(results) if results else None)
    return scores


def every_instruction(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]],
) -> list[float | None]:
    """1 if a completion follows all instructions of its row, else 0 (IFEval's strict accuracy, by prompt).

    None and errors as in `followed_instructions`.
    """
    shares = followed_instructions(prompts, completions, completion_ids=completion_ids, columns=columns)
    return [None if share is None else float(share == 1.0) for share in shares]


def _checks(columns: Mapping[str, Sequence[Any]], rows: int) -> list[list[Callable[[str, str], bool]]]:
    """Of each row, its instructions as functions of (completion, prompt)."""
    if "instruction_id_list" not in columns:
        raise UserError(
            f"instructions: the data has no column 'instruction_id_list'; columns: {sorted(columns) or 'none'}"
        )
    found = []
    for names, arguments in zip(
        columns["instruction_id_list"], columns.get("kwargs", [None] * rows), strict=True
    ):
        names = names or []
        arguments = [{}] * len(names) if arguments is None else arguments
        if not isinstance(names, (list, tuple)) or not isinstance(arguments, (list, tuple)):
            raise UserError("instructions: expected lists in 'instruction_id_list' and 'kwargs'")
        if len(names) != len(arguments):
            raise UserError(
                f"instructions: {len(names)} in 'instruction_id_list', {len(arguments)} in 'kwargs': {names}"
            )
        found.append([_check(str(n), _json_text(a)) for n, a in zip(names, arguments, strict=True)])
    return found


def _json_text(arguments: Mapping[str, Any] | None) -> str:
    """Arguments as a key of a cache; what is null was left out (tables hold all columns in every row)."""
    given = {name: value for name, value in (arguments or {}).items() if value is not None}
    return json.dumps(given, sort_keys=True)


@cache
def _check(name: str, arguments: str) -> Callable[[str, str], bool]:
    if name not in CHECKS:
        raise UserError(f"instruction {name!r} is unknown; known: {', '.join(sorted(CHECKS))}")
    check, takes = CHECKS[name]
    given = json.loads(arguments)
    if set(given) != set(takes):
        raise UserError(
            f"instruction {name}: expected {sorted(takes) or 'no arguments'} in 'kwargs', got {sorted(given) or 'none'}"
        )
    for key, value in given.items():
        if key in _NUMBERS and (
            isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value)
        ):
            raise UserError(f"instruction {name}: {key} must be a whole number, got {value!r}")
        if key in _LISTS and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            raise UserError(f"instruction {name}: {key} must be a list of strings, got {value!r}")
        if key not in _NUMBERS | _LISTS and not isinstance(value, str):
            raise UserError(f"instruction {name}: {key} must be a string, got {value!r}")
        if key.endswith("relation") and value not in _RELATIONS:
            raise UserError(f"instruction {name}: {key} must be one of {list(_RELATIONS)}, got {value!r}")
    return lambda text, prompt: check(text, prompt, **given)


# Each takes (completion, prompt, arguments under IFEval's names).


def _capital(text: str, prompt: str) -> bool:
    return text.isupper()


def _lowercase(text: str, prompt: str) -> bool:
    return text.islower()


def _capital_words(text: str, prompt: str, capital_frequency: int, capital_relation: str) -> bool:
    words = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text)
    return _RELATIONS[capital_relation](sum(word.isupper() for word in words), capital_frequency)


def _words(text: str, prompt: str, num_words: int, relation: str) -> bool:
    return _RELATIONS[relation](len(re.findall(r"\w+", text)), num_words)


def _sentences(text: str, prompt: str, num_sentences: int, relation: str) -> bool:
    parts = re.split(r"(?<=[.!?])[\"'”’)\]]*\s+", text.strip())
    return _RELATIONS[relation](sum(bool(re.search(r"\w", part)) for part in parts), num_sentences)


def _parts(text: str, mark: str) -> list[str] | None:
    """What stands between marks; None if nothing stands between two of them. An end may be empty."""
    parts = [part.strip() for part in re.split(mark, text)]
    if not all(parts[1:-1]):
        return None
    return [part for part in parts if part]


def _paragraphs(text: str, prompt: str, num_paragraphs: int) -> bool:
    found = _parts(text, r"\*\*\*")
    return found is not None and len(found) == num_paragraphs


def _first_word(text: str, prompt: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    found = [part.strip() for part in text.split("\n\n") if part.strip()]
    if len(found) != num_paragraphs or not 1 <= nth_paragraph <= len(found):
        return False
    word = re.match(r"[^\s.,?!'\"]*", found[int(nth_paragraph) - 1].split()[0].lstrip("'\""))
    return word is not None and word[0].lower() == first_word.lower()


def _bullets(text: str, prompt: str, num_bullets: int) -> bool:
    return len(re.findall(r"^\s*(?:\*(?!\*).|-)", text, re.MULTILINE)) == num_bullets


def _highlights(text: str, prompt: str, num_highlights: int) -> bool:
    single = [part for part in re.findall(r"\*[^\n*]*\*", text) if part.strip("* ")]
    double = [part for part in re.findall(r"\*\*[^\n*]*\*\*", text) if part.strip("* ")]
    return len(single) + len(double) >= num_highlights


def _sections(text: str, prompt: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(re.escape(section_spliter) + r"\s?\d+", text)) >= num_sections


def _json(text: str, prompt: str) -> bool:
    fenced = re.fullmatch(r"```(?:json)?(.*?)(?:```)?", text.strip(), re.DOTALL | re.IGNORECASE)
    try:
        json.loads(fenced[1] if fenced else text)
    except ValueError:
        return False
    return True


def _title(text: str, prompt: str) -> bool:
    return any(title.strip(" <>") for title in re.findall(r"<<[^\n]+>>", text))


def _options(text: str, prompt: str) -> bool:
    return any(f"My answer is {word}." in text for word in ("yes", "no", "maybe"))


def _placeholders(text: str, prompt: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def _postscript(text: str, prompt: str, postscript_marker: str) -> bool:
    mark = r"\s?".join(map(re.escape, re.findall(r"[^.\s]+\.?", postscript_marker)))
    return re.search(mark, text, re.IGNORECASE) is not None


def _existence(text: str, prompt: str, keywords: list[str]) -> bool:
    return all(word.lower() in text.lower() for word in keywords)


def _frequency(text: str, prompt: str, keyword: str, frequency: int, relation: str) -> bool:
    return _RELATIONS[relation](text.lower().count(keyword.strip().lower()), frequency)


def _forbidden(text: str, prompt: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words)


def _letters(text: str, prompt: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _RELATIONS[let_relation](text.lower().count(letter.lower()), let_frequency)


def _no_comma(text: str, prompt: str) -> bool:
    return "," not in text


def _quotation(text: str, prompt: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _end(text: str, prompt: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _two_responses(text: str, prompt: str) -> bool:
    found = _parts(text, r"\*{6}")
    return found is not None and len(found) == 2 and found[0] != found[1]


def _repeat_prompt(text: str, prompt: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


CHECKS: dict[str, tuple[Callable[..., bool], tuple[str, ...]]] = {
    "change_case:capital_word_frequency": (_capital_words, ("capital_frequency", "capital_relation")),
    "change_case:english_capital": (_capital, ()),
    "change_case:english_lowercase": (_lowercase, ()),
    "combination:repeat_prompt": (_repeat_prompt, ("prompt_to_repeat",)),
    "combination:two_responses": (_two_responses, ()),
    "detectable_content:number_placeholders": (_placeholders, ("num_placeholders",)),
    "detectable_content:postscript": (_postscript, ("postscript_marker",)),
    "detectable_format:constrained_response": (_options, ()),
    "detectable_format:json_format": (_json, ()),
    "detectable_format:multiple_sections": (_sections, ("section_spliter", "num_sections")),
    "detectable_format:number_bullet_lists": (_bullets, ("num_bullets",)),
    "detectable_format:number_highlighted_sections": (_highlights, ("num_highlights",)),
    "detectable_format:title": (_title, ()),
    "keywords:existence": (_existence, ("keywords",)),
    "keywords:forbidden_words": (_forbidden, ("forbidden_words",)),
    "keywords:frequency": (_frequency, ("keyword", "frequency", "relation")),
    "keywords:letter_frequency": (_letters, ("letter", "let_frequency", "let_relation")),
    "length_constraints:nth_paragraph_first_word": (
        _first_word,
        ("num_paragraphs", "nth_paragraph", "first_word"),
    ),
    "length_constraints:number_paragraphs": (_paragraphs, ("num_paragraphs",)),
    "length_constraints:number_sentences": (_sentences, ("num_sentences", "relation")),
    "length_constraints:number_words": (_words, ("num_words", "relation")),
    "punctuation:no_comma": (_no_comma, ()),
    "startend:end_checker": (_end, ("end_phrase",)),
    "startend:quotation": (_quotation, ()),
}
_LISTS = {"keywords", "forbidden_words"}
_NUMBERS = {
    key for _, takes in CHECKS.values() for key in takes if "num_" in key or key.endswith("frequency")
} | {"nth_paragraph"}
