import csv
import io
import time

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.sources.csv_rows import MAX_FIELD_CHARACTERS, column_names, csv_rows
from pipeline.reasons import Reason

GOOD = [["http://a.example/1", "one"], ["http://a.example/2", "two"], ["http://a.example/3", "three"]]
LINES = [",".join(row) for row in GOOD]


def rows(text: str | bytes, header: str = "url,caption\n") -> list[list[str] | Reason]:
    """The fields of each row, or its reason."""
    data = header.encode() + (text.encode() if isinstance(text, str) else text)
    found = list(csv_rows(pa.BufferReader(data)))
    assert [row.number for row in found] == list(range(len(found)))
    return [row.reason or list(row.values.values()) for row in found]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n", "\n\n\n"])
def test_ends_of_lines(end: str) -> None:
    """Old ends of lines, and those of files that were converted twice."""
    assert rows(end.join(LINES), f"\n\ufeffurl,caption{end}".removeprefix("\n")) == GOOD
    assert rows(end.join([*LINES, ""])) == GOOD


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize(
    "line",
    [
        'http://a.example/x,"an unclosed mark',
        'http://a.example/x,"an "" escaped one',
        '"http://a.example/x,the mark of the first field',
        'http://a.example/x,"',
    ],
)
def test_a_quotation_mark_that_is_not_closed_costs_its_own_row(position: int, line: str) -> None:
    """osiegmar/FastCSV#173, jlawrie/opencsv#13, tarql/tarql#50: readers swallow all lines up to the next mark."""
    expected: list[list[str] | Reason] = [*GOOD]
    expected.insert(position, Reason.BROKEN_RECORD)
    lines = [*LINES]
    lines.insert(position, line)
    assert rows("\n".join(lines)) == expected
    last = 'http://a.example/4,"four, quoted"'
    assert rows("\n".join([*lines, last])) == [*expected, ["http://a.example/4", "four, quoted"]]


def test_fields_of_several_lines_stay() -> None:
    caption = 'a dog,\n"Rex"\r\nsee http://a.example/1,one\nhttp://a.example/'
    assert rows('http://a.example/x,"' + caption.replace('"', '""') + '"\n' + LINES[0]) == [
        ["http://a.example/x", caption],
        GOOD[0],
    ]


@pytest.mark.parametrize("line", ['x,"y', 'a"b,"c', '"",""', '"', 'a,"b" c,"', ",", "x"])
def test_time_is_linear(line: str) -> None:
    seconds = []
    for num_bytes in (2**17, 2**20):
        began = time.perf_counter()
        rows("\n".join([line] * (num_bytes // (len(line) + 1))))
        seconds.append(time.perf_counter() - began)
    assert seconds[1] < 30 * seconds[0] + 1


def test_a_field_that_is_too_long_costs_its_own_row() -> None:
    long = f"http://a.example/x,{'x' * MAX_FIELD_CHARACTERS}x"
    assert rows("\n".join([LINES[0], long, *LINES[1:]])) == [GOOD[0], Reason.BROKEN_RECORD, *GOOD[1:]]


@pytest.mark.parametrize("text", ["", "\ufeff", "\n\r\n"])
def test_a_file_without_columns(text: str) -> None:
    with pytest.raises(csv.Error):
        column_names(pa.BufferReader(text.encode()))
    assert list(csv_rows(pa.BufferReader(text.encode()))) == []


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=2, max_size=2)))
def test_what_python_writes_is_read(table: list[list[str]]) -> None:
    sink = io.StringIO(newline="")
    csv.writer(sink, quoting=csv.QUOTE_ALL).writerows(table)
    assert rows(sink.getvalue()) == table
