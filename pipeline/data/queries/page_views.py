"""Read Wikipedia's page views from the dumps of the Wikimedia Foundation.

An hourly file (pageviews-YYYYMMDD-HH0000.gz) has lines such as `en.m Main_Page 42 0`: domain, title, views, bytes. A
daily file (pageviews-YYYYMMDD-user.bz2) has lines such as `en.wikipedia Main_Page 15580374 desktop 5131 A210...`: wiki,
title, page id (may be missing), access method, views of the day, views by hour.
"""

from __future__ import annotations

import bz2
import gzip
import zlib
from collections import Counter
from typing import BinaryIO

import pyarrow as pa

from pipeline.reasons import Reason
from pipeline.schemas import PAGE_VIEWS

SUFFIXES = (".gz", ".bz2")


def read_views(file: BinaryIO, uri: str, language: str, min_views: int) -> pa.Table:
    """Sum the views of one wiki's titles in one file.

    Args:
        file: the compressed file.
        uri: name of the file; its suffix determines the compression.
        language: language code of the wiki, such as "en"; desktop and mobile views are summed.
        min_views: titles with fewer views in this file are left out.

    Returns:
        PAGE_VIEWS in ascending order of titles, then one row with a reason for each broken line or truncated file.
    """
    views: Counter[str] = Counter()
    faults: list[Reason] = []
    domains = {f"{language}{kind}".encode() for kind in ("", ".m", ".z", ".wikipedia", ".m.wikipedia", ".zero")}
    try:
        with bz2.open(file) if uri.endswith(".bz2") else gzip.open(file) as lines:
            for line in lines:
                fields = line.split()
                if fields and fields[0] in domains:
                    count = _count(fields)
                    if count is None:
                        faults.append(Reason.BROKEN_LINE)
                    else:
                        views[fields[1].decode("utf-8", "replace").replace("_", " ")] += count
    except (EOFError, OSError, zlib.error):
        faults.append(Reason.TRUNCATED_RECORD)
    rows = [(title, count, None) for title, count in sorted(views.items()) if count >= min_views]
    columns = zip(*rows, *((None, 0, fault) for fault in faults), strict=True)
    return pa.table([list(column) for column in columns] or [[], [], []], schema=PAGE_VIEWS)


def _count(fields: list[bytes]) -> int | None:
    """The views of an hourly or daily line; None if the line has no such number."""
    hourly = len(fields) == 4 and not fields[0].endswith(b".wikipedia")
    number = fields[2] if hourly else fields[-2] if len(fields) > 4 else b""
    return int(number) if number.isdigit() else None
