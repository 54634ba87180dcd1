"""Read the rows of a CSV file (RFC 4180). A row that cannot be read has a reason, and costs no other row.

A quotation mark that is never closed would swallow the lines after it. So lines are kept until their row ends. If they
are no row, or one of them is evidently a row of its own, each is read by itself; every line is read twice at most.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pipeline.data.sources.byte_ranges import READ_BYTES
from pipeline.data.sources.rows import URL_COLUMNS, Row
from pipeline.printable import message_of, printable, storable
from pipeline.reasons import Reason

MAX_FIELD_CHARACTERS = 2**20
MAX_ROW_CHARACTERS = 2**22
"""Maximum length of a row of several lines."""


class _Lines:
    """Lines for a csv.reader, which keeps those of the present row."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self.taken: list[str] = []
        self._num_characters = 0
        self.ended = False
        """Whether the reader has asked for a line after the last one: a field of the present row is not closed."""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._lines, None)
        if line is None:
            self.ended = True
            raise StopIteration
        self.taken.append(line)
        self._num_characters += len(line)
        if len(self.taken) > 1 and self._num_characters > MAX_ROW_CHARACTERS:
            raise csv.Error(f"a row of more than {MAX_ROW_CHARACTERS} characters")
        return line

    def next_row(self) -> None:
        self.taken, self._num_characters = [], 0


def column_names(stream: Any) -> list[str]:
    """The names of the columns, in the first line that is not empty.

    Raises:
        csv.Error: there are none.
    """
    names = _names(_reader(_text_lines(stream)))
    if names is None:
        raise csv.Error("it is empty")
    return [storable(name) for name in names]


def csv_rows(stream: Any) -> Iterator[Row]:
    """The rows after the names of the columns; empty lines are no rows."""
    lines = _Lines(_text_lines(stream))
    reader = _reader(lines)
    names = _names(reader) or []
    url_index = next((names.index(name) for name in URL_COLUMNS if name in names), None)
    number = 0
    while True:
        lines.next_row()
        try:
            fields = next(reader, None)
        except csv.Error:  # the reader goes on with the next line
            fields = None
        if not lines.taken:
            return
        if fields is None or lines.ended or any(_is_row(line, names, url_index) for line in lines.taken[1:]):
            for line in filter(str.strip, lines.taken):
                yield _row_of_line(number, names, line)
                number += 1
        elif fields:
            yield _row(number, names, fields)
            number += 1


def _text_lines(stream: Any) -> io.TextIOWrapper:
    """The lines of a file; bytes that are not UTF-8 become lone surrogates."""
    return io.TextIOWrapper(io.BufferedReader(stream, READ_BYTES), "utf-8-sig", errors="surrogateescape", newline="")


def _reader(lines: Iterable[str]) -> Iterator[list[str]]:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    return csv.reader(lines)


def _names(reader: Iterator[list[str]]) -> list[str] | None:
    return next(filter(None, reader), None)


def _fields(line: str) -> list[str]:
    """The fields of a line that is a row of its own.

    Raises:
        csv.Error: it is none.
    """
    lines = _Lines([line])
    fields = next(_reader(lines), [])
    if lines.ended:
        raise csv.Error(f"a quotation mark is not closed: {line}")
    return fields


def _is_row(line: str, names: Sequence[str], url_index: int | None) -> bool:
    """Whether a line inside a quoted field is evidently a row: it has all fields, and a web address as its URL."""
    if url_index is None or "://" not in line:
        return False
    try:
        fields = _fields(line)
    except csv.Error:
        return False
    return len(fields) == len(names) and fields[url_index].lower().startswith(("http://", "https://"))


def _row_of_line(number: int, names: Sequence[str], line: str) -> Row:
    try:
        return _row(number, names, _fields(line))
    except csv.Error as error:
        return Row(number, {}, Reason.BROKEN_RECORD, message_of(error))


def _row(number: int, names: Sequence[str], fields: Sequence[str]) -> Row:
    text = ",".join(fields)
    shown = storable(text)
    if len(fields) != len(names):
        message = f"{len(fields)} fields instead of {len(names)}: {shown}"
    elif shown != text:
        message = f"not UTF-8: {shown}"
    else:
        return Row(number, dict(zip(names, fields, strict=True)))
    return Row(number, {}, Reason.BROKEN_RECORD, printable(message))
