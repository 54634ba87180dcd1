from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline.data.duplicates import overlap
from pipeline.data.duplicates.embeddings import to_column, to_matrix
from pipeline.data.duplicates.overlap import (
    OverlapConfig,
    OverlapIndex,
    build_index_table,
    count_overlaps,
    drop_overlaps,
    find_overlaps,
    overlap_record,
    settled,
)
from pipeline.data.images.phash import perceptual_hash
from pipeline.reasons import Reason
from pipeline.schemas import OVERLAP_INDEX, OVERLAPS, conform
from tests.pipeline.data.duplicates.test_embeddings import unit
from tests.pipeline.data.rows import encode, fetched, ids, photo_like

BALANCED = 0x0123456789ABCDEF  # 32 bits are set, as in the hash of a photograph


def index_rows(hashes: list[int | None], benchmarks: list[str], embeddings: pa.Array | None = None) -> pa.Table:
    columns: dict[str, Any] = {
        "benchmark": benchmarks,
        "set_sha256": [f"of {name}" for name in benchmarks],
        "split": ["test"] * len(benchmarks),
        "item": [benchmarks[:i].count(name) for i, name in enumerate(benchmarks)],
        "phash": pa.array(hashes, pa.uint64()),
    }
    return conform(pa.table(columns | ({} if embeddings is None else {"embedding": embeddings})), OVERLAP_INDEX)


def pictures(hashes: list[int], embeddings: pa.Array | None = None) -> pa.Table:
    columns = {"pair_id": ids(len(hashes)), "phash": pa.array(hashes, pa.uint64())}
    return pa.table(columns | ({} if embeddings is None else {"embedding": embeddings}))


def as_tuples(overlaps: pa.Table) -> list[tuple[str, str, int, int | None]]:
    assert overlaps.schema == OVERLAPS
    return list(
        zip(*(overlaps[name].to_pylist() for name in ("pair_id", "benchmark", "item", "distance")), strict=True)
    )


flips = st.lists(st.integers(0, 63), max_size=8).map(lambda bits: sum(1 << bit for bit in set(bits)))


@settings(max_examples=100, deadline=None)
@given(st.lists(flips, min_size=1, max_size=12), st.lists(flips, max_size=12), st.integers(0, 5), st.integers(-1, 5))
def test_all_items_within_their_sets_radius_are_found(
    known: list[int], wanted: list[int], radius: int, other_radius: int
) -> None:
    benchmarks = ["coarse" if i % 2 else "fine" for i in range(len(known))]
    config = OverlapConfig(radius=radius, radius_of={"fine": other_radius})
    index = OverlapIndex(index_rows([BALANCED ^ flip for flip in known], benchmarks), config)
    radii = {"fine": other_radius, "coarse": radius}
    expected = [
        (pair_id, benchmarks[j], j // 2, (flip ^ known_flip).bit_count())
        for pair_id, flip in zip(ids(len(wanted)), wanted, strict=True)
        for j, known_flip in enumerate(known)
        if (flip ^ known_flip).bit_count() <= radii[benchmarks[j]]
    ]
    assert as_tuples(find_overlaps(pictures([BALANCED ^ flip for flip in wanted]), index)) == sorted(expected)


@pytest.mark.parametrize("block", [1024, 5])
def test_all_items_above_their_sets_similarity_are_found(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "_BLOCK", block)
    monkeypatch.setattr(overlap, "_INDEX_BLOCK", block)
    known, wanted = to_column(unit(60, 3)), to_column(unit(40, 3, seed=1))
    benchmarks = ["a", "b", "c"] * 20
    config = OverlapConfig(radius=-1, min_similarity=0.95, min_similarity_of={"b": 0.8, "c": 2})
    index = OverlapIndex(index_rows([BALANCED] * 60, benchmarks, known), config)
    overlaps = find_overlaps(pictures([BALANCED] * 40, wanted), index)
    products = to_matrix(wanted).astype(np.float64) @ to_matrix(known).T.astype(np.float64)
    limits = {"a": 0.95, "b": 0.8, "c": 2.0}
    expected = [
        (ids(40)[i], name, j // 3, None)
        for i in range(40)
        for j, name in enumerate(benchmarks)
        if products[i, j] >= limits[name]
    ]
    assert as_tuples(overlaps) == sorted(expected)
    assert {name for _, name, _, _ in expected} == {"a", "b"}
    similarity = {(row["pair_id"], row["benchmark"], row["item"]): row["similarity"] for row in overlaps.to_pylist()}
    for (pair_id, name, item), found in similarity.items():
        assert found == pytest.approx(products[ids(40).index(pair_id), item * 3 + "abc".index(name)], abs=1e-6)


def test_matches_by_hash_and_by_embedding_are_separate_rows() -> None:
    same = to_column(np.eye(1, 4, dtype=np.float32))
    index = OverlapIndex(index_rows([BALANCED], ["a"], same), OverlapConfig())
    overlaps = find_overlaps(pictures([BALANCED], same), index)
    columns = (overlaps["distance"].to_pylist(), overlaps["similarity"].to_pylist())
    assert list(zip(*columns, strict=True)) == [(0, None), (None, 1.0)]


def items(images: list[bytes], benchmark: str = "photos") -> pa.Table:
    count = len(images)
    columns = {"benchmark": [benchmark] * count, "set_sha256": ["0"] * count, "split": ["test"] * count}
    return pa.table(columns | {"item": range(count), "image": pa.array(images, pa.large_binary())})


def test_pictures_too_plain_for_a_hash_are_found_by_embedding_only() -> None:
    gradient = Image.linear_gradient("L")
    plain = [encode(Image.new("RGB", (40, 30), colour)) for colour in ("white", "black", "#777")]
    plain += [encode(gradient), encode(ImageOps.invert(gradient)), encode(gradient.rotate(90))]
    photos = [encode(photo_like(seed)) for seed in range(3)]
    directions = unit(9)

    def encoder(images: object) -> np.ndarray[Any, np.dtype[np.float32]]:
        assert images == [*plain, *photos]
        return directions

    table = build_index_table(items(plain + photos), encoder)
    assert table.schema == OVERLAP_INDEX
    assert table["phash"].is_null().to_pylist() == [True] * 6 + [False] * 3
    assert table["phash"][6:].to_pylist() == perceptual_hash(photos).tolist()
    blank = pictures(perceptual_hash([plain[0]]).tolist(), to_column(directions[:1]))
    hashes_only = OverlapIndex(table, OverlapConfig(radius=8, min_similarity=2))
    assert not hashes_only.has_embeddings
    assert find_overlaps(blank, hashes_only).num_rows == 0
    assert as_tuples(find_overlaps(blank, OverlapIndex(table, OverlapConfig(radius=8)))) == [
        (ids(1)[0], "photos", 0, None)
    ]


def test_without_an_encoder_an_index_has_hashes_only() -> None:
    table = build_index_table(items([encode(photo_like(0))]), None)
    assert table["embedding"].to_pylist() == [None]
    assert as_tuples(find_overlaps(pictures(table["phash"].to_pylist()), OverlapIndex(table, OverlapConfig()))) != []


def test_an_unreadable_picture_of_a_set_is_named_in_the_error() -> None:
    with pytest.raises(ValueError, match="sample 1 of the set photos"):
        build_index_table(items([encode(photo_like(0)), b"no image"]), None)


def test_a_threshold_for_an_unknown_set_is_refused() -> None:
    table = index_rows([BALANCED], ["digits"])
    with pytest.raises(ValueError, match=r"radius_of\.mnist: the index has no such set; it has digits"):
        OverlapIndex(table, OverlapConfig(radius_of={"mnist": 0}))


def test_embeddings_of_another_encoder_are_refused() -> None:
    index = OverlapIndex(index_rows([BALANCED], ["a"], to_column(unit(1, 4))), OverlapConfig())
    with pytest.raises(ValueError, match="5 dimensions, the overlap index has 4"):
        find_overlaps(pictures([BALANCED], to_column(unit(1, 5))), index)


@pytest.mark.parametrize(
    "options",
    [{"radius": 64}, {"radius": -2}, {"radius_of": {"a": 99}}, {"min_similarity": 1.2}, {"min_similarity": 0}],
)
def test_thresholds_are_checked(options: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"overlap.{next(iter(options))}"):
        OverlapConfig(**options)


def overlapping(pair_ids: list[str], benchmarks: list[str], numbers: list[int]) -> pa.Table:
    return conform(pa.table({"pair_id": pair_ids, "benchmark": benchmarks, "item": numbers}), OVERLAPS)


def test_overlapping_pairs_are_dropped_and_dropped_pairs_keep_their_reason() -> None:
    names = ids(4)
    table = fetched(reason=[None, Reason.DUPLICATE_SHA256, None, None])
    overlaps = overlapping([names[0], names[0], names[1]], ["a", "b", "a"], [0, 0, 1])
    dropped = drop_overlaps(table, overlaps)
    assert dropped["reason"].to_pylist() == [Reason.OVERLAP, Reason.DUPLICATE_SHA256, None, None]
    assert dropped.drop_columns(["reason"]) == table.drop_columns(["reason"])
    assert drop_overlaps(table, OVERLAPS.empty_table()) == table


def test_a_snapshot_records_overlaps_of_its_pairs_and_of_pairs_dropped_as_overlaps() -> None:
    names = ids(3)
    overlaps = overlapping(names, ["a", "a", "a"], [0, 1, 2])
    outcomes = pa.table({"pair_id": names, "reason": [None, Reason.BALANCED_OUT, Reason.OVERLAP]})
    assert settled(overlaps, outcomes)["item"].to_pylist() == [0, 2]


def test_overlap_is_counted_in_images_and_in_pairs() -> None:
    index = OverlapIndex(index_rows([BALANCED, None, BALANCED, BALANCED], ["b", "b", "b", "a"]), OverlapConfig())
    overlaps = overlapping(["x", "y", "y", "y"], ["b", "b", "b", "b"], [0, 0, 2, 2])
    none, some = count_overlaps(index, overlaps)
    assert asdict(none) == {
        "benchmark": "a", "num_images": 1, "num_plain": 0, "num_overlapping": 0, "num_pairs": 0,
    }  # fmt: skip
    assert (some.num_images, some.num_plain, some.num_overlapping, some.num_pairs) == (3, 1, 2, 2)
    record = overlap_record([none, some], OverlapConfig(radius_of={"b": 0}))
    assert record["median_share"] == record["mean_share"] == pytest.approx(1 / 3)
    assert record["sets"]["b"]["radius"] == 0  # type: ignore[index]
