import datetime
import random
from collections import Counter
from collections.abc import Sequence
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.crawl.link_rot import add, busiest_names, count
from pipeline.data.web.addresses import registered_domain
from pipeline.reasons import IMAGE_CHECKS, POLICY, TRANSIENT, Reason
from pipeline.schemas import LINK_ROT
from tests.pipeline.data.rows import fetched

HOSTS = ("a.example", "i.b.co.uk", "j.b.co.uk", "[2001:db8::1]", "1.2.3.4", "shop.example:8080")
URLS = (*(f"https://{host}/x.jpg?http://c.example/" for host in HOSTS), "http://a.example", "data:12", "table:12")
YEARS = (2016, 2026, None)
REASONS = (
    *(None, Reason.NOT_FOUND, Reason.TIMEOUT, Reason.ROBOTS_TXT),
    *(Reason.UNSAFE, Reason.CORRUPT_IMAGE, Reason.BALANCED_OUT),
)
Row = tuple[str, int | None, Reason | None]
rows_of_a_crawl = st.lists(
    st.tuples(st.sampled_from(URLS), st.sampled_from(YEARS), st.sampled_from(REASONS)), max_size=40
)


def table_of(rows: Sequence[Row]) -> pa.Table:
    dates = [year and datetime.datetime(year, 12, 31, 23, 59, 59, tzinfo=datetime.UTC) for _, year, _ in rows]
    return fetched(
        url=pa.array([url for url, _, _ in rows], pa.string()),
        page_date=pa.array(dates, pa.timestamp("ms", "UTC")),
        reason=pa.array([reason for _, _, reason in rows], pa.string()),
    )


def fate_of(reason: Reason | None) -> str:
    if reason is None:
        return "kept"
    classes = {"transient": TRANSIENT, "policy": POLICY, "image_refused": IMAGE_CHECKS}
    return next((name for name, members in classes.items() if reason in members), "permanent")


@settings(max_examples=100, deadline=None)
@given(rows_of_a_crawl, st.integers(0, 40))
def test_every_tried_url_is_counted_once_in_each_view(rows: list[Row], split_row: int) -> None:
    expected: Counter[tuple[str, str | None, str]] = Counter()
    for url, year, reason in rows:
        if reason != Reason.BALANCED_OUT and url.startswith("http"):
            host = url.split("/")[2].removesuffix(":8080")
            assert host.strip("[]") == urlsplit(url).hostname
            names = {"domain": registered_domain(url), "host": host, "year": str(year) if year else None}
            expected.update((by, name, fate) for by, name in names.items() for fate in ("tried", fate_of(reason)))
    found = count(table_of(rows))
    assert found.schema == LINK_ROT
    tallies = {(row["by"], row["name"], fate): row[fate] for row in found.to_pylist() for fate in LINK_ROT.names[2:]}
    assert {key: number for key, number in tallies.items() if number} == expected
    assert len(tallies) == 6 * found.num_rows
    parts = [count(table_of(part)) for part in (rows[:split_row], rows[split_row:])]
    random.Random(split_row).shuffle(parts)
    assert add(pa.concat_tables(parts)) == found


def test_a_reason_of_another_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="not a reason of fetching"):
        count(table_of([("http://a.example/", None, Reason.CAPTION_SHORT)]))


def test_the_busiest_names_and_every_year_are_kept() -> None:
    rows = [(f"http://h{n}.a{n % 3}.example/", 2000 + n % 7, None) for n in range(20) for _ in range(n % 4)]
    table = count(table_of(rows))
    kept = busiest_names(table, 2)
    assert kept.schema == LINK_ROT
    assert [(row["by"], row["name"], row["tried"]) for row in kept.to_pylist() if row["by"] != "year"] == [
        ("domain", "a0.example", 11),
        ("domain", "a1.example", 10),
        ("host", "h11.a2.example", 3),
        ("host", "h15.a0.example", 3),
    ]
    years = kept.filter(pc.equal(kept["by"], "year"))
    assert years["name"].to_pylist() == [str(year) for year in range(2000, 2007)]
    assert busiest_names(kept, 2) == kept
    # Each bucket may keep only its own busiest names, because every name is in a single bucket
    of_one = pc.match_substring(table["name"], "1")
    halves = [busiest_names(table.filter(half), 2) for half in (of_one, pc.invert(of_one))]
    assert busiest_names(pa.concat_tables(halves), 2) == kept
