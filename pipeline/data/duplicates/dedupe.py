"""Drop rows that show the same picture; keep the best row and give it the captions of the others.

Before fetching, rows whose URLs are equal after normalisation count as one picture (`drop_duplicate_urls`). After
fetching, the graph of similar pictures decides (duplicate_graph.py). All rows with the same perceptual hash, also with
equal files, form one picture. Its best row is kept, unless the picture is dropped in favour of a better one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.duplicates.duplicate_graph import DedupeConfig, leaders
from pipeline.data.duplicates.hamming import near_pairs as near_pairs
from pipeline.data.images.phash import perceptual_hashes
from pipeline.data.text import words
from pipeline.data.web.urls import url_key
from pipeline.hashing import UInt64, hash64, id_words
from pipeline.reasons import Reason
from pipeline.schemas import DUPLICATES, PICTURES, SPARES, conform, with_reasons

CAPTION_SOURCES = ("figcaption", "alt", "table", "title", "og:image:alt")
"""The sources of captions, best first."""
MAX_SPARE_CAPTIONS = 32
"""Maximum number of spare captions of a row; the longest are kept, because logos have millions of captions."""
MIN_WORDS = 3
"""Minimum number of words for two pictures to be compared because they have the same caption."""
MIN_CHARACTERS_UNSPACED = 6
"""Minimum number of characters instead, in scripts without blanks: a Chinese word has about two."""


def caption_order(table: pa.Table) -> npt.NDArray[np.int64]:
    """Row indices from the best caption to the worst: by source, then longer captions first, then by id."""
    columns = [table[name].to_pylist() for name in ("caption_source", "caption", "pair_id", "page_url")]
    keys = [
        (_source_rank(source), -len(caption), pair_id, page_url or "")
        for source, caption, pair_id, page_url in zip(*columns, strict=True)
    ]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


def _source_rank(source: str | None) -> int:
    return CAPTION_SOURCES.index(source) if source in CAPTION_SOURCES else len(CAPTION_SOURCES)


def caption_words(caption: str) -> str:
    """The normalised words of a caption, without case or punctuation; nearly equal captions give equal words."""
    return " ".join(words.words_of(caption))


def longest_captions(captions: Iterable[str]) -> list[str]:
    """The distinct captions, longest first, at most MAX_SPARE_CAPTIONS."""
    return sorted(set(captions), key=lambda text: (-len(text), text))[:MAX_SPARE_CAPTIONS]


def distinct_captions(caption: str, others: Iterable[str]) -> list[str]:
    """The other captions that differ in their words from `caption` and from each other, longest first."""
    known = {caption_words(caption)}
    spare: list[str] = []
    for text in longest_captions(others):
        if (words_of := caption_words(text)) not in known:
            known.add(words_of)
            spare.append(text)
    return spare


def drop_duplicate_urls(table: pa.Table) -> pa.Table:
    """Drop all rows of an address but the one with the best caption, which gets the captions of the others.

    All rows of an address must be in the table (crawl_flow.py passes whole buckets of addresses). Existing spare
    captions are merged, so deduplicating in two steps equals doing it in one.
    """
    order = caption_order(table)
    urls = [url_key(url) for url in table["url"].to_pylist()]
    captions, spare = table["caption"].to_pylist(), [set(texts or ()) for texts in table["spare_captions"].to_pylist()]
    kept: dict[str, int] = {}
    reasons: list[str | None] = [None] * len(urls)
    for row in order.tolist():
        best = kept.setdefault(urls[row], row)
        if best != row:
            reasons[row] = Reason.DUPLICATE_URL
            spare[best] |= spare[row] | {captions[row]}
            spare[row] = set()
    spares = [longest_captions(others - {caption}) for caption, others in zip(captions, spare, strict=True)]
    return with_reasons(_with_spares(table, spares), reasons)


def _with_spares(table: pa.Table, spares: Sequence[Sequence[str] | None]) -> pa.Table:
    index = table.schema.get_field_index("spare_captions")
    return table.set_column(index, "spare_captions", pa.array(spares, pa.list_(pa.string())))


def pictures(table: pa.Table, config: DedupeConfig) -> pa.Table:
    """PICTURES of a table of images.

    Args:
        table: columns pair_id, part, sha256, jpg, original_width, original_height, caption, caption_source.
        config: the variants to hash.
    """
    hashes = perceptual_hashes(table["jpg"].to_pylist(), config.variants)
    columns = {
        "phash": pa.array(hashes[:, 0]),
        "variants": pa.array(list(hashes[:, 1:]), pa.list_(pa.uint64())),
        "rank": pa.array(_ranks(table)),
        "caption_key": pa.array(_caption_keys(table["caption"].to_pylist())),
    }
    kept = table.select(["pair_id", "part", "sha256"])
    return conform(pa.table({name: kept[name] for name in kept.column_names} | columns), PICTURES)


def _ranks(table: pa.Table) -> UInt64:
    """Rank rows by pixels of the original (more is better), then by caption source, then by bits of the id."""
    width, height = (table[name].to_numpy().astype(np.uint64) for name in ("original_width", "original_height"))
    pixels = np.minimum(width * height, np.uint64(2**32 - 1))
    sources = np.array([_source_rank(source) for source in table["caption_source"].to_pylist()], np.uint64)
    ties = id_words(table["pair_id"]) >> np.uint64(36)
    rank: UInt64 = ((np.uint64(2**32 - 1) - pixels) << np.uint64(32)) | (sources << np.uint64(28)) | ties
    return rank


def _caption_keys(captions: Sequence[str]) -> UInt64:
    split = [words.words_of(caption) for caption in captions]
    comparable = np.array([words.is_long_enough(found, MIN_WORDS, MIN_CHARACTERS_UNSPACED) for found in split], bool)
    return np.where(comparable, hash64([" ".join(found) for found in split]), np.uint64(0))


def duplicates(pictures: pa.Table, dropped_pictures: pa.Table) -> pa.Table:
    """DUPLICATES: all rows of dropped pictures, and all but the best row of every kept picture.

    Args:
        pictures: PICTURES, with all rows of each hash.
        dropped_pictures: DROPPED_PICTURES with these hashes.
    """
    best = leaders(pictures)
    hashes = pictures["phash"].to_numpy()
    best_of_row = best[hashes[best].searchsorted(hashes)]  # the best row of each row's picture
    files = pictures["sha256"].combine_chunks()
    same_file = pc.equal(files, files.take(pa.array(best_of_row))).to_numpy(zero_copy_only=False)
    why = np.where(same_file, Reason.DUPLICATE_SHA256.value, Reason.DUPLICATE_PERCEPTUAL.value)
    dropped_index = pc.index_in(pictures["phash"], dropped_pictures["phash"].combine_chunks())
    columns = [
        pictures["pair_id"],
        pictures["part"],
        pc.coalesce(dropped_pictures["kept_id"].take(dropped_index), pictures["pair_id"].take(pa.array(best_of_row))),
        pc.coalesce(dropped_pictures["kept_part"].take(dropped_index), pictures["part"].take(pa.array(best_of_row))),
        pc.coalesce(dropped_pictures["why"].take(dropped_index), pa.array(why, pa.string())),
    ]
    is_dropped = (best_of_row != np.arange(len(best_of_row))) | dropped_index.is_valid().to_numpy()
    return pa.table(columns, schema=DUPLICATES).filter(pa.array(is_dropped))


def mark(table: pa.Table, duplicates: pa.Table) -> pa.Table:
    """The table with a reason for each row that is in DUPLICATES; rows already dropped keep their reason."""
    why = duplicates["why"].take(pc.index_in(table["pair_id"], duplicates["pair_id"].combine_chunks()))
    index = table.schema.get_field_index("reason")
    return table.set_column(index, "reason", pc.coalesce(table["reason"], why))


def spares(table: pa.Table, duplicates: pa.Table) -> pa.Table:
    """SPARES: the captions and spare captions of the rows that are in DUPLICATES.

    Args:
        table: columns pair_id, caption, spare_captions.
        duplicates: DUPLICATES.
    """
    row_of_duplicate = pc.index_in(duplicates["pair_id"], table["pair_id"].combine_chunks())
    in_table = duplicates.filter(row_of_duplicate.is_valid())
    texts = pa.chunked_array(
        [table["caption"].combine_chunks(), pc.list_flatten(table["spare_captions"]).combine_chunks()]
    )
    row_of_text = np.concatenate(
        [np.arange(table.num_rows), pc.list_parent_indices(table["spare_captions"]).to_numpy()]
    )
    duplicate_of_row = np.full(table.num_rows, -1, np.int64)
    duplicate_of_row[row_of_duplicate.drop_null().to_numpy()] = np.arange(in_table.num_rows)
    duplicate_of_text = duplicate_of_row[row_of_text]
    is_duplicate = duplicate_of_text >= 0
    kept = in_table.select(["kept_id", "kept_part"]).take(pa.array(duplicate_of_text[is_duplicate]))
    return kept.append_column("caption", texts.filter(pa.array(is_duplicate))).cast(SPARES)


def with_spares(table: pa.Table, spares: pa.Table) -> pa.Table:
    """Add SPARES to the spare captions of their rows, and remove nearly equal captions.

    Args:
        table: columns pair_id, caption, spare_captions.
        spares: SPARES.
    """
    added: dict[str, list[str]] = {}
    for kept_id, caption in zip(spares["kept_id"].to_pylist(), spares["caption"].to_pylist(), strict=True):
        added.setdefault(kept_id, []).append(caption)
    columns = (table[name].to_pylist() for name in ("pair_id", "caption", "spare_captions"))
    merged = [
        distinct_captions(caption, [*(own or ()), *added.get(pair_id, ())])
        for pair_id, caption, own in zip(*columns, strict=True)
    ]
    return _with_spares(table, merged)


def with_phash(table: pa.Table, pictures: pa.Table) -> pa.Table:
    """FETCHED with the column phash, taken from PICTURES that contain all its rows."""
    indices = pc.index_in(table["pair_id"], pictures["pair_id"].combine_chunks())
    assert indices.null_count == 0, "every image has been hashed"
    return table.append_column("phash", pictures["phash"].take(indices))
