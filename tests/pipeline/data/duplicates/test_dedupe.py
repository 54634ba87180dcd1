import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.duplicates import dedupe
from pipeline.data.duplicates.dedupe import caption_order, drop_duplicate_urls
from pipeline.data.duplicates.duplicate_graph import DedupeConfig
from pipeline.data.images.phash import MIRRORED, Variant, perceptual_hash, perceptual_hashes
from pipeline.hashing import hash128
from pipeline.reasons import Reason
from pipeline.schemas import DUPLICATES, PICTURES, SPARES
from tests.pipeline.data.rows import candidates, encode, fetched, ids, photo_like


def images(**columns: list[Any]) -> pa.Table:
    """The columns that `pictures` reads, for three images."""
    given: dict[str, list[Any]] = {
        "original_width": [9] * 3,
        "original_height": [8] * 3,
        "caption": ["a"] * 3,
        "caption_source": ["alt"] * 3,
    }
    jpgs = [encode(photo_like(seed), "JPEG") for seed in range(3)]
    table = fetched(**given | {"jpg": jpgs, "sha256": ["x", "y", "z"]} | columns)
    names = ["pair_id", "sha256", "jpg", "original_width", "original_height", "caption", "caption_source"]
    return table.select(names).append_column("part", pa.array([5] * 3, pa.int32()))


def test_pictures_are_hashed_with_their_variants() -> None:
    table = images()
    jpgs = table["jpg"].to_pylist()
    made = dedupe.pictures(table, DedupeConfig())
    assert made.schema == PICTURES
    assert made["phash"].to_pylist() == perceptual_hash(jpgs).tolist()
    assert made["variants"].to_pylist() == [[]] * 3
    assert (made["part"].to_pylist(), made["sha256"].to_pylist()) == ([5] * 3, ["x", "y", "z"])
    turned = dedupe.pictures(table, DedupeConfig(mirrored=True, degrees=(5.0,)))
    assert turned["phash"] == made["phash"]
    assert turned["variants"].to_pylist() == perceptual_hashes(jpgs, [MIRRORED, Variant(degrees=5.0)]).tolist()
    assert dedupe.pictures(table.slice(0, 0), DedupeConfig()) == PICTURES.empty_table()


def ranks_of(**columns: list[Any]) -> list[int]:
    ranks: list[int] = dedupe.pictures(images(**columns), DedupeConfig())["rank"].to_pylist()
    return ranks


def test_more_pixels_rank_higher_up_to_32_bits() -> None:
    for sides in ([46_341, 2, 1], [65_536, 46_340, 2]):
        ranks = ranks_of(original_width=sides, original_height=sides)
        assert ranks == sorted(ranks)
    beyond = ranks_of(original_width=[65_536, 100_000, 1], original_height=[65_536, 100_000, 1])
    assert beyond[0] >> 32 == beyond[1] >> 32 == 0, "both have more pixels than 32 bits count"


def test_images_of_equal_size_rank_by_caption_source_then_by_id() -> None:
    sources = ["figcaption", "alt", "from afar"]
    assert ranks_of(caption_source=sources) == sorted(ranks_of(caption_source=sources))
    reverse = ranks_of(caption_source=sources[::-1])
    assert reverse == sorted(reverse, reverse=True)
    ranks = dict(zip(ids(3), ranks_of(), strict=True))
    assert sorted(ranks, key=ranks.__getitem__) == sorted(ranks)


def test_captions_that_are_nearly_equal_have_one_key() -> None:
    texts = ["A dog, running!", "a dog  running", "a dog ran"]
    keys = dedupe.pictures(images(caption=texts), DedupeConfig())["caption_key"].to_pylist()
    assert keys[0] == keys[1] != keys[2]
    assert 0 not in keys
    short = ["a dog", "Ünïcode", "..."]
    assert dedupe.pictures(images(caption=short), DedupeConfig())["caption_key"].to_pylist() == [0] * 3


@pytest.mark.parametrize(
    ("some", "other"),
    [
        ("一只黑猫坐在木椅上", "一只黑猫，坐在木椅上。"),
        ("แมวดำนั่งบนเก้าอี้", "แมวดำ นั่งบน\u200bเก้าอี้"),
        ("दिल्ली में लाल किला", "दिल्ली में लाल किला!"),
        ("LEGO™ castle at night", "lego castle, at night"),
        ("The dog’s red ball", "the dog's red ball"),
        ("Rock &amp; roll at night", "rock & roll at night"),
    ],
)
def test_captions_of_all_scripts_and_spellings_are_compared(some: str, other: str) -> None:
    keys = dedupe.pictures(images(caption=[some, other, f"{some} x"]), DedupeConfig())["caption_key"].to_pylist()
    assert keys[0] == keys[1] != keys[2]
    assert 0 not in keys
    assert dedupe.distinct_captions(some, [other]) == []


def test_captions_of_few_characters_have_no_key() -> None:
    """`दिल्ली` is one word, though its vowel signs are no \\w, and three Chinese characters are about one word."""
    short = ["दिल्ली हिन्दी", "天安門", "กิน"]
    assert dedupe.pictures(images(caption=short), DedupeConfig())["caption_key"].to_pylist() == [0] * 3
    mixed = ["two iPhone 手", "iPhone 手机", "two iPhone 手机"]
    keys = dedupe.pictures(images(caption=mixed), DedupeConfig())["caption_key"].to_pylist()
    assert [key != 0 for key in keys] == [False, False, True]


def duplicates_of(rows: dict[str, tuple[str, str]]) -> pa.Table:
    """DUPLICATES from {dropped id: (kept id, reason)}."""
    kept, why = zip(*rows.values(), strict=True)
    return pa.table([list(rows), [0] * len(rows), kept, [0] * len(rows), why], schema=DUPLICATES)


def test_duplicates_are_marked_with_their_reason() -> None:
    a, b, c, d = ids(4)
    table = fetched(pair_id=[a, b, c, d], reason=[None, None, None, Reason.TOO_SMALL])
    dropped = duplicates_of(
        {b: (a, Reason.DUPLICATE_SHA256), c: (a, Reason.DUPLICATE_CAPTION), d: (a, "x"), "z": (a, "x")}
    )
    expected = [None, Reason.DUPLICATE_SHA256, Reason.DUPLICATE_CAPTION, Reason.TOO_SMALL]
    assert dedupe.mark(table, dropped)["reason"].to_pylist() == expected
    assert dedupe.mark(table, DUPLICATES.empty_table()) == table


def test_captions_of_dropped_rows_become_spare_captions_of_the_kept_rows() -> None:
    a, b, c = ids(3)
    table = fetched(
        pair_id=[a, b, c],
        caption=["a dog", "A brown dog", "a dog!"],
        spare_captions=[["old dog"], ["the dog of a friend", "a brown dog"], None],
    )
    dropped = duplicates_of({b: (a, "x"), c: (a, "x"), "z": (a, "x")})
    found = dedupe.spares(table, dropped)
    assert found.schema == SPARES
    assert sorted(found["caption"].to_pylist()) == ["A brown dog", "a brown dog", "a dog!", "the dog of a friend"]
    assert set(found["kept_id"].to_pylist()) == {a}
    done = dedupe.with_spares(table, found)["spare_captions"].to_pylist()
    assert done == [["the dog of a friend", "A brown dog", "old dog"], ["the dog of a friend"], []]
    assert dedupe.spares(table, DUPLICATES.empty_table()) == SPARES.empty_table()
    assert dedupe.with_spares(table.slice(2), SPARES.empty_table())["spare_captions"].to_pylist() == [[]]


def test_the_number_of_spare_captions_is_limited_to_the_longest() -> None:
    table = fetched(caption=["a dog"], spare_captions=[[]])
    texts = [f"a dog of {number}" for number in range(100)]
    n = len(texts)
    more = pa.table([[table["pair_id"][0].as_py()] * n, [0] * n, texts], schema=SPARES)
    (found,) = dedupe.with_spares(table, more)["spare_captions"].to_pylist()
    assert len(found) == dedupe.MAX_SPARE_CAPTIONS
    assert found == sorted(texts, key=lambda text: (-len(text), text))[: dedupe.MAX_SPARE_CAPTIONS]


def test_hashes_are_joined_to_their_rows() -> None:
    table = images()
    made = dedupe.pictures(table, DedupeConfig())
    done = dedupe.with_phash(table, made.take([1, 0, 2]))
    assert done.drop_columns(["phash"]) == table
    assert done["phash"].combine_chunks() == made["phash"].combine_chunks()
    with pytest.raises(AssertionError, match="every image has been hashed"):
        dedupe.with_phash(table, made.take([1, 0]))


def test_dedupe_exports_near_pairs() -> None:
    assert dedupe.near_pairs(np.array([1, 0, 3], np.uint64), 1).tolist() == [[0, 1], [0, 2]]


URL = "http://a.example/x.jpg"


def test_the_best_caption_of_a_url_is_kept_and_the_others_become_spare_captions() -> None:
    captions = ["short title", "an alt text", "a longer alt text", "the figure's caption", "an alt text"]
    table = candidates(url=[URL] * 5, caption=captions, caption_source=["title", "alt", "alt", "figcaption", "alt"])
    done = drop_duplicate_urls(table)
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
def test_one_row_of_each_url_is_kept_in_any_order(
    rows: list[tuple[str, str, str, str | None]], order: random.Random
) -> None:
    def outcome(found: list[tuple[str, str, str, str | None]]) -> list[tuple[object, ...]]:
        urls, captions, sources, pages = (list(column) for column in zip(*found, strict=True)) if found else ([],) * 4
        pair_ids = [hash128(url, caption) for url, caption, *_ in found]
        table = candidates(pair_id=pair_ids, url=urls, caption=captions, caption_source=sources, page_url=pages)
        done = drop_duplicate_urls(table).to_pylist()
        assert len(done) == len(found)
        kept = [row for row in done if row["reason"] is None]
        assert sorted(row["url"] for row in kept) == sorted(set(urls))
        for row in kept:
            others = {caption for url, caption, *_ in found if url == row["url"]} - {row["caption"]}
            assert sorted(row["spare_captions"]) == sorted(others)
        return sorted(tuple(map(str, row.values())) for row in kept)

    shuffled = order.sample(rows, len(rows))
    assert outcome(shuffled) == outcome(rows)


@settings(max_examples=100, deadline=None)
@given(url_rows, st.integers(0, 12))
def test_deduplicating_urls_in_two_steps_equals_doing_it_in_one(
    rows: list[tuple[str, str, str, str | None]], cut: int
) -> None:
    def kept(table: pa.Table) -> pa.Table:
        done = drop_duplicate_urls(table)
        return done.filter(done["reason"].is_null())

    table = candidates(
        pair_id=[hash128(url, caption) for url, caption, *_ in rows],
        url=[url for url, *_ in rows],
        caption=[caption for _, caption, *_ in rows],
        caption_source=[source for _, _, source, _ in rows],
        page_url=pa.array([page for *_, page in rows], pa.string()),
    )
    twice = kept(pa.concat_tables([kept(table.slice(0, cut)), kept(table.slice(cut))]))
    assert twice.sort_by("url") == kept(table).sort_by("url")


def test_caption_order_is_by_source_then_length_then_id() -> None:
    table = candidates(
        caption=["abc", "abcd", "abc", "a", "ab"], caption_source=["alt", "alt", "alt", "figcaption", "from afar"]
    )
    first, second = sorted((0, 2), key=lambda row: table["pair_id"][row].as_py())
    assert caption_order(table).tolist() == [3, 1, first, second, 4]
