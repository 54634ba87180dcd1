"""The Arrow schema of every boundary between stages.

A stage keeps its rows: one that is out carries a `reason` (reasons.py), one that is still in has none (null). The next
stage reads only rows without a reason, so for every stage  rows in = rows kept + rows dropped by reason.
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
"""The query list: ids are ranks (0 is first), `statistic` is the source's own (count, PMI bits; 0 for WordNet)."""

ARTICLES = pa.schema([("title", pa.string()), ("text", pa.string()), ("reason", pa.string())])
"""A page of Wikipedia; plain text, a line for each paragraph."""

PAGE_VIEWS = pa.schema([("title", pa.string()), ("views", pa.int64()), ("reason", pa.string())])
"""How often a title was looked at; blanks for underscores."""

TERM_COUNTS = pa.schema([("term", pa.string()), ("length", pa.int8()), ("count", pa.int64())])
"""Occurrences of unigrams (length 1) and bi-grams (length 2; words parted by one blank)."""

SCORED_TERMS = pa.schema([*TERM_COUNTS, ("first_count", pa.int64()), ("pmi_bits", pa.float64())])
"""Terms, how often the first word of each occurs, and the PMI of bi-grams."""

CANDIDATES = pa.schema(
    [
        ("pair_id", pa.string()),  # 128-bit hash of (url, caption), 32 hexadecimal digits
        ("url", pa.string()),
        ("caption", pa.string()),
        ("caption_source", pa.string()),
        ("language", pa.string()),  # of the caption (pipeline.data.text.language), null where it cannot be told
        ("spare_captions", pa.list_(pa.string())),
        ("page_url", pa.string()),
        ("page_date", pa.timestamp("ms", "UTC")),  # when the page was captured
        ("crawl_id", pa.string()),  # the archive's own crawl, such as CC-MAIN-2026-05
        ("archive", pa.string()),
        ("record_offset", pa.int64()),
        ("query_ids", pa.list_(pa.int32())),  # sorted, unique
        ("image", pa.large_binary()),  # only where the source holds it already (data: address, table of pairs)
        ("reason", pa.string()),
    ]
)
"""An image address and a text somebody put beside it."""

FETCHED = pa.schema(
    [
        *(field for field in CANDIDATES if field.name not in {"url", "image"}),
        # img2dataset's columns, with its names and values
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
        ("redirect_url", pa.string()),  # where an address on another domain is to be asked for
    ]
)
"""A candidate after fetching and resizing; `jpg` is there where `reason` is null."""

ANSWERS = pa.schema([field.with_name("outcome") if field.name == "reason" else field for field in FETCHED])
"""FETCHED of a later attempt: rows that are out are no less of interest than the others."""

ADDRESSES = pa.schema(
    [
        ("crawl", pa.int32()),  # its number among those that are curated together
        ("pair_id", pa.string()),
        ("spare_captions", pa.list_(pa.string())),
        ("reason", pa.string()),
    ]
)
"""The fetched pairs of several crawls, of which one stays for each address."""

SKETCHES = pa.schema([("query_id", pa.int32()), ("num_pairs", pa.int64()), ("draws", pa.list_(pa.uint64()))])
"""Bottom-k sketch of each query's pairs: how many there are, and their k lowest draws, ascending."""

OUTCOMES = pa.schema([("query_id", pa.int32()), ("tried", pa.int64()), ("kept", pa.int64())])
"""Of each query, the candidates that went into fetching and those that came out as an image."""

SURVIVAL = pa.schema([("text", pa.string()), ("tried", pa.int64()), ("kept", pa.int64())])
"""OUTCOMES by the query's text, which stays what it is where ids change from list to list."""

LINK_ROT = pa.schema(
    [
        ("by", pa.string()),  # domain (registered), host, or year (when the page was captured)
        ("name", pa.string()),  # null for a page without a date
        ("tried", pa.int64()),  # what follows, added up
        ("kept", pa.int64()),
        ("transient", pa.int64()),
        ("permanent", pa.int64()),  # less those of the image checks
        ("policy", pa.int64()),
        ("image_refused", pa.int64()),
    ]
)
"""What became of the addresses that were asked for."""

THRESHOLDS = pa.schema([("query_id", pa.int32()), ("num_pairs", pa.int64()), ("threshold", pa.uint64())])
"""A query draws the pairs whose draw is at most its threshold."""

PICTURES = pa.schema(
    [
        ("pair_id", pa.string()),
        ("part", pa.int32()),  # of the fetched images
        ("sha256", pa.string()),
        ("phash", pa.uint64()),  # 64-bit perceptual hash of the resized image
        ("variants", pa.list_(pa.uint64())),  # of what it would be mirrored or turned
        ("rank", pa.uint64()),  # lower is better
        ("caption_key", pa.uint64()),  # what captions that are nearly equal have in common; 0 for those that say little
    ]
)
"""What tells duplicates of an image of FETCHED."""

FINGERPRINTS = pa.schema(
    [
        ("band", pa.int8()),  # of the hash, or that of captions (duplicate_graph.py)
        ("key", pa.uint64()),  # what two like pictures share in the band
        ("probe", pa.uint64()),  # the picture's hash, or that of a variant
        ("phash", pa.uint64()),
        ("rank", pa.uint64()),  # of the best row with this hash, as what follows
        ("pair_id", pa.string()),
        ("part", pa.int32()),
    ]
)
"""A picture in one band."""

EDGES = pa.schema(
    [
        ("better_hash", pa.uint64()),
        ("better_rank", pa.uint64()),
        ("better_id", pa.string()),
        ("better_part", pa.int32()),
        ("worse_hash", pa.uint64()),
        ("why", pa.string()),  # the Reason for which the worse one may go
    ]
)
"""Two like pictures."""

EMBEDDING_EDGES = pa.schema([*EDGES, ("similarity", pa.float32())])
"""EDGES between pictures whose embeddings are near each other, and their cosine."""

LINKS = pa.schema(
    [
        ("kind", pa.int8()),  # what the row says to its node (duplicate_graph.py)
        ("node", pa.uint64()),
        ("other", pa.uint64()),
        ("node_is_better", pa.bool_()),
        ("better_rank", pa.uint64()),
        ("better_id", pa.string()),
        ("better_part", pa.int32()),
        ("why", pa.string()),
    ]
)
"""One end of an edge, or what one of its ends says to the other."""

GONE = pa.schema([("phash", pa.uint64()), ("kept_id", pa.string()), ("kept_part", pa.int32()), ("why", pa.string())])
"""A picture that goes for another one."""

DUPLICATES = pa.schema(
    [
        ("pair_id", pa.string()),
        ("part", pa.int32()),
        ("kept_id", pa.string()),
        ("kept_part", pa.int32()),
        ("why", pa.string()),
    ]
)
"""Rows to drop, each with the row that stays for it."""

SPARES = pa.schema([("kept_id", pa.string()), ("kept_part", pa.int32()), ("caption", pa.string())])
"""Captions of dropped rows, for the rows that stay."""

EMBEDDINGS = pa.schema([("pair_id", pa.string()), ("embedding", pa.list_(pa.float16()))])
"""What an image encoder makes of a picture: all rows of one length in dimensions, and of length one as vectors."""

CENTROIDS = pa.schema([("centroid", pa.list_(pa.float32()))])
"""The middles of cells in the space of embeddings; a cell's number is its row."""

CELL_MEMBERS = pa.schema(
    [
        ("cell", pa.int32()),  # the one that this row is for
        ("cells", pa.list_(pa.int32())),  # all that the picture is in, nearest first
        ("phash", pa.uint64()),  # which is the picture in the duplicate graph; what follows is of its best row
        ("rank", pa.uint64()),
        ("pair_id", pa.string()),
        ("part", pa.int32()),
        ("embedding", pa.list_(pa.float16())),
    ]
)
"""One row per picture and cell of the space of embeddings."""

OVERLAP_INDEX = pa.schema(
    [
        ("benchmark", pa.string()),
        ("set_sha256", pa.string()),  # of the set's files, so that a number always means the same picture
        ("split", pa.string()),
        ("item", pa.int64()),  # number of the sample in its split
        ("phash", pa.uint64()),  # null for a picture so plain that its hash tells nothing
        ("embedding", pa.list_(pa.float16())),  # null where the index was made without an encoder
    ]
)
"""The pictures of evaluation sets, as `pipeline.data.duplicates.overlap` looks for them."""

OVERLAPS = pa.schema(
    [
        ("pair_id", pa.string()),
        *(field for field in OVERLAP_INDEX if field.name not in {"phash", "embedding"}),
        ("distance", pa.int32()),  # bits in which the hashes differ; null where an embedding told
        ("similarity", pa.float32()),  # cosine of the embeddings; null where the hashes told
    ]
)
"""A pair that shows a picture of an evaluation set; a row for each picture and each way of telling."""

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
"""A pair of the corpus, as shards hold it."""

CARD_COUNTS = pa.schema([("topic", pa.string()), ("name", pa.string()), ("num_pairs", pa.int64())])
"""Pairs by what they have in common (card.py)."""

PAIRS_VERSION = 1
"""Of PAIRS, in every shard; a reader refuses a later one than it knows."""

IMPORTED = pa.schema([*PAIRS, ("reason", pa.string())])
"""A pair that somebody else's tool has made, or why it is none."""


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with exactly the schema's columns, in its order; a missing column is null, an unknown one an error.

    Raises:
        ValueError: a column that the schema does not have, or one that cannot be cast to its type.
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
    """The table with its `reason` column replaced; row i is dropped for reasons[i], or still in where that is None."""
    index = table.schema.get_field_index("reason")
    return table.set_column(index, "reason", pa.array(reasons, pa.string()))
