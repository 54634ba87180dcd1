import random
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.duplicates.dedupe import duplicates
from pipeline.data.duplicates.duplicate_graph import (
    DedupeConfig,
    dropped_pictures,
    edges,
    fingerprints,
    links,
    resolve,
    settle,
    spread,
)
from pipeline.data.images.phash import MIRRORED, UNCHANGED, Variant
from pipeline.hashing import bucket_of, mix
from pipeline.reasons import Reason
from pipeline.schemas import DROPPED_PICTURES, DUPLICATES, EDGES, FINGERPRINTS, LINKS
from tests.pipeline.data.rows import ids, pictures_of


def flipped(base: int, bits: list[int]) -> int:
    return base ^ sum(1 << bit for bit in set(bits))


# Hashes in clusters around a few centres, some exactly at the radius
hashes = st.builds(
    flipped,
    st.sampled_from([0, 2**64 - 1, 0x0123456789ABCDEF, 0x0123456789ABCDE0]),
    st.lists(st.integers(0, 63), max_size=5) | st.lists(st.integers(0, 63), max_size=24),
)


class Row(NamedTuple):
    phash: int
    rank: int
    caption: int = 0
    file: int = 0
    mirrored: int = 0


rows_of = st.lists(st.builds(Row, hashes, st.integers(1, 4), st.integers(0, 2), st.integers(0, 1), hashes), max_size=25)
configs = st.builds(
    DedupeConfig,
    radius=st.sampled_from([0, 1, 3, 8]),
    caption_radius=st.sampled_from([0, 4, 12]),
    mirrored=st.booleans(),
)


def table_of(rows: list[Row], mirrored: bool = False) -> pa.Table:
    """PICTURES in three parts."""
    return pictures_of(
        part=[number % 3 for number in range(len(rows))],
        sha256=[f"{row.phash}-{row.file}" for row in rows],
        phash=pa.array([row.phash for row in rows], pa.uint64()),
        variants=pa.array([[row.mirrored] if mirrored else [] for row in rows], pa.list_(pa.uint64())),
        rank=pa.array([row.rank for row in rows], pa.uint64()),
        caption_key=pa.array([row.caption for row in rows], pa.uint64()),
    )


def distance(a: int, b: int) -> int:
    return (a ^ b).bit_count()


def greedy(rows: list[Row], config: DedupeConfig) -> tuple[set[str], dict[str, set[str]]]:
    """The definition: the ids of kept rows, and for each dropped row the ids that may have been kept instead."""
    named = dict(zip(ids(len(rows)), rows, strict=True))
    members: dict[int, list[str]] = {}
    for name in sorted(named, key=lambda name: (named[name].rank, name)):
        members.setdefault(named[name].phash, []).append(name)
    captions = {phash: {named[name].caption for name in names} - {0} for phash, names in members.items()}

    def similar(a: int, b: int) -> bool:
        near = distance(a, b)
        rotated = config.mirrored and min(
            distance(named[members[a][0]].mirrored, b), distance(named[members[b][0]].mirrored, a)
        )
        return (
            near <= config.radius
            or (near <= config.caption_radius and bool(captions[a] & captions[b]))
            or (config.mirrored and rotated <= config.radius)
        )

    kept: list[int] = []
    dropped: dict[str, set[str]] = {}
    for phash in sorted(members, key=lambda phash: (named[members[phash][0]].rank, phash)):
        better = {members[other][0] for other in kept if similar(phash, other)}
        if better:
            dropped |= dict.fromkeys(members[phash], better)
        else:
            kept.append(phash)
            dropped |= {name: {members[phash][0]} for name in members[phash][1:]}
    return {members[phash][0] for phash in kept}, dropped


def buckets_of(table: pa.Table, column: str, num_buckets: int) -> list[pa.Table]:
    found = bucket_of(mix(table[column].to_numpy()), num_buckets)
    return [table.filter(pa.array(found == bucket)) for bucket in range(num_buckets)]


def resolved(found: pa.Table, num_buckets: int, at_once: int, order: random.Random) -> pa.Table:
    """DROPPED_PICTURES computed as in duplicates_flow.py: rounds over buckets, then the rest at once."""
    done = [DROPPED_PICTURES.empty_table()]
    while found.num_rows > at_once:
        for step in (settle, spread):
            made = [step(bucket) for bucket in buckets_of(found, "node", num_buckets)]
            order.shuffle(made)
            found = pa.concat_tables(made)
        done.append(dropped_pictures(found.filter(found["reason"].is_valid())))
        found = found.filter(found["reason"].is_null())
    return pa.concat_tables([*done, resolve(found)])


def duplicates_of(
    table: pa.Table, config: DedupeConfig, num_buckets: int, at_once: int, order: random.Random
) -> pa.Table:
    """DUPLICATES computed as in duplicates_flow.py, with rows and buckets in random order."""
    shuffled = table.take(pa.array(order.sample(range(table.num_rows), table.num_rows), pa.int64()))
    pictures = buckets_of(shuffled, "phash", num_buckets)
    prints = pa.concat_tables([fingerprints(bucket, config) for bucket in pictures])
    assert prints.schema == FINGERPRINTS
    found = pa.concat_tables([edges(bucket, config) for bucket in buckets_of(prints, "key", num_buckets)])
    assert found.schema == EDGES
    found = links(found)
    assert found.schema == LINKS
    fates = buckets_of(resolved(found, num_buckets, at_once, order), "phash", num_buckets)
    return pa.concat_tables([duplicates(bucket, fate) for bucket, fate in zip(pictures, fates, strict=True)])


@settings(max_examples=100, deadline=None)
@given(rows_of, configs, st.sampled_from([1, 5, 33]), st.sampled_from([0, 6, 1000]), st.randoms(use_true_random=False))
def test_duplicates_match_the_definition_in_any_order_and_partition(
    rows: list[Row], config: DedupeConfig, num_buckets: int, at_once: int, order: random.Random
) -> None:
    table = table_of(rows, config.mirrored)
    found = duplicates_of(table, config, num_buckets, at_once, order)
    assert found.schema == DUPLICATES
    kept, dropped = greedy(rows, config)
    parts = dict(zip(table["pair_id"].to_pylist(), table["part"].to_pylist(), strict=True))
    assert sorted(found["pair_id"].to_pylist()) == sorted(dropped)
    for row in found.to_pylist():
        assert row["kept_id"] in kept & dropped[row["pair_id"]], "dropped along a chain, or for a worse picture"
        assert (row["part"], row["kept_part"]) == (parts[row["pair_id"]], parts[row["kept_id"]])


@settings(max_examples=20, deadline=None)
@given(rows_of, configs, st.randoms(use_true_random=False))
def test_the_result_does_not_depend_on_partitions_and_rounds(
    rows: list[Row], config: DedupeConfig, order: random.Random
) -> None:
    table = table_of(rows, config.mirrored)
    made = [
        duplicates_of(table, config, num_buckets, at_once, order).sort_by("pair_id")
        for num_buckets, at_once in ((1, 10**6), (5, 0), (33, 4))
    ]
    assert made[0] == made[1] == made[2]


def dropped_of(rows: list[Row], **options: object) -> dict[int, str]:
    """The index of each dropped row, with its reason."""
    config = DedupeConfig(**{"radius": 2, "caption_radius": 0} | options)  # type: ignore[arg-type]
    found = duplicates_of(table_of(rows, config.mirrored), config, 3, 0, random.Random(0))
    numbers = {name: number for number, name in enumerate(ids(len(rows)))}
    return {numbers[row["pair_id"]]: row["why"] for row in found.to_pylist()}


def test_a_chain_keeps_both_of_its_ends() -> None:
    """In a - b - c, each is 2 bits from the next: b is dropped for a, and c is kept, because it is 4 bits from a."""
    assert dropped_of([Row(0b0, 1), Row(0b11, 2), Row(0b1111, 3)]) == {1: Reason.DUPLICATE_PERCEPTUAL}


def test_in_a_long_chain_every_second_picture_is_dropped() -> None:
    rows = [Row((1 << 2 * n) - 1, n) for n in range(30)]
    assert dropped_of(rows) == dict.fromkeys(range(1, 30, 2), Reason.DUPLICATE_PERCEPTUAL)


def test_each_kind_of_edge_has_its_reason() -> None:
    first = Row(0, 1, caption=7, mirrored=0xFF00)
    assert dropped_of([first, Row(0, 2)]) == {1: Reason.DUPLICATE_SHA256}
    assert dropped_of([first, Row(0, 2, file=1)]) == {1: Reason.DUPLICATE_PERCEPTUAL}
    similar = Row(0b111, 2, caption=7)
    assert dropped_of([first, similar]) == {}
    assert dropped_of([first, similar], caption_radius=3) == {1: Reason.DUPLICATE_CAPTION}
    assert dropped_of([first, similar._replace(caption=8)], caption_radius=3) == {}
    assert dropped_of([first._replace(caption=0), similar._replace(caption=0)], caption_radius=3) == {}, (
        "0 means no caption"
    )
    rotated = Row(0xFF01, 2, mirrored=1 << 40)
    assert dropped_of([first, rotated]) == {}
    assert dropped_of([first, rotated], mirrored=True) == {1: Reason.DUPLICATE_TURNED}
    assert dropped_of([rotated._replace(rank=0), first], mirrored=True) == {1: Reason.DUPLICATE_TURNED}


def test_many_copies_of_one_picture_need_no_edges() -> None:
    table = table_of([Row(7, 1 + i, file=i % 2) for i in range(2_000)])
    prints = fingerprints(table, DedupeConfig())
    assert prints.num_rows == DedupeConfig().radius + 1, "one row per band"
    assert edges(prints, DedupeConfig()).num_rows == 0
    found = duplicates(table, DROPPED_PICTURES.empty_table())
    assert found.num_rows == 1_999
    assert found["why"].to_pylist().count(Reason.DUPLICATE_SHA256) == 999


def test_empty_tables_give_empty_tables() -> None:
    config = DedupeConfig(mirrored=True)
    assert fingerprints(table_of([]), config) == FINGERPRINTS.empty_table()
    assert edges(FINGERPRINTS.empty_table(), config) == EDGES.empty_table()
    assert links(EDGES.empty_table()) == LINKS.empty_table()
    assert resolve(LINKS.empty_table()) == DROPPED_PICTURES.empty_table()
    assert settle(LINKS.empty_table()) == LINKS.empty_table()
    assert spread(LINKS.empty_table()).num_rows == 0
    assert duplicates(table_of([]), DROPPED_PICTURES.empty_table()) == DUPLICATES.empty_table()


def test_planted_neighbours_are_found_among_many() -> None:
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 2**64, 200_000, np.uint64)
    hashes[100_000:] = hashes[:100_000] ^ np.uint64(0b101)
    table = table_of([])
    n = len(hashes)
    columns = [ids(n), np.zeros(n, np.int32), ["x"] * n, hashes, [[]] * n, np.arange(n).astype(np.uint64)]
    table = pa.table([*columns, np.zeros(n, np.uint64)], schema=table.schema)
    config = DedupeConfig()
    found = resolve(links(edges(fingerprints(table, config), config)))
    assert found.num_rows == 100_000
    assert set(found["phash"].to_numpy().tolist()) == set(hashes[100_000:].tolist())


def test_variants_follow_the_configuration() -> None:
    assert DedupeConfig().variants == [UNCHANGED]
    assert DedupeConfig(mirrored=True, degrees=(-5.0, 5.0)).variants == [
        UNCHANGED,
        MIRRORED,
        Variant(degrees=-5.0),
        Variant(degrees=5.0),
    ]


@pytest.mark.parametrize("name", ["radius", "caption_radius"])
@pytest.mark.parametrize("radius", [-1, 64])
def test_a_radius_outside_0_to_63_is_refused(name: str, radius: int) -> None:
    with pytest.raises(ValueError, match=rf"dedupe\.{name} = {radius}"):
        DedupeConfig(**{name: radius})  # type: ignore[arg-type]
