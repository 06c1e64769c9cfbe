"""Turns rows into records: strict by default, everything counted."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxalign.data.config import DataConfig, Kind
from jaxalign.data.fields import BadRow, Fields, Refused, Unusable, beside, is_empty, reach
from jaxalign.data.files import rows_of
from jaxalign.data.formats import FORMATS, format_of, meaning, read_row, reads_no_answer, would_leave
from jaxalign.data.layouts import Format, Options
from jaxalign.data.records import Comparison, Ranking, Rating, Record
from jaxalign.data.scores import score_in
from jaxalign.errors import DataError, ModelError


@dataclass
class Counts:
    """Rows read, used and filtered by reason; the three always add up.

    Attributes:
      read: rows in the files.
      used: rows that went on.
      filtered: rows that did not, by reason.
      unread: rows in which a column, or a key inside of one, held something that nothing read, by its name.
      notes: remarks on used rows.
    """

    read: int = 0
    used: int = 0
    filtered: Counter = field(default_factory=Counter)
    unread: Counter = field(default_factory=Counter)
    notes: Counter = field(default_factory=Counter)

    def check(self) -> None:
        """Raises AssertionError if a row was dropped without being counted."""
        assert self.read == self.used + sum(self.filtered.values()), self

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        body: dict[str, Any] = {
            "read": self.read,
            "used": self.used,
            "filtered": dict(sorted(self.filtered.items())),
        }
        if self.unread:
            body["unread_columns"] = dict(sorted(self.unread.items()))
        if self.notes:
            body["notes"] = dict(sorted(self.notes.items()))
        return body


@dataclass(frozen=True)
class LabelTokenizer:
    """Token ids to text, by a tokenizer that is loaded when the first ids come; it travels to workers as its path."""

    path: str

    def __call__(self, ids: Sequence[int]) -> str:
        return label_tokenizer(self.path).decode(ids)


_TOKENIZERS: dict[str, Any] = {}


def label_tokenizer(path: str) -> Any:
    """The tokenizer of a folder or hub id.

    Raises:
      ModelError: there is none.
    """
    if path not in _TOKENIZERS:
        try:
            from transformers import AutoTokenizer

            _TOKENIZERS[path] = AutoTokenizer.from_pretrained(path)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"data.label_tokenizer: {path}: {reason}") from None
    return _TOKENIZERS[path]


@dataclass(frozen=True)
class Reading:
    """How rows become records: the relevant keys of `DataConfig`.

    Attributes:
      options: what the formats are told.
      format: a name in `formats.FORMATS`, or auto.
      columns: ours to theirs.
      ignore_columns: columns that may go unread.
      keep: columns to the values to keep.
      type_field, types: rows to keep by type.
      score_field, min_score: rows to keep by score.
    """

    options: Options = field(default_factory=Options)
    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    ignore_columns: tuple[str, ...] = ()
    keep: Mapping[str, Any] = field(default_factory=dict)
    type_field: str = "type"
    types: tuple[str, ...] = ()
    score_field: str = "score"
    min_score: float | None = None

    def __post_init__(self) -> None:
        if self.format != "auto" and self.format not in FORMATS:
            raise DataError(
                f"data.format: {self.format!r} is unknown; expected auto or one of {', '.join(FORMATS)}"
            )


def reading_of(config: DataConfig) -> Reading:
    """The `Reading` of a configuration.

    Raises:
      DataError: a format that is not known.
    """
    decode = LabelTokenizer(config.label_tokenizer) if config.label_tokenizer else None
    return Reading(
        options=Options(config.dimension, config.human, config.assistant, decode, config.score_field),
        format=config.format,
        columns=dict(config.columns),
        ignore_columns=tuple(config.ignore_columns),
        keep=dict(config.keep),
        type_field=config.type_field,
        types=tuple(config.types),
        score_field=config.score_field,
        min_score=config.min_score,
    )


class FileReader:
    """Reads the rows of one file, all in one format; it can be pickled.

    Attributes:
      path: the file.
      format_name: a name in `formats.FORMATS`.
      unread: rows in which a column held something that nothing read, by its name.
    """

    def __init__(self, path: str, format_name: str, reading: Reading, *, kind: Kind | None = None) -> None:
        self.path, self.format_name, self.unread = path, format_name, Counter[str]()
        self._reading, self._kind = reading, kind
        self._options = _options_of(reading, kind)
        self._needed = tuple(tuple(spec.split("|")) for spec in FORMATS[format_name].fields)
        self._read_anyway = read_anyway(FORMATS[format_name], reading)
        self._meanings: dict[tuple[str, bool], str] = {}
        self._filtered_by = filter_columns(reading)
        self._allowed = frozenset((*reading.ignore_columns, *self._filtered_by))
        self._prepares = bool(reading.columns or reading.ignore_columns)

    def read(self, place: str, row: Mapping[str, Any]) -> Record:
        """One row as a record.

        Args:
          place: file:line, the record's source.
          row: its fields.

        Raises:
          BadRow: it does not fit the format, or says something that would not be used.
          Unusable: it is left out; the message is the reason it is counted under.
        """
        reading, form = self._reading, FORMATS[self.format_name]
        own = prepared(row, reading, self._read_anyway) if self._prepares else row
        for names in self._needed:
            if names[0] not in own and not any(name in own for name in names[1:]):
                raise BadRow(f"expected the field {names[0]!r} of the format {self.format_name}")
        if reading.keep or reading.types:
            self._check_kept(row, own)
        fields = Fields(own)
        record = read_row(form, fields, self._options)
        if reading.min_score is not None:
            self._check_score(record, row, own)
        columns = self._unread_of(fields, record)
        if reading.ignore_columns:
            for name in reading.ignore_columns:
                if name in row or column_value(name, row) is not None:
                    columns[name] = reach(row, name)
        if self._kind is not None:
            record = self._as_wanted(record)
            if self._kind == "prompt":
                columns = beside_prompt(row, own, reading) | columns
        # The record is new and nobody else's yet; a copy of a frozen one costs more than reading the row.
        vars(record).update(source=place, columns=columns)
        return record

    def _unread_of(self, fields: Fields, record: Record) -> dict[str, Any]:
        """Columns that the format did not look at, counted; refused where their name has a meaning."""
        seen, columns = fields.seen, {}
        for name, value in fields.row.items():
            if name not in seen:
                columns[name] = value
                if not is_empty(value):
                    self._count(name, record)
        for name in fields.inside:
            self._count(name, record)
        return columns

    def _count(self, name: str, record: Record) -> None:
        if name in self._filtered_by:
            return
        key = (name, reads_no_answer(record))
        remark = self._meanings.get(key)
        if remark is None:
            form = FORMATS[self.format_name]
            remark = "" if name in self._allowed else meaning(name, form, self._options, answers=key[1])
            if not remark and name in self._reading.columns and self._kind != "prompt":
                remark = "mapped to it by data.columns"
            self._meanings[key] = remark
        if remark:
            raise Refused(would_leave(self.format_name, {name: remark}))
        self.unread[name] += 1

    def _check_kept(self, row: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        for name, wanted in self._reading.keep.items():
            value = column_value(name, own, row)
            if not any(
                same(value, one) for one in (wanted if isinstance(wanted, (list, tuple)) else [wanted])
            ):
                raise Unusable(f"left out by data.keep: {name}")
        if (
            self._reading.types
            and str(column_value(self._reading.type_field, own, row) or "") not in self._reading.types
        ):
            raise Unusable("other type")

    def _check_score(self, record: Record, row: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        assert self._reading.min_score is not None
        name = self._reading.score_field
        value = column_value(name, own, row)
        own_score = record.score if isinstance(record, Rating) and name == "score" else None
        score = own_score if value is None else score_in(value)
        if score is None:
            raise Unusable("unscored")
        if score < self._reading.min_score:
            raise Unusable("score below data.min_score")

    def _as_wanted(self, record: Record) -> Record:
        """The record for its kind: of a ranking with scores the best and the worst, for comparisons."""
        if self._kind == "demonstration" and isinstance(record, Rating) and record.label is None:
            says = FORMATS[self.format_name].says
            named = (*self._reading.keep, *self._reading.ignore_columns)
            if self._reading.min_score is None and says not in named:
                raise Refused(
                    f"column {says!r} says how good the answer is, and all answers would be imitated: set "
                    f"data.min_score or data.keep to choose, or name it in data.ignore_columns to take all"
                )
        if self._kind in ("comparison", "ranking") and isinstance(record, Ranking) and record.scores:
            scores = record.scores
            if self._kind == "ranking":
                if scores.count(max(scores)) > 1:
                    raise Unusable("tie for the best")
                return record
            worst = scores.index(min(scores))
            best, other = record.candidates[record.best], record.candidates[worst]
            if best == other:
                raise Unusable("chosen equals rejected")
            return Comparison(record.prompt, best, other, scores[record.best] - scores[worst])
        return record


def _options_of(reading: Reading, kind: Kind | None) -> Options:
    given = reading.options
    return Options(given.dimension, given.human, given.assistant, given.decode, given.score_field, kind or "")


def filter_columns(reading: Reading) -> frozenset[str]:
    """Columns that rows are chosen by."""
    names = set(reading.keep)
    if reading.types:
        names.add(reading.type_field)
    if reading.min_score is not None:
        names.add(reading.score_field)
    return frozenset((*names, *(name.partition(".")[0] for name in names)))


def read_anyway(form: Format, reading: Reading) -> frozenset[str]:
    """Fields that a format of rated answers reads though they are ignored: that is how a user takes all answers."""
    if not form.says or form.says not in reading.ignore_columns:
        return frozenset()
    return frozenset(name for spec in form.fields for name in spec.split("|")).difference(reading.columns)


def prepared(row: Mapping[str, Any], reading: Reading, read_anyway: Collection[str] = ()) -> dict[str, Any]:
    """A row under our names, without the columns that are to be ignored.

    Of a column that `data.columns` reaches into, what is not mapped stands under its own dotted path.

    Args:
      row: under the names of the file.
      reading: settings.
      read_anyway: ignored columns that stay.

    Raises:
      BadRow: a column that the row lacks.
    """
    own = dict(row)
    mapped = {}
    for ours, theirs in reading.columns.items():
        try:
            mapped[ours] = reach(row, theirs)
        except KeyError as part:
            named = ", ".join(map(str, row))
            raise BadRow(
                f"data.columns: {ours}: there is no {theirs!r} (no {part.args[0]!r}); the columns are {named}"
            ) from None
    into = set()
    for theirs in reading.columns.values():
        if theirs not in row:
            into.add(theirs.partition(".")[0])
        own.pop(theirs, None)
    for name in into.intersection(own):
        own |= beside(own.pop(name), name, set(reading.columns.values()))
    for name in reading.ignore_columns:
        if name not in read_anyway:
            own.pop(name, None)
        if into:
            for path in [path for path in own if path.startswith(f"{name}.")]:
                del own[path]
    for name, value in mapped.items():
        if not is_empty(own.get(name)):
            raise BadRow(
                f"data.columns: {name}: the file also has a column of that name; map it too, or name it in "
                "data.ignore_columns"
            )
        own[name] = value
    return own


def beside_prompt(row: Mapping[str, Any], own: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    """All columns but the prompt's, by our names and by the file's: what a reward function may compare with."""
    prompt_names = ("prompt", reading.columns.get("prompt"))
    theirs = {name: row[name] for name in reading.columns.values() if name in row}
    return {name: value for name, value in (theirs | dict(own)).items() if name not in prompt_names}


def column_value(name: str, *rows: Mapping[str, Any]) -> Any:
    """A column's value, by our name or by the file's; None where there is none."""
    for row in rows:
        try:
            return reach(row, name)
        except KeyError:
            continue
    return None


def same(value: Any, wanted: Any) -> bool:
    """Whether a column has a value, as JSON or as csv writes it."""
    if isinstance(value, str) and not isinstance(wanted, str):
        if isinstance(wanted, bool):
            return value.strip().lower() == str(wanted).lower()
        if isinstance(wanted, (int, float)):
            return score_of_text(value) == wanted
        return wanted is None and value == ""
    if isinstance(wanted, bool) != isinstance(value, bool):
        return False
    return value == wanted


def score_of_text(value: str) -> float | None:
    """The number that a text is, if it is one."""
    try:
        return float(value)
    except ValueError:
        return None


def reader_for(
    path: str, place: str, row: Mapping[str, Any], reading: Reading, kind: Kind | None = None
) -> FileReader:
    """The reader of a file, by its first row.

    Args:
      path: the file.
      place: file:line of the row.
      row: the file's first good row.
      reading: how rows are read.
      kind: what the records are wanted for; None where that is not known yet.

    Raises:
      DataError: no format reads the row, or one would leave something of meaning in it, or a column that a setting
        names is not there.
    """
    try:
        for name in reading.keep:
            if name not in row and column_value(name, row) is None:
                raise BadRow(
                    f"data.keep: there is no column {name!r}; the columns are {', '.join(map(str, row))}"
                )
        name = reading.format
        if name == "auto":
            allowed = filter_columns(reading).union(reading.ignore_columns)
            name = _rated(row, reading) or format_of(
                prepared(row, reading), _options_of(reading, kind), allowed
            )
        _check_score_field(row, reading, FORMATS[name])
    except BadRow as error:
        raise DataError(f"{place}: {error}") from None
    reader = FileReader(path, name, reading, kind=kind)
    try:
        reader.read(place, row)
    except Refused as error:
        raise DataError(f"{place}: {error}") from None
    except (BadRow, Unusable):
        pass  # counted, or refused, when it is read
    reader.unread.clear()
    return reader


def _rated(row: Mapping[str, Any], reading: Reading) -> str:
    """The format of rated answers that a row has, where the user said to take all of them; else nothing."""
    for name, form in FORMATS.items():
        kept = read_anyway(form, reading)
        if kept:
            own = prepared(row, reading, kept)
            if not form.missing(own) and form.test(own):
                return name
    return ""


def _check_score_field(row: Mapping[str, Any], reading: Reading, form: Format) -> None:
    """Raises BadRow where rows are chosen by a score that they do not have."""
    name = reading.score_field
    if reading.min_score is None or (form.says and name == "score"):
        return
    if name not in row and name not in reading.columns and column_value(name, row) is None:
        columns = ", ".join(map(str, row))
        raise BadRow(f"data.score_field: there is no column {name!r}; the columns are {columns}")


def read_records(
    paths: str | Sequence[str],
    *,
    format: str = "auto",
    on_bad_row: Literal["stop", "skip"] = "stop",
    options: Options | None = None,
    reading: Reading | None = None,
    kind: Kind | None = None,
    max_bytes: int = 0,
) -> tuple[list[Record], Counts]:
    """All records of one or several files.

    Args:
      paths: files, saved `datasets` folders or hub ids.
      format: a name in `formats.FORMATS`; `auto` detects it from each file's first row.
      on_bad_row: `stop` raises at the first bad row; `skip` counts it.
      options: what readers may be told.
      reading: how rows are read, in place of format and options.
      kind: what the records are wanted for; a reader then refuses what they would ignore.
      max_bytes: bytes that a file may hold once it is decompressed.

    Returns:
      The records in order, and the counts.

    Raises:
      DataError: naming file and line and what was expected.
    """
    reading = reading or Reading(options=options or Options(), format=format)
    counts = Counts()
    records: list[Record] = []
    for path in [paths] if isinstance(paths, str) else paths:
        reader = None
        for place, row in rows_of(path, max_bytes=max_bytes):
            counts.read += 1
            if isinstance(row, DataError):
                if on_bad_row == "stop":
                    raise row
                counts.filtered["malformed line"] += 1
                continue
            reader = reader or reader_for(path, place, row, reading, kind)
            try:
                records.append(reader.read(place, row))
            except Unusable as reason:
                counts.filtered[str(reason)] += 1
            except BadRow as error:
                if on_bad_row == "stop":
                    raise DataError(f"{place}: {error}") from None
                counts.filtered["bad row"] += 1
        if reader is not None:
            counts.unread.update(reader.unread)
    counts.used = len(records)
    counts.check()
    return records, counts
