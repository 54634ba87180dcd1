"""Find pairs that show a picture of an evaluation set (CLIP paper, section 5 and appendix C).

An index contains the perceptual hash of every picture of the sets and, if an encoder was given, its embedding. A pair
overlaps with a set if its hash or its embedding is near enough. Each set can have its own thresholds, because a
distance that means a near duplicate among photographs can separate two different handwritten digits. Overlapping pairs
are dropped, or kept and recorded. In both cases the evaluation reads which of its pictures were found
(pipeline/eval/report/overlap.py).

The hash of a flat picture has one bit set, and the hash of a plain gradient has up to eight, regardless of what they
show. Such hashes are meaningless and are left out of the index. These pictures can only be found by their embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.duplicates.embeddings import Encode, Matrix, cosines, to_column, to_matrix
from pipeline.data.duplicates.hamming import near
from pipeline.data.images.image_header import DECODER_ERRORS
from pipeline.data.images.phash import perceptual_hash
from pipeline.hashing import UInt64
from pipeline.reasons import Reason
from pipeline.schemas import OVERLAP_INDEX, OVERLAPS, conform, with_reasons

MIN_BITS_SET = 9
"""Minimum number of bits set in a meaningful hash; the hash of a photograph has 32."""
NO_HASH, NO_EMBEDDING = -1, 2.0
"""A radius and a similarity that no picture can meet."""
_BLOCK, _INDEX_BLOCK = 1024, 8192
_SLACK = 1e-3
"""Upper bound of the error of a single-precision dot product; the actual error is far smaller."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class OverlapConfig:
    """How overlap with evaluation sets is detected, and whether overlapping pairs are dropped."""

    index: str | None = None
    """Path of the index.parquet written by jobs.overlap; if not given, overlap is not searched for."""
    mode: Literal["drop", "mark"] = "drop"
    """Whether overlapping pairs are removed (drop) or kept (mark). In both modes the snapshot records the matches."""
    radius: int = 4
    """Maximum number of bits in which the perceptual hashes of a pair and of a set's picture may differ; -1 disables
    the comparison of hashes."""
    radius_of: dict[str, int] = field(default_factory=dict)
    """The radius for individual sets, by set name; replaces `radius`."""
    min_similarity: float = 0.95
    """Minimum cosine of the embeddings; 2 disables the comparison of embeddings. It depends on the encoder:
    docs/overlap.md explains how to choose it."""
    min_similarity_of: dict[str, float] = field(default_factory=dict)
    """The minimum cosine for individual sets, by set name; replaces `min_similarity`."""

    def __post_init__(self) -> None:
        radii = {"radius": self.radius} | {f"radius_of.{name}": value for name, value in self.radius_of.items()}
        for option, radius in radii.items():
            if not NO_HASH <= radius < 64:
                raise ValueError(
                    f"overlap.{option} = {radius}: must be 0 to 63 of the 64 bits, or -1 to compare no hashes"
                )
        cosine = {"min_similarity": self.min_similarity}
        cosine |= {f"min_similarity_of.{name}": value for name, value in self.min_similarity_of.items()}
        for option, similarity in cosine.items():
            if not (0 < similarity <= 1 or similarity == NO_EMBEDDING):
                raise ValueError(
                    f"overlap.{option} = {similarity}: must be above 0 and at most 1, or 2 to compare no embeddings"
                )


def build_index_table(table: pa.Table, encode: Encode | None) -> pa.Table:
    """OVERLAP_INDEX of the pictures of a set.

    Args:
        table: the columns benchmark, set_sha256, split, item, and image (encoded).
        encode: the encoder; if None, embeddings are null.

    Raises:
        ValueError: an image cannot be decoded. The message names set and item. Skipping the image would hide its
            overlaps.
    """
    images = table["image"].to_pylist()
    hashes = []
    for image, benchmark, item in zip(images, table["benchmark"].to_pylist(), table["item"].to_pylist(), strict=True):
        try:
            hashes.append(perceptual_hash([image])[0])
        except DECODER_ERRORS as error:
            raise ValueError(f"the picture of sample {item} of the set {benchmark} cannot be read ({error})") from error
    known = np.array(hashes, np.uint64)
    rest = table.drop_columns(["image"]).append_column("phash", pa.array(known, mask=is_plain(known)))
    if encode is not None:
        rest = rest.append_column("embedding", to_column(encode(images)))
    return conform(rest, OVERLAP_INDEX)


def is_plain(hashes: UInt64) -> npt.NDArray[np.bool_]:
    """Whether the picture of each hash is too plain for a meaningful hash."""
    return np.bitwise_count(hashes) < MIN_BITS_SET


class OverlapIndex:
    """The pictures of evaluation sets with their thresholds, as plain arrays that the actors of a machine share.

    A picture takes 8 bytes for its hash and 2 bytes per dimension of its embedding: 1 GB for a million pictures with
    512 dimensions.
    """

    def __init__(self, table: pa.Table, config: OverlapConfig) -> None:
        """Build the index from OVERLAP_INDEX rows.

        Raises:
            ValueError: the configuration has a threshold for a set that is not in the index.
        """
        table = table.combine_chunks()
        names = table["benchmark"].to_pylist()
        for option, thresholds in (("radius_of", config.radius_of), ("min_similarity_of", config.min_similarity_of)):
            if unknown := sorted(set(thresholds) - set(names)):
                known = ", ".join(sorted(set(names)))
                raise ValueError(f"overlap.{option}.{unknown[0]}: the index has no such set; it has {known}")
        radii = np.array([config.radius_of.get(name, config.radius) for name in names], np.int64)
        cosine = [config.min_similarity_of.get(name, config.min_similarity) for name in names]
        totals = table.group_by("benchmark").aggregate([("item", "count"), ("phash", "count")]).sort_by("benchmark")
        self.sizes = {
            row["benchmark"]: (row["item_count"], row["item_count"] - row["phash_count"]) for row in totals.to_pylist()
        }
        """Number of pictures of each set, and how many of them are too plain for a hash."""
        hashed = np.flatnonzero(table["phash"].is_valid().to_numpy() & (radii > NO_HASH))
        embedded = table["embedding"].is_valid().to_numpy() & (np.array(cosine) < NO_EMBEDDING)
        self.items = table.select([name for name in OVERLAP_INDEX.names if name not in {"phash", "embedding"}])
        self._hashed = hashed
        self._hashes: UInt64 = table["phash"].take(pa.array(hashed)).to_numpy().astype(np.uint64)
        self._radii = radii[hashed]
        self._embedded = np.flatnonzero(embedded)
        self._embeddings = to_matrix(table["embedding"].filter(pa.array(embedded))).astype(np.float16)
        self._min_similarity = np.array(cosine, np.float32)[embedded]

    @property
    def has_embeddings(self) -> bool:
        """Whether embeddings are compared; if so, the pictures need embeddings too."""
        return len(self._embedded) > 0

    def near_hashes(self, hashes: UInt64) -> tuple[Ints, Ints, Ints]:
        """Matches within the radius of the item's set: indices into `hashes`, indices into `items`, differing bits."""
        found = [_NOTHING]
        for radius in np.unique(self._radii).tolist():
            own = np.flatnonzero(self._radii == radius)
            rows, items = near(hashes, self._hashes[own], radius).T
            bits = np.bitwise_count(hashes[rows] ^ self._hashes[own[items]]).astype(np.int64)
            found.append((rows, self._hashed[own[items]], bits))
        rows, items, bits = (np.concatenate(column) for column in zip(*found, strict=True))
        return rows, items, bits

    def near_embeddings(self, embeddings: Matrix) -> tuple[Ints, Ints, Matrix]:
        """Matches with at least the cosine of the item's set: indices into `embeddings`, into `items`, and cosines.

        Every picture is compared with every item, in blocks.

        Raises:
            ValueError: the embeddings and the index differ in their number of dimensions.
        """
        ours, theirs = self._embeddings.shape[1], embeddings.shape[1]
        if len(embeddings) and ours != theirs:
            raise ValueError(
                f"embeddings have {theirs} dimensions, the overlap index has {ours}; use the encoder of the index"
            )
        found = [_NOTHING_SIMILAR]
        for first in range(0, len(self._embeddings), _INDEX_BLOCK):
            known = self._embeddings[first : first + _INDEX_BLOCK].astype(np.float32)
            min_similarity = self._min_similarity[first : first + _INDEX_BLOCK]
            for start in range(0, len(embeddings), _BLOCK):
                block = embeddings[start : start + _BLOCK]
                rows, items = np.nonzero(block @ known.T > min_similarity - _SLACK)
                for cut in range(0, len(rows), _BLOCK):
                    i, j = rows[cut : cut + _BLOCK], items[cut : cut + _BLOCK]
                    exact = cosines(block[i], known[j])
                    near = exact >= min_similarity[j]
                    found.append((i[near] + start, self._embedded[j[near] + first], exact[near]))
        rows, items, similarity = (np.concatenate(column) for column in zip(*found, strict=True))
        return rows, items, similarity


_NOTHING: tuple[Ints, Ints, Ints] = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))
_NOTHING_SIMILAR: tuple[Ints, Ints, Matrix] = (*_NOTHING[:2], np.zeros(0, np.float32))


def find_overlaps(pictures: pa.Table, index: OverlapIndex) -> pa.Table:
    """OVERLAPS: all items of the index that each picture shows.

    Args:
        pictures: the columns pair_id and phash, and embedding if the index has embeddings.
        index: the evaluation sets.
    """
    near = index.near_hashes(pictures["phash"].to_numpy().astype(np.uint64))
    tables = [_overlaps(pictures, index, near[0], near[1], distance=near[2])]
    if index.has_embeddings:
        similar = index.near_embeddings(to_matrix(pictures["embedding"]))
        tables.append(_overlaps(pictures, index, similar[0], similar[1], similarity=similar[2]))
    keys = ("pair_id", "benchmark", "split", "item", "distance")
    return pa.concat_tables(tables).sort_by([(key, "ascending") for key in keys])


def _overlaps(
    pictures: pa.Table, index: OverlapIndex, rows: Ints, items: Ints, **scores: npt.NDArray[np.generic]
) -> pa.Table:
    table = index.items.take(pa.array(items)).append_column("pair_id", pictures["pair_id"].take(pa.array(rows)))
    for name, values in scores.items():
        table = table.append_column(name, pa.array(values))
    return conform(table, OVERLAPS)


def drop_overlaps(table: pa.Table, overlaps: pa.Table) -> pa.Table:
    """The table with a reason for each row that is in OVERLAPS; rows already dropped keep their reason."""
    overlapping = pc.and_(table["reason"].is_null(), pc.is_in(table["pair_id"], overlaps["pair_id"].combine_chunks()))
    return with_reasons(table, pc.if_else(overlapping, pa.scalar(Reason.OVERLAP.value), table["reason"]).to_pylist())


def settled(overlaps: pa.Table, outcomes: pa.Table) -> pa.Table:
    """The OVERLAPS that a snapshot records: of the pairs that it contains, and of pairs dropped as overlaps.

    Args:
        overlaps: OVERLAPS.
        outcomes: columns pair_id and reason of all pairs in `overlaps`.
    """
    recorded = outcomes.filter(
        pc.or_kleene(outcomes["reason"].is_null(), pc.equal(outcomes["reason"], Reason.OVERLAP.value))
    )
    return overlaps.filter(pc.is_in(overlaps["pair_id"], recorded["pair_id"].combine_chunks()))


@dataclass(frozen=True, kw_only=True)
class SetOverlap:
    """The overlap of one evaluation set with the pairs."""

    benchmark: str
    num_images: int
    num_plain: int
    """Number of images that are too plain for a hash."""
    num_overlapping: int
    """Number of images that at least one pair shows."""
    num_pairs: int
    """Number of pairs that show at least one image of the set."""

    @property
    def share(self) -> float:
        """The share of the set's images that were found, 0 to 1."""
        return self.num_overlapping / self.num_images


def count_overlaps(index: OverlapIndex, overlaps: pa.Table) -> list[SetOverlap]:
    """The overlap of each set of an index, sorted by name, given all OVERLAPS of a snapshot."""
    items: dict[str, set[tuple[str, int]]] = {}
    pairs: dict[str, set[str]] = {}
    columns = [overlaps[name].to_pylist() for name in ("benchmark", "split", "item", "pair_id")]
    for benchmark, split, item, pair_id in zip(*columns, strict=True):
        items.setdefault(benchmark, set()).add((split, item))
        pairs.setdefault(benchmark, set()).add(pair_id)
    return [
        SetOverlap(
            benchmark=benchmark,
            num_images=num_images,
            num_plain=num_plain,
            num_overlapping=len(items.get(benchmark, ())),
            num_pairs=len(pairs.get(benchmark, ())),
        )
        for benchmark, (num_images, num_plain) in index.sizes.items()
    ]


def overlap_record(sets: Sequence[SetOverlap], config: OverlapConfig) -> Mapping[str, object]:
    """The entry in a snapshot's record and data card: mode, each set with its thresholds, median and mean share."""
    return {
        "mode": config.mode,
        "sets": {
            overlap.benchmark: {
                "radius": config.radius_of.get(overlap.benchmark, config.radius),
                "min_similarity": config.min_similarity_of.get(overlap.benchmark, config.min_similarity),
                "num_images": overlap.num_images,
                "num_overlapping": overlap.num_overlapping,
                "num_pairs": overlap.num_pairs,
                "share": overlap.share,
            }
            for overlap in sets
        },
        "median_share": median(overlap.share for overlap in sets) if sets else 0.0,
        "mean_share": fmean(overlap.share for overlap in sets) if sets else 0.0,
    }
