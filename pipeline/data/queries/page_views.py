"""Read Wikipedia's page views from the dumps of the Wikimedia Foundation, of every form since 2007.

    en.m Main_Page 42 0                                  hourly: pageviews, pagecounts-all-sites, pagecounts-raw
    en.wikipedia Main_Page 15580374 desktop 5131 A210B..  pageview_complete, of a day or a month
    en.z Main_Page 5131 A210B..                          pagecounts-ez/merged, of a day or a month
    en.z Main_Page 5131                                  pagecounts-ez/merged, totals of a month

The fields are wiki, title, views and bytes; wiki, title, page id (may be missing), access method, views, views by hour
or day; wiki, title, views, views by hour, or by day and hour.

Titles in pagecounts-raw and pagecounts-ez are as they were requested: percent-encoded, with blanks or underscores, with
a small first letter. They are brought into the one form of MediaWiki's page names. No page name has a percent sign and
two hexadecimal digits, so decoding does no harm to the other forms.
"""

from __future__ import annotations

import bz2
import gzip
import io
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO
from urllib.parse import unquote_to_bytes

import pyarrow as pa

from pipeline.reasons import Reason
from pipeline.schemas import PAGE_VIEWS

SUFFIXES = (".gz", ".bz2")
ROBOT_SUFFIXES = ("-spider.bz2", "-automated.bz2")
"""Files of pageview_complete that count the views of programs."""

MAX_LINE_BYTES = 2**16
LINES_CHECKED = 1000
"""Number of lines by which the form of a file is recognised."""
NO_TITLES = frozenset({b"-", b"", b"undefined", b"null"})
"""What files have in place of a title if none was recognised in the request."""

_ACCESS = (b"desktop", b"mobile-web", b"mobile-app", b"mobile")
_BY_TIME = re.compile(rb"(?:[A-Z\[\\\]^_]{1,2}[0-9?*]{1,12},?)++")
"""Views by hour (A to X), by day (A to _), or by day and hour."""
_MAX_DIGITS = 12
_NOT_IN_TITLES = re.compile(r"[\[\]{}|<>\x00-\x1f\x7f\ufffd]")
MAX_TITLE_BYTES = 255
_MAX_CHARACTERS = 3 * MAX_TITLE_BYTES
"""More characters stay too long in NFC. NFC takes quadratic time for a run of combining marks."""
_ESCAPE = re.compile(rb"%[0-9A-Fa-f]{2}")


def read_views(file: BinaryIO, uri: str, language: str, min_views: int, *, capital_titles: bool = True) -> pa.Table:
    """Sum the views of one wiki's titles in one file.

    Args:
        file: the compressed file, of any form above; its first bytes determine the compression.
        uri: name of the file; its suffix decides if the first bytes are of no known compression.
        language: language code of the wiki, such as "en"; desktop and mobile views are summed.
        min_views: titles with fewer views in this file are left out.
        capital_titles: whether the first letter of the wiki's page names is always a capital.

    Returns:
        PAGE_VIEWS in ascending order of titles, then rows with a reason: what is no title, each broken line, a file of
        another form, a truncated file.
    """
    views: Counter[bytes] = Counter()
    faults: list[Reason] = []
    kinds = ("", ".m", ".z", ".zero", ".m.z", ".wikipedia", ".m.wikipedia", ".zero.wikipedia")
    domains = {f"{language}{kind}".encode() for kind in kinds}
    is_known, num_lines = False, 0
    try:
        for line in _lines(file, uri):
            num_lines += 1
            domain = line.partition(b" ")[0]
            if domain in domains:
                if parsed := parse_line(line):
                    views[parsed[0]] += parsed[1]
                    is_known = True
                else:
                    faults.append(Reason.BROKEN_LINE)
            elif not is_known and num_lines <= LINES_CHECKED:
                is_known = parse_line(line) is not None
    except (EOFError, OSError, zlib.error):
        faults.append(Reason.TRUNCATED_RECORD)
    if not is_known and not faults:
        faults.append(Reason.BROKEN_LINE if num_lines else Reason.TRUNCATED_RECORD)
    titles: Counter[str] = Counter()
    no_titles: Counter[str] = Counter()
    for raw, count in views.items():
        if raw in NO_TITLES:
            no_titles[raw.decode()] += count
        elif (title := page_name(raw, capital_titles)) is None:
            faults.append(Reason.BROKEN_LINE)
        else:
            titles[title] += count
    rows = [(title, count, None) for title, count in sorted(titles.items()) if count >= min_views]
    others = ((title, count, Reason.NOT_AN_ARTICLE) for title, count in sorted(no_titles.items()))
    columns = zip(*rows, *others, *((None, 0, fault) for fault in faults), strict=True)
    return pa.table([list(column) for column in columns] or [[], [], []], schema=PAGE_VIEWS)


def check_views(file: BinaryIO, uri: str) -> None:
    """Check that a file has page views: one of its first lines has one of the forms above.

    Raises:
        ValueError: it has none.
    """
    try:
        lines = list(islice(_lines(file, uri), LINES_CHECKED))
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"page_views={uri}: neither a gzip nor a bz2 file that can be read ({error}); give files of page views as "
            "Wikimedia publishes them, compressed"
        ) from error
    if lines and not any(map(parse_line, lines)):
        line = lines[0][:100].decode("utf-8", "replace")
        raise ValueError(
            f"page_views={uri}: the first line is {line!r}, and no line has a form of Wikimedia's page views (hourly "
            "pageviews or pagecounts, pageview_complete, pagecounts-ez/merged); remove this file"
        )


def parse_line(line: bytes) -> tuple[bytes, int] | None:
    """Title, as in the line, and views of a line of any form; None if it has no form."""
    fields = line.split(b" ")
    if len(fields) < 3:
        return None
    if len(fields) == 4 and fields[2].isdigit() and fields[3].isdigit() and fields[0]:  # hourly, the most frequent form
        return (fields[1], int(fields[2])) if len(fields[2]) <= _MAX_DIGITS else None
    domain, last = fields[0], fields[-1]
    if not domain:
        return None
    if domain.endswith(b".wikipedia") or (len(fields) >= 5 and fields[-3] in _ACCESS):
        if len(fields) < 4 or not _BY_TIME.fullmatch(last):
            return None
        title, number = fields[1:-2], fields[-2]
        if title and title[-1] in _ACCESS and len(title) > 1:
            del title[-1]
        if len(title) > 1 and (title[-1].isdigit() or title[-1] == b"null"):
            del title[-1]
    elif len(fields) >= 4 and (last.isdigit() or _BY_TIME.fullmatch(last)):
        title, number = fields[1:-2], fields[-2]
    elif len(fields) == 3 and domain.endswith(b".z"):
        title, number = fields[1:-1], last
    else:
        return None
    if not number.isdigit() or len(number) > _MAX_DIGITS:
        return None
    return b"_".join(title), int(number)


def page_name(raw: bytes, capital_titles: bool = True) -> str | None:
    """The page name of a requested title: decoded, in NFC, with single blanks and a capital.

    None if MediaWiki cannot have such a page: the bytes are no UTF-8, or a character or the length is not allowed.
    """
    for _ in range(3):  # some requests are encoded twice
        if not _ESCAPE.search(raw):
            break
        raw = unquote_to_bytes(raw)
    try:
        title = raw.decode()
    except UnicodeDecodeError:
        return None
    title = " ".join(title.partition("#")[0].replace("_", " ").split())
    if len(title) > _MAX_CHARACTERS:
        return None
    title = unicodedata.normalize("NFC", title)
    if not title or _NOT_IN_TITLES.search(title) or len(title.encode()) > MAX_TITLE_BYTES:
        return None
    capital = title[0].upper()
    return capital + title[1:] if capital_titles and len(capital) == 1 else title


def _lines(file: BinaryIO, uri: str) -> Iterator[bytes]:
    """The lines of a compressed file, without their ends; no empty lines and comments; a long line is cut.

    Raises:
        OSError, EOFError, zlib.error: the file is not compressed, broken or truncated.
    """
    start = file.read(3)
    file.seek(0)
    is_bz2 = start == b"BZh" or (start[:2] != b"\x1f\x8b" and uri.endswith(".bz2"))
    with bz2.open(file) if is_bz2 else gzip.open(file) as stream:
        lines = io.BufferedReader(stream)  # its readline is not written in Python
        is_rest = False
        while line := lines.readline(MAX_LINE_BYTES):
            text = line.rstrip(b"\r\n")
            if text and not is_rest and not text.startswith(b"# "):
                yield text
            is_rest = not line.endswith(b"\n")
