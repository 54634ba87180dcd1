"""Duplicates: rows that show the same picture, of which the best stays, with the captions of the others.

Before fetching, rows whose addresses differ in writing only are one picture (`same_url`). After it, the graph of like
pictures decides (duplicate_graph.py): of rows with one perceptual hash, equal files among them, the best stays, unless
their picture goes for a better one.
"""

from __future__ import annotations

import re
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
from pipeline.hashing import UInt64, hash64, words_of_ids
from pipeline.reasons import Reason
from pipeline.schemas import DUPLICATES, PICTURES, SPARES, conform, with_reasons

CAPTION_SOURCES = ("figcaption", "alt", "table", "title", "og:image:alt")
"""Where a caption came from, best first."""
MAX_SPARE_CAPTIONS = 32
"""Of a row, the longest ones: logos have millions of texts."""
MIN_WORDS = 3
"""Of a caption that says enough for two pictures with it to be suspected of being one."""
_WORD = re.compile(r"\w+")


def caption_order(table: pa.Table) -> npt.NDArray[np.int64]:
    """The rows' order from the best caption to the worst: by source, then the longer one, then by id."""
    columns = [table[name].to_pylist() for name in ("caption_source", "caption", "pair_id", "page_url")]
    keys = [
        (_place(source), -len(caption), pair_id, page_url or "")
        for source, caption, pair_id, page_url in zip(*columns, strict=True)
    ]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


def _place(source: str | None) -> int:
    return CAPTION_SOURCES.index(source) if source in CAPTION_SOURCES else len(CAPTION_SOURCES)


def plain(caption: str) -> str:
    """What captions that are nearly equal have in common: the words, whatever their case and what is between them."""
    return " ".join(_WORD.findall(words.normalize(caption)))


def longest(captions: Iterable[str]) -> list[str]:
    """Different captions, the longest first, as many as a row has at most."""
    return sorted(set(captions), key=lambda text: (-len(text), text))[:MAX_SPARE_CAPTIONS]


def telling(caption: str, others: Iterable[str]) -> list[str]:
    """The other captions that say something else, the longest first, no two of them nearly equal."""
    found = {plain(caption)}
    spare: list[str] = []
    for text in longest(others):
        if (words_of := plain(text)) not in found:
            found.add(words_of)
            spare.append(text)
    return spare


def same_url(table: pa.Table) -> pa.Table:
    """The table with a reason for all but the best-captioned row of each address, which gets the others' captions.

    All rows of an address must be in the table (crawl_flow.py gives whole buckets of addresses). Spare captions that
    the rows
    have already go on, so that the rows kept of two tables give what their rows at once would.
    """
    order = caption_order(table)
    urls = [url_key(address) for address in table["url"].to_pylist()]
    captions, spare = table["caption"].to_pylist(), [set(texts or ()) for texts in table["spare_captions"].to_pylist()]
    kept: dict[str, int] = {}
    reasons: list[str | None] = [None] * len(urls)
    for row in order.tolist():
        best = kept.setdefault(urls[row], row)
        if best != row:
            reasons[row] = Reason.DUPLICATE_URL
            spare[best] |= spare[row] | {captions[row]}
            spare[row] = set()
    spares = [longest(others - {caption}) for caption, others in zip(captions, spare, strict=True)]
    return with_reasons(_with_spares(table, spares), reasons)


def _with_spares(table: pa.Table, spares: Sequence[Sequence[str] | None]) -> pa.Table:
    index = table.schema.get_field_index("spare_captions")
    return table.set_column(index, "spare_captions", pa.array(spares, pa.list_(pa.string())))


def pictures(table: pa.Table, config: DedupeConfig) -> pa.Table:
    """PICTURES of images.

    Args:
        table: columns pair_id, part, sha256, jpg, original_width, original_height, caption, caption_source.
        config: which variants are hashed.
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
    """More pixels of the original first, then by the caption's source, then by the id's hash, which is of no order."""
    width, height = (table[name].to_numpy().astype(np.uint64) for name in ("original_width", "original_height"))
    pixels = np.minimum(width * height, np.uint64(2**32 - 1))
    places = np.array([_place(source) for source in table["caption_source"].to_pylist()], np.uint64)
    ties = words_of_ids(table["pair_id"]) >> np.uint64(36)
    rank: UInt64 = ((np.uint64(2**32 - 1) - pixels) << np.uint64(32)) | (places << np.uint64(28)) | ties
    return rank


def _caption_keys(captions: Sequence[str]) -> UInt64:
    texts = [plain(caption) for caption in captions]
    says_enough = np.array([text.count(" ") + 1 >= MIN_WORDS for text in texts], bool)
    return np.where(says_enough, hash64(texts), np.uint64(0))


def duplicates(pictures: pa.Table, gone: pa.Table) -> pa.Table:
    """DUPLICATES: of a picture that stays all rows but the best, and all rows of one that goes.

    Args:
        pictures: PICTURES that hold all rows of their hashes.
        gone: GONE of these hashes.
    """
    best = leaders(pictures)
    hashes = pictures["phash"].to_numpy()
    own = best[hashes[best].searchsorted(hashes)]  # the best row of each row's picture
    files = pictures["sha256"].combine_chunks()
    same_file = pc.equal(files, files.take(pa.array(own))).to_numpy(zero_copy_only=False)
    why = np.where(same_file, Reason.DUPLICATE_SHA256.value, Reason.DUPLICATE_PERCEPTUAL.value)
    of_picture = pc.index_in(pictures["phash"], gone["phash"].combine_chunks())
    columns = [
        pictures["pair_id"],
        pictures["part"],
        pc.coalesce(gone["kept_id"].take(of_picture), pictures["pair_id"].take(pa.array(own))),
        pc.coalesce(gone["kept_part"].take(of_picture), pictures["part"].take(pa.array(own))),
        pc.coalesce(gone["why"].take(of_picture), pa.array(why, pa.string())),
    ]
    drops = (own != np.arange(len(own))) | of_picture.is_valid().to_numpy()
    return pa.table(columns, schema=DUPLICATES).filter(pa.array(drops))


def mark(table: pa.Table, duplicates: pa.Table) -> pa.Table:
    """The table with a reason for each of its rows that is among DUPLICATES; rows that are out stay as they are."""
    why = duplicates["why"].take(pc.index_in(table["pair_id"], duplicates["pair_id"].combine_chunks()))
    index = table.schema.get_field_index("reason")
    return table.set_column(index, "reason", pc.coalesce(table["reason"], why))


def spares(table: pa.Table, duplicates: pa.Table) -> pa.Table:
    """SPARES: the captions, spare ones too, of the rows that are among DUPLICATES.

    Args:
        table: columns pair_id, caption, spare_captions.
        duplicates: DUPLICATES.
    """
    at = pc.index_in(duplicates["pair_id"], table["pair_id"].combine_chunks())
    found = duplicates.filter(at.is_valid())
    texts = pa.chunked_array(
        [table["caption"].combine_chunks(), pc.list_flatten(table["spare_captions"]).combine_chunks()]
    )
    rows = np.concatenate([np.arange(table.num_rows), pc.list_parent_indices(table["spare_captions"]).to_numpy()])
    of_row = np.full(table.num_rows, -1, np.int64)
    of_row[at.drop_null().to_numpy()] = np.arange(found.num_rows)
    places = of_row[rows]
    kept = found.select(["kept_id", "kept_part"]).take(pa.array(places[places >= 0]))
    return kept.append_column("caption", texts.filter(pa.array(places >= 0))).cast(SPARES)


def with_spares(table: pa.Table, spares: pa.Table) -> pa.Table:
    """The table with the captions of rows that were dropped for its rows among their spare ones, and no more idle ones.

    Args:
        table: columns pair_id, caption, spare_captions.
        spares: SPARES.
    """
    more: dict[str, list[str]] = {}
    for kept_id, caption in zip(spares["kept_id"].to_pylist(), spares["caption"].to_pylist(), strict=True):
        more.setdefault(kept_id, []).append(caption)
    columns = (table[name].to_pylist() for name in ("pair_id", "caption", "spare_captions"))
    found = [
        telling(caption, [*(own or ()), *more.get(pair_id, ())]) for pair_id, caption, own in zip(*columns, strict=True)
    ]
    return _with_spares(table, found)


def with_phash(table: pa.Table, pictures: pa.Table) -> pa.Table:
    """FETCHED and the column phash, from PICTURES that hold its rows."""
    at = pc.index_in(table["pair_id"], pictures["pair_id"].combine_chunks())
    assert at.null_count == 0, "every image has been hashed"
    return table.append_column("phash", pictures["phash"].take(at))
