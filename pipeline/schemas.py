"""The Arrow schema of every boundary between stages.

A stage writes all its rows. A dropped row has a `reason` (reasons.py); in a kept row, `reason` is null. The next stage
reads only the kept rows, so for every stage: rows in = rows kept + rows dropped by reason.

The resized JPEG is the column `jpg` in FETCHED, as in img2dataset's output, so that img2dataset's tools can read the
folder. In PAIRS, our published format, the same bytes are the column `image`. Only pipeline/data/snapshots/shard.py
renames one to the other.
"""

from __future__ import annotations

import pyarrow as pa

QUERIES = pa.schema(
    [
        ("query_id", pa.int32()),
        ("text", pa.string()),
        ("source", pa.string()),
        ("statistic", pa.float64()),
        ("rank", pa.int32()),
    ]
)
"""The query list. Ids are ranks (0 is first). `statistic` depends on the source: count, PMI bits, or 0 for WordNet."""

ARTICLES = pa.schema([("title", pa.string()), ("text", pa.string()), ("reason", pa.string())])
"""A Wikipedia page as plain text, one line per paragraph."""

PAGE_VIEWS = pa.schema([("title", pa.string()), ("views", pa.int64()), ("reason", pa.string())])
"""Page views of a title, whose underscores are replaced by spaces."""

TERM_COUNTS = pa.schema([("term", pa.string()), ("length", pa.int8()), ("count", pa.int64())])
"""Occurrences of unigrams (length 1) and bigrams (length 2; two words separated by one space)."""

SCORED_TERMS = pa.schema([*TERM_COUNTS, ("first_count", pa.int64()), ("pmi_bits", pa.float64())])
"""Terms with the count of their first word, and the PMI of bigrams."""

CANDIDATES = pa.schema(
    [
        ("pair_id", pa.string()),  # 128-bit hash of (url, caption), 32 hexadecimal digits
        ("url", pa.string()),
        ("caption", pa.string()),
        ("caption_source", pa.string()),
        ("language", pa.string()),  # of the caption (pipeline.data.text.language); null if it cannot be detected
        ("spare_captions", pa.list_(pa.string())),
        ("page_url", pa.string()),
        ("page_date", pa.timestamp("ms", "UTC")),  # when the page was captured
        ("crawl_id", pa.string()),  # the crawl that the archive belongs to, such as CC-MAIN-2026-05
        ("archive", pa.string()),
        ("record_offset", pa.int64()),
        ("query_ids", pa.list_(pa.int32())),  # sorted, unique
        ("image", pa.large_binary()),  # encoded original, if the source contains it (data: URL, table of pairs)
        ("reason", pa.string()),
    ]
)
"""The URL of an image and the text found next to the image."""

FETCHED = pa.schema(
    [
        *(field for field in CANDIDATES if field.name not in {"url", "image"}),
        # img2dataset's columns, with img2dataset's names and values
        ("url", pa.string()),
        ("key", pa.string()),  # the pair's id
        ("jpg", pa.large_binary()),  # the resized image
        ("status", pa.string()),  # success, failed_to_download, failed_to_resize
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("exif", pa.string()),
        ("sha256", pa.string()),  # of the original bytes
        # ours
        ("redirect_url", pa.string()),  # target of a redirect to another domain, still to be fetched
    ]
)
"""A candidate after fetching and resizing; `jpg` is set if `reason` is null."""

ANSWERS = pa.schema([field.with_name("outcome") if field.name == "reason" else field for field in FETCHED])
"""FETCHED rows of a later attempt, with `reason` renamed to `outcome`: the next stage reads failed rows too."""

ADDRESSES = pa.schema(
    [
        ("crawl", pa.int32()),  # index of the crawl among those that are curated together
        ("pair_id", pa.string()),
        ("spare_captions", pa.list_(pa.string())),
        ("reason", pa.string()),
    ]
)
"""The fetched pairs of several crawls; one pair per address is kept."""

SKETCHES = pa.schema([("query_id", pa.int32()), ("num_pairs", pa.int64()), ("draws", pa.list_(pa.uint64()))])
"""Bottom-k sketch of each query's pairs: their number, and their k lowest draws in ascending order."""

OUTCOMES = pa.schema([("query_id", pa.int32()), ("tried", pa.int64()), ("kept", pa.int64())])
"""The number of candidates of each query that were tried, and the number for which an image was kept."""

SURVIVAL = pa.schema([("text", pa.string()), ("tried", pa.int64()), ("kept", pa.int64())])
"""OUTCOMES by the text of the query, because ids differ between query lists."""

LINK_ROT = pa.schema(
    [
        ("by", pa.string()),  # domain (registered), host, or year (when the page was captured)
        ("name", pa.string()),  # null for a page without a date
        ("tried", pa.int64()),  # the sum of the columns below
        ("kept", pa.int64()),
        ("transient", pa.int64()),
        ("permanent", pa.int64()),  # without failed image checks
        ("policy", pa.int64()),
        ("image_refused", pa.int64()),
    ]
)
"""The outcomes of the requested addresses."""

THRESHOLDS = pa.schema([("query_id", pa.int32()), ("num_pairs", pa.int64()), ("threshold", pa.uint64())])
"""A query selects the pairs whose draw is at most its threshold."""

PICTURES = pa.schema(
    [
        ("pair_id", pa.string()),
        ("part", pa.int32()),  # part of FETCHED that contains the pair
        ("sha256", pa.string()),
        ("phash", pa.uint64()),  # 64-bit perceptual hash of the resized image
        ("variants", pa.list_(pa.uint64())),  # hashes of its mirrored or rotated variants
        ("rank", pa.uint64()),  # lower is better
        ("caption_key", pa.uint64()),  # hash of the caption's words; 0 for a caption with too few words to compare
    ]
)
"""The attributes of an image of FETCHED by which duplicates are found."""

FINGERPRINTS = pa.schema(
    [
        ("band", pa.int8()),  # index of a band of bits, or duplicate_graph.CAPTIONS
        ("key", pa.uint64()),  # similar pictures have equal keys in at least one band
        ("probe", pa.uint64()),  # the hash of the picture or of one of its variants
        ("phash", pa.uint64()),
        ("rank", pa.uint64()),  # this and the columns below belong to the best row with this hash
        ("pair_id", pa.string()),
        ("part", pa.int32()),
    ]
)
"""The key of a picture in one band."""

EDGES = pa.schema(
    [
        ("better_hash", pa.uint64()),
        ("better_rank", pa.uint64()),
        ("better_id", pa.string()),
        ("better_part", pa.int32()),
        ("worse_hash", pa.uint64()),
        ("why", pa.string()),  # the Reason for which the worse picture may be dropped
    ]
)
"""Two similar pictures, the better one and the worse one."""

EMBEDDING_EDGES = pa.schema([*EDGES, ("similarity", pa.float32())])
"""EDGES between pictures whose embeddings are close, with the cosine of the embeddings."""

LINKS = pa.schema(
    [
        ("kind", pa.int8()),  # LINK, DROP or CUT (duplicate_graph.py)
        ("node", pa.uint64()),
        ("other", pa.uint64()),
        ("node_is_better", pa.bool_()),
        ("better_rank", pa.uint64()),
        ("better_id", pa.string()),
        ("better_part", pa.int32()),
        ("why", pa.string()),
    ]
)
"""One end of an edge, or a message from one end to the other."""

DROPPED_PICTURES = pa.schema(
    [("phash", pa.uint64()), ("kept_id", pa.string()), ("kept_part", pa.int32()), ("why", pa.string())]
)
"""A picture to drop, and the pair that is kept instead."""

DUPLICATES = pa.schema(
    [
        ("pair_id", pa.string()),
        ("part", pa.int32()),
        ("kept_id", pa.string()),
        ("kept_part", pa.int32()),
        ("why", pa.string()),
    ]
)
"""Rows to drop, each with the row that is kept instead."""

SPARES = pa.schema([("kept_id", pa.string()), ("kept_part", pa.int32()), ("caption", pa.string())])
"""Captions of dropped rows, for the rows that are kept instead."""

EMBEDDINGS = pa.schema([("pair_id", pa.string()), ("embedding", pa.list_(pa.float16()))])
"""The embedding of each picture by an image encoder: unit vectors, all with the same number of dimensions."""

CENTROIDS = pa.schema([("centroid", pa.list_(pa.float32()))])
"""The centroids of the cells in embedding space; the index of a cell is its row."""

CELL_MEMBERS = pa.schema(
    [
        ("cell", pa.int32()),  # the cell of this row
        ("cells", pa.list_(pa.int32())),  # all cells that contain the picture, nearest first
        ("phash", pa.uint64()),  # the node in the duplicate graph; the columns below belong to its best row
        ("rank", pa.uint64()),
        ("pair_id", pa.string()),
        ("part", pa.int32()),
        ("embedding", pa.list_(pa.float16())),
    ]
)
"""One row per picture and cell of embedding space."""

OVERLAP_INDEX = pa.schema(
    [
        ("benchmark", pa.string()),
        ("set_sha256", pa.string()),  # of the set's files, so that an item index always refers to the same picture
        ("split", pa.string()),
        ("item", pa.int64()),  # index of the sample in its split
        ("phash", pa.uint64()),  # null for a picture too plain for a meaningful hash
        ("embedding", pa.list_(pa.float16())),  # null if the index was made without an encoder
    ]
)
"""The pictures of evaluation sets that `pipeline.data.duplicates.overlap` searches for."""

OVERLAPS = pa.schema(
    [
        ("pair_id", pa.string()),
        *(field for field in OVERLAP_INDEX if field.name not in {"phash", "embedding"}),
        ("distance", pa.int32()),  # bits in which the hashes differ; null for a match by embedding
        ("similarity", pa.float32()),  # cosine of the embeddings; null for a match by hash
    ]
)
"""A pair that shows a picture of an evaluation set: one row per picture and kind of match (hash or embedding)."""

PAIRS = pa.schema(
    [
        ("pair_id", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("language", pa.string()),
        ("spare_captions", pa.list_(pa.string())),
        ("image", pa.large_binary()),  # JPEG
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("sha256", pa.string()),
        ("phash", pa.uint64()),
        ("page_url", pa.string()),
        ("caption_source", pa.string()),
        ("query_ids", pa.list_(pa.int32())),
    ]
)
"""A pair of the corpus, as stored in shards."""

CARD_COUNTS = pa.schema([("topic", pa.string()), ("name", pa.string()), ("num_pairs", pa.int64())])
"""The number of pairs with one property, for the data card (card.py)."""

PAIRS_VERSION = 1
"""Version of PAIRS, written to every shard; a reader refuses a later version than its own."""

IMPORTED = pa.schema([*PAIRS, ("reason", pa.string())])
"""A pair made by another tool, or the reason why it cannot be used."""


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with exactly the schema's columns, in the schema's order. Missing columns are filled with nulls.

    Raises:
        ValueError: the table has a column that is not in the schema, or a column cannot be cast to its type.
    """
    unknown = sorted(set(table.column_names) - set(schema.names))
    if unknown:
        raise ValueError(f"columns {unknown} are not in the schema {schema.names}")
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def with_reasons(table: pa.Table, reasons: list[str | None]) -> pa.Table:
    """The table with its `reason` column replaced: row i is dropped for reasons[i], or kept if that is None."""
    index = table.schema.get_field_index("reason")
    return table.set_column(index, "reason", pa.array(reasons, pa.string()))
