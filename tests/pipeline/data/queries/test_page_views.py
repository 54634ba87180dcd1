import bz2
import gzip
import io

import pytest

from pipeline.data.queries.page_views import read_views
from pipeline.reasons import Reason
from pipeline.schemas import PAGE_VIEWS

HOURLY = b"""\
de Hund 7 0
en Dog 42 0
en.m Dog 8 0
en Special:Search 99 0
en.d dog 5 0
en Caf\xc3\xa9_au_lait 3 0
commons.m Dog 4 0
"""
DAILY = b"""\
de.wikipedia Hund 12 desktop 7 A7
en.wikipedia Dog 4269567 desktop 500 A100B400
en.wikipedia Dog 4269567 mobile-web 250 A250
en.wikipedia Old_page null desktop 3 C3
en.wikipedia No_id desktop 2 C2
en.wiktionary dog 1 desktop 9 A9
"""


def read(data: bytes, name: str, min_views: int = 1) -> dict[str | None, int]:
    table = read_views(io.BytesIO(data), name, "en", min_views)
    assert table.schema == PAGE_VIEWS
    return dict(zip(table["title"].to_pylist(), table["views"].to_pylist(), strict=True))


def test_an_hourly_file_is_read() -> None:
    views = {"Café au lait": 3, "Dog": 50, "Special:Search": 99}
    assert read(gzip.compress(HOURLY), "pageviews-20240101-000000.gz") == views
    assert read(gzip.compress(HOURLY), "pageviews-20240101-000000.gz", 50) == {"Dog": 50, "Special:Search": 99}


def test_a_daily_file_is_read() -> None:
    assert read(bz2.compress(DAILY), "pageviews-20240101-user.bz2") == {"Dog": 750, "No id": 2, "Old page": 3}


def test_broken_lines_and_a_truncated_file_are_rows_with_a_reason() -> None:
    data = gzip.compress(b"en Dog 1 0\nen Cat many 0\nen\n" + b"en Cow 2 0\n" * 50_000)
    table = read_views(io.BytesIO(data[:-20]), "x.gz", "en", 1)
    assert table["reason"].to_pylist()[-3:] == [Reason.BROKEN_LINE, Reason.BROKEN_LINE, Reason.TRUNCATED_RECORD]
    assert table["title"].to_pylist()[:2] == ["Cow", "Dog"]


@pytest.mark.parametrize("name", ["x.gz", "x.bz2"])
def test_an_uncompressed_file_is_a_row_with_a_reason(name: str) -> None:
    table = read_views(io.BytesIO(b"en Dog 1 0\n"), name, "en", 1)
    assert table["reason"].to_pylist() == [Reason.TRUNCATED_RECORD]
