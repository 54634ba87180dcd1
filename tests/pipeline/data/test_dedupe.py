import random
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import dedupe
from pipeline.data.dedupe import (
    DedupeConfig,
    DuplicateFilter,
    caption_order,
    edges,
    fingerprints,
    resolve,
    same_url,
)
from pipeline.data.image import perceptual_hash
from pipeline.hashing import bucket_of, hash128
from pipeline.schemas import DUPLICATES, EDGES, FINGERPRINTS, Reason
from tests.pipeline.data.rows import candidates, encode, fetched, ids, photo_like, pictures_of

RADII = (0, 1, 3, 8, 20, 63)


def flipped(base: int, bits: list[int]) -> int:
    return base ^ sum(1 << bit for bit in set(bits))


# Hashes that lie in heaps, some at the very radius
hashes = st.builds(
    flipped,
    st.sampled_from([0, 2**64 - 1, 0x0123456789ABCDEF, 0x0123456789ABCDE0]),
    st.lists(st.integers(0, 63), max_size=5) | st.lists(st.integers(0, 63), max_size=24),
)


def distance(a: int, b: int) -> int:
    return (a ^ b).bit_count()


class Picture(NamedTuple):
    phash: int
    file: int
    side: int


# Few hashes, sizes and files; a file has one hash
pictures = st.lists(st.builds(Picture, hashes, st.integers(0, 2), st.integers(1, 3)), max_size=25)


class Graph(NamedTuple):
    """The pictures as rows, and who is better than whom."""

    table: pa.Table
    rows: dict[str, Picture]
    order: list[str]
    """Best first: more pixels, then the lower upper half of the id, then the id."""

    def greedy(self, radius: int) -> dict[str, str]:
        """The definition: from best to worst each row stays unless a row that stayed is its neighbour."""
        dropped: dict[str, str] = {}
        kept: list[str] = []
        for row in self.order:
            near = [k for k in kept if distance(self.rows[k].phash, self.rows[row].phash) <= radius]
            if near:
                dropped[row] = near[0]
            else:
                kept.append(row)
        return dropped


def graph_of(found: list[Picture]) -> Graph:
    rows = dict(zip(ids(len(found)), found, strict=True))
    table = pictures_of(
        pair_id=list(rows),
        sha256=[hash128(str(p.phash), str(p.file)) for p in found],
        phash=pa.array([p.phash for p in found], pa.uint64()),
        original_width=[p.side for p in found],
        original_height=[100] * len(found),
    )
    return Graph(table, rows, sorted(rows, key=lambda row: (-rows[row].side, row[:8], row)))


def duplicates_of(graph: Graph, radius: int, num_buckets: int, order: random.Random) -> pa.Table:
    """As flow.py does it: parts in any order, bands in buckets, edges of each bucket, all edges resolved."""
    rows = list(range(graph.table.num_rows))
    order.shuffle(rows)
    cut = order.randint(0, len(rows))
    parts = [fingerprints(graph.table.take(pa.array(part, pa.int64())), radius) for part in (rows[:cut], rows[cut:])]
    prints = pa.concat_tables(parts)
    assert prints.schema == FINGERPRINTS
    assert prints.num_rows == graph.table.num_rows * (radius + 1)
    buckets = bucket_of(prints["band"].to_numpy(), num_buckets)
    found = [edges(prints.filter(pa.array(buckets == bucket)), radius) for bucket in range(num_buckets)]
    order.shuffle(found)
    return resolve(pa.concat_tables(found))


@settings(max_examples=200, deadline=None)
@given(pictures, st.sampled_from(RADII[:5]), st.integers(1, 5), st.randoms(use_true_random=False))
def test_duplicates_are_those_of_the_definition_in_any_order_and_partition(
    found: list[Picture], radius: int, num_buckets: int, order: random.Random
) -> None:
    graph = graph_of(found)
    duplicates = duplicates_of(graph, radius, num_buckets, order)
    assert duplicates.schema == DUPLICATES
    dropped = {row["pair_id"]: row for row in duplicates.to_pylist()}
    assert len(dropped) == duplicates.num_rows
    assert dropped.keys() == graph.greedy(radius).keys()
    for row, duplicate in dropped.items():
        best = duplicate["kept_id"]
        assert best not in dropped
        assert graph.order.index(best) < graph.order.index(row)
        assert distance(graph.rows[best].phash, graph.rows[row].phash) <= radius, "dropped along a chain"
        assert duplicate["same_file"] == (graph.rows[best][:2] == graph.rows[row][:2])
    kept = graph.rows.keys() - dropped.keys()
    assert all(distance(graph.rows[a].phash, graph.rows[b].phash) > radius for a in kept for b in kept if a < b)


def test_a_chain_keeps_both_of_its_ends() -> None:
    """a - b - c, each 2 bits from the next: b goes for a, and c, 4 bits from a, stays."""
    graph = graph_of([Picture(0b0, 0, 30), Picture(0b11, 0, 20), Picture(0b1111, 0, 10)])
    (row,) = duplicates_of(graph, 2, 3, random.Random(0)).to_pylist()
    a, b, _ = graph.rows
    assert row == {"pair_id": b, "kept_id": a, "same_file": False}


def test_a_picture_that_stands_everywhere_costs_an_edge_each() -> None:
    count = 2_000
    graph = graph_of([Picture(7, i % 2, 1 + i) for i in range(count)])
    prints = fingerprints(graph.table, 3)
    found = edges(prints, 3)
    assert found.schema == EDGES
    assert found.num_rows == (count - 1) * 4, "one per band"
    assert set(found["better_id"].to_pylist()) == {graph.order[0]}
    duplicates = resolve(found)
    assert duplicates.num_rows == count - 1
    assert sum(duplicates["same_file"].to_pylist()) == count // 2 - 1


def test_nothing_is_near_to_nothing() -> None:
    assert resolve(EDGES.empty_table()) == DUPLICATES.empty_table()
    assert edges(fingerprints(graph_of([Picture(1, 0, 1)]).table, 3), 3).num_rows == 0


def test_more_pixels_rank_higher_however_many() -> None:
    sides = [1, 2, 46_341, 65_536, 100_000]  # the last two are beyond 32 bits of pixels, and equal
    table = pictures_of(
        sha256=["x"] * 5, phash=pa.array([0] * 5, pa.uint64()), original_width=sides, original_height=sides
    )
    ranks = fingerprints(table, 0)["rank"].to_numpy() >> np.uint64(32)
    assert ranks[0] > ranks[1] > ranks[2] > ranks[3] == ranks[4] == 0


def test_pictures_are_hashed_and_give_their_hashes_to_their_rows() -> None:
    images = [encode(photo_like(seed), "JPEG") for seed in range(3)]
    table = fetched(jpg=images, sha256=["x", "y", "z"], original_width=[9] * 3, original_height=[8] * 3)
    made = dedupe.pictures(table.select(["pair_id", "sha256", "jpg", "original_width", "original_height"]))
    assert made == pictures_of(
        sha256=["x", "y", "z"],
        phash=pa.array(perceptual_hash(images)),
        original_width=[9] * 3,
        original_height=[8] * 3,
    )
    assert dedupe.with_phash(table, made).drop_columns(["phash"]) == table
    assert dedupe.with_phash(table, made)["phash"] == made["phash"]
    with pytest.raises(AssertionError):
        dedupe.with_phash(table, made.take([1, 0, 2]))


def test_the_filter_marks_what_was_dropped() -> None:
    a, b, c, d = ids(4)
    table = fetched(pair_id=[a, b, c, d], reason=[None, None, None, Reason.TOO_SMALL])
    duplicates = pa.table([[b, c, d], [a, a, a], [True, False, True]], schema=DUPLICATES)
    done = DuplicateFilter(duplicates)(table)
    expected = [None, Reason.DUPLICATE_SHA256, Reason.DUPLICATE_PERCEPTUAL, Reason.TOO_SMALL]
    assert done["reason"].to_pylist() == expected
    assert DuplicateFilter(DUPLICATES.empty_table())(table) == table


URL = "http://a.example/x.jpg"


def test_the_best_caption_of_an_address_stays_and_gets_the_others() -> None:
    captions = ["short title", "an alt text", "a longer alt text", "the figure's caption", "an alt text"]
    table = candidates(
        image_url=[URL] * 5, caption=captions, caption_source=["title", "alt", "alt", "figcaption", "alt"]
    )
    done = same_url(table)
    assert done["reason"].to_pylist() == [Reason.DUPLICATE_URL] * 3 + [None] + [Reason.DUPLICATE_URL]
    assert done["spare_captions"].to_pylist() == [[], [], [], ["a longer alt text", "an alt text", "short title"], []]
    assert done.schema == table.schema


url_rows = st.lists(
    st.tuples(
        st.sampled_from([URL, URL + "?1", "data:x"]),
        st.sampled_from(["a dog", "a cat", "a dog runs", "owl"]),
        st.sampled_from(["alt", "title", "figcaption", "table", "unknown"]),
        st.sampled_from(["http://a.example/", "http://b.example/", None]),
    ),
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(url_rows, st.randoms(use_true_random=False))
def test_one_row_of_each_address_stays_whatever_the_order(
    rows: list[tuple[str, str, str, str | None]], order: random.Random
) -> None:
    def outcome(found: list[tuple[str, str, str, str | None]]) -> list[tuple[object, ...]]:
        urls, captions, sources, pages = (list(column) for column in zip(*found, strict=True)) if found else ([],) * 4
        pair_ids = [hash128(url, caption) for url, caption, *_ in found]
        table = candidates(pair_id=pair_ids, image_url=urls, caption=captions, caption_source=sources, page_url=pages)
        done = same_url(table).to_pylist()
        assert len(done) == len(found)
        kept = [row for row in done if row["reason"] is None]
        assert sorted(row["image_url"] for row in kept) == sorted(set(urls))
        for row in kept:
            others = {caption for url, caption, *_ in found if url == row["image_url"]} - {row["caption"]}
            assert sorted(row["spare_captions"]) == sorted(others)
        return sorted(tuple(map(str, row.values())) for row in kept)

    shuffled = order.sample(rows, len(rows))
    assert outcome(shuffled) == outcome(rows)


@settings(max_examples=100, deadline=None)
@given(url_rows, st.integers(0, 12))
def test_rows_kept_of_two_tables_give_what_all_rows_at_once_would(
    rows: list[tuple[str, str, str, str | None]], cut: int
) -> None:
    def kept(table: pa.Table) -> pa.Table:
        done = same_url(table)
        return done.filter(done["reason"].is_null())

    table = candidates(
        pair_id=[hash128(url, caption) for url, caption, *_ in rows],
        image_url=[url for url, *_ in rows],
        caption=[caption for _, caption, *_ in rows],
        caption_source=[source for _, _, source, _ in rows],
        page_url=pa.array([page for *_, page in rows], pa.string()),
    )
    twice = kept(pa.concat_tables([kept(table.slice(0, cut)), kept(table.slice(cut))]))
    assert twice.sort_by("image_url") == kept(table).sort_by("image_url")


def test_caption_order_is_by_source_then_length_then_id() -> None:
    table = candidates(
        caption=["abc", "abcd", "abc", "a", "ab"], caption_source=["alt", "alt", "alt", "figcaption", "from afar"]
    )
    first, second = sorted((0, 2), key=lambda row: table["pair_id"][row].as_py())
    assert caption_order(table).tolist() == [3, 1, first, second, 4]


@pytest.mark.parametrize("radius", [-1, 64])
def test_a_radius_that_makes_no_sense_is_refused(radius: int) -> None:
    with pytest.raises(ValueError, match=rf"dedupe\.radius = {radius}"):
        DedupeConfig(radius=radius)
