import html
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.cards import card as cards
from pipeline.data.cards.card import Card, Count, Topic, card, count, most_frequent_names, sum_card_counts
from pipeline.data.cards.card_pages import to_html, to_markdown
from pipeline.schemas import CARD_COUNTS, PAIRS, conform
from tests.pipeline.data.rows import ids

CRAWL = {
    "caption": {"language": "en", "personal_data": "redact"},
    "image": {"image_size": 256},
    "fetch": {"user_agent": "clip-on-ray"},
    "safety": {"classifier": None},
    "block_lists": {"block_urls": []},
}
RECORD: dict[str, Any] = {
    "name": "v00000002",
    "parent": "v00000001",
    "snapshot_id": "5" * 64,
    "num_pairs": 4,
    "num_bytes": 1_234_567,
    "num_shards": 1,
    "crawl_funnel": {
        "c1": [
            {"stage": "candidates", "kept": 8, "dropped": {"caption is <empty>": 2}},
            {"stage": "counts", "kept": 99, "dropped": {}},
            {"stage": "fetched", "kept": 5, "dropped": {"timeout": 3}},
            {"stage": "fetched", "kept": 6, "dropped": {"timeout": 1, "not found": 1}},
        ]
    },
    "overlap": None,
    "funnel": [{"stage": "placed", "kept": 4, "dropped": {"same picture as a better pair": 2}}],
    "configuration": {
        "balance": {"mode": "paper", "max_pairs_per_query": 20_000},
        "dedupe": {"radius": 3, "caption_radius": 8},
        "crawl": {"c1": CRAWL},
    },
}


def pairs(n: int = 4) -> pa.Table:
    columns = {
        "pair_id": ids(n),
        "url": [f"https://img{i}.site{i % 2}.example/x.jpg" for i in range(n)],
        "caption": ["a dog", "one two three four", "a b c", "<script>alert(1)</script> in a caption of words"][:n],
        "language": ["en", "en", None, "en"][:n],
        "caption_source": ["alt", "alt", "title", "alt"][:n],
        "spare_captions": [["x"], [], None, ["x", "y", "z"]][:n],
        "query_ids": [[1], [1, 2], [3], list(range(12))][:n],
        "original_width": [100, 256, 600, 5_000][:n],
        "original_height": [200, 300, 511, 5_000][:n],
    }
    return conform(
        pa.table({name: pa.array(values, PAIRS.field(name).type) for name, values in columns.items()}), PAIRS
    )


def counted(table: pa.Table) -> dict[tuple[str, str | None], int]:
    return {(row["topic"], row["name"]): row["num_pairs"] for row in table.to_pylist()}


def test_pairs_are_counted_by_every_topic() -> None:
    found = count(pairs())
    assert found.schema == CARD_COUNTS
    assert counted(found) == {
        ("domain", "site0.example"): 2,
        ("domain", "site1.example"): 2,
        ("language", "en"): 3,
        ("language", None): 1,
        ("source", "alt"): 3,
        ("source", "title"): 1,
        ("words", "0 to 3"): 2,
        ("words", "4 to 7"): 2,
        ("pixels", "0 to 127"): 1,
        ("pixels", "256 to 511"): 2,
        ("pixels", "4,096 or more"): 1,
        ("queries", "1"): 2,
        ("queries", "2"): 1,
        ("queries", "11 or more"): 1,
        ("spares", "0"): 2,
        ("spares", "1"): 1,
        ("spares", "2 to 4"): 1,
    }
    assert count(pairs(0)) == CARD_COUNTS.empty_table()


@given(st.integers(0, 4))
@settings(max_examples=5, deadline=None)
def test_counts_of_shards_sum_to_the_counts_of_all_pairs(cut: int) -> None:
    table = pairs()
    summed = sum_card_counts(pa.concat_tables([count(table.slice(0, cut)), count(table.slice(cut))]))
    assert counted(summed) == counted(count(table))
    assert summed.num_rows == count(table).num_rows


def test_a_topic_lists_its_most_frequent_names_and_sums_the_others() -> None:
    rows = [("domain", f"d{number:03d}", number) for number in range(1, 101)]
    counts = pa.table(list(zip(*rows, strict=True)), schema=CARD_COUNTS)
    halves = [most_frequent_names(counts.slice(start, 50)) for start in (0, 50)]
    best = most_frequent_names(pa.concat_tables(halves))
    assert best == most_frequent_names(counts)
    assert best["num_pairs"].to_pylist() == list(range(100, 100 - cards.NUM_NAMES, -1))
    topic = made(best, num_pairs=5_050).topics[0]
    assert topic.counts[0] == Count("d100", 100, 100 / 5_050)
    assert topic.num_others == sum(range(1, 101 - cards.NUM_NAMES))


def made(counts: pa.Table, **changes: object) -> Card:
    query_counts = pa.table({"query_id": [1, 2, 3], "num_pairs": pa.array([1, 150, 20_000], pa.int64())})
    return card(RECORD | changes, counts, query_counts)


def test_the_card_has_the_data_of_the_record_and_the_counts() -> None:
    found = made(most_frequent_names(sum_card_counts(count(pairs()))))
    (crawl, steps), (curation, last) = found.funnels
    assert (crawl, [step.title for step in steps]) == ("Crawl", [cards.STEPS["candidates"], cards.STEPS["fetched"]])
    assert steps[0].dropped == (Count("caption is <empty>", 2, 0.2),)
    assert steps[1].kept == 6, "after the last attempt"
    assert (curation, [step.kept for step in last]) == ("Curation", [4])
    by_title = {topic.title: topic for topic in found.topics}
    assert by_title["Languages of the captions"].counts == (Count("en", 3, 0.75), Count("unknown", 1, 0.25))
    assert [line.name for line in by_title["Queries per pair"].counts] == ["1", "2", "11 or more"], "in ascending order"
    assert found.queries == Topic(
        "Queries by their number of pairs",
        (Count("1", 1, 1 / 3), Count("100 to 999", 1, 1 / 3), Count("10,000 or more", 1, 1 / 3)),
        0,
    )
    assert ("Maximum pairs per query", "20000") in found.settings
    assert any("classifier of unsafe images" in limit for limit in found.limits)


def test_limits_depend_on_the_crawls() -> None:
    safe = CRAWL | {"safety": {"classifier": "a:B"}, "block_lists": {"block_urls": ["x"]}}
    configuration = RECORD["configuration"]
    counts = CARD_COUNTS.empty_table()
    fewer = made(counts, configuration=configuration | {"crawl": {"c1": safe}}).limits
    mixed = made(counts, configuration=configuration | {"crawl": {"c1": safe, "c2": CRAWL}}).limits
    assert len(fewer) == len(mixed) - 2
    assert mixed == made(counts).limits


OVERLAP = {
    "mode": "mark",
    "sets": {"imagenet": {"num_overlapping": 2, "share": 0.5}, "cifar10": {"num_overlapping": 0, "share": 0.0}},
}


@pytest.mark.parametrize("overlap", [None, OVERLAP])
def test_both_pages_show_the_card_and_escape_texts_from_the_web(overlap: dict[str, Any] | None) -> None:
    table = pairs().set_column(
        pairs().schema.get_field_index("caption_source"), "caption_source", pa.array(["<b>|`x`", "alt", "alt", "alt"])
    )
    query_counts = pa.table({"query_id": [1], "num_pairs": pa.array([1], pa.int64())})
    found = card(RECORD | {"overlap": overlap}, most_frequent_names(sum_card_counts(count(table))), query_counts)
    page, text = to_html(found), to_markdown(found)
    for expected in ("v00000002", "1.2 MB", "site0.example", "One per picture, balanced"):
        assert expected in page
        assert expected in text
    assert ("were not compared" in page) == ("pairs were not compared" in text) == (overlap is None)
    assert ("kept and marked" in page) == ("| imagenet | 2 | 50.0% |" in text) == (overlap is not None)
    assert "<b>|" not in page
    assert html.escape("<b>|`x`") in page
    assert "\\<b\\>\\|\\`x\\`" in text
    assert "caption is <empty>" not in page
    assert "http" not in page.replace("http-equiv", ""), "the page must not load anything"


def test_a_snapshot_without_pairs_has_a_card() -> None:
    query_counts = pa.table({"num_pairs": pa.array([], pa.int64())})
    found = card(RECORD | {"num_pairs": 0, "funnel": []}, CARD_COUNTS.empty_table(), query_counts)
    assert "v00000002" in to_html(found)
    assert "v00000002" in to_markdown(found)
