"""Measure balancing at scale: `python -m tests.perf.corpus.balancing --pairs 20000000`.

Synthetic pairs, each matching four queries of a Zipf distribution, are generated part by part from their numbers. The
passes use the functions and files of pipeline/data/flows/global_counts_flow.py, one part or bucket at a time, including
reading and writing Parquet. Every pass runs in its own process, to measure its peak memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.parts import Output, Stage
from pipeline import paper
from pipeline.data.balance.balancing import Selection, bounds, count, merge, sketch, thresholds
from pipeline.hashing import UInt64, bucket_of, draws, id_words, mix
from pipeline.schemas import SKETCHES, THRESHOLDS

NUM_QUERIES = paper.NUM_QUERIES.value
MATCHES = 4
SEED = 0
BLOCK_PAIRS = 2**18
PAPER_PAIRS, PAPER_INCIDENCES = 1.6e9, 5.6e9
"""Number of pairs before balancing at the paper's scale, and number of their matches (3.5 per pair)."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Pairs that are functions of their numbers. Part p has the numbers that equal p modulo the number of parts."""

    num_pairs: int
    num_parts: int
    num_queries: int = NUM_QUERIES

    def part(self, index: int) -> pa.Table:
        """Columns pair_id, query_ids (sorted, unique) and reason (null) of a part."""
        numbers = np.arange(index, self.num_pairs, self.num_parts, dtype=np.uint64)
        starts = range(0, max(len(numbers), 1), BLOCK_PAIRS)
        return pa.concat_tables([self._pairs(numbers[start : start + BLOCK_PAIRS]) for start in starts])

    def _pairs(self, numbers: UInt64) -> pa.Table:
        digits = np.stack([draws(1, numbers), draws(2, numbers)], axis=1).astype(">u8").tobytes().hex()
        offsets = np.arange(len(numbers) + 1, dtype=np.int32)
        characters, ends = pa.py_buffer(digits.encode()), pa.py_buffer(32 * offsets)
        ids = pa.StringArray.from_buffers(len(numbers), ends, characters)
        # Rank by the inverse of Zipf's distribution in the limit of many queries: P(rank < r) = log r / log N
        uniform = np.stack([draws(3 + i, numbers) for i in range(MATCHES)], axis=1) / 2.0**64
        rank = np.minimum((self.num_queries + 1.0) ** uniform, self.num_queries).astype(np.int32) - 1
        queries = _distinct(rank, self.num_queries)
        lists = pa.ListArray.from_arrays(pa.array(MATCHES * offsets), pa.array(queries.reshape(-1)))
        reasons = pa.nulls(len(numbers), pa.string())
        return pa.table({"pair_id": ids, "query_ids": lists, "reason": reasons})


def _distinct(rank: npt.NDArray[np.int32], num_queries: int) -> npt.NDArray[np.int32]:
    """Sort each row, and replace repeated queries by the next query until all queries of a row are distinct."""
    rank = np.sort(rank, axis=1)
    while (equal := rank[:, 1:] == rank[:, :-1]).any():
        rank[:, 1:] = np.where(equal, (rank[:, 1:] + 1) % num_queries, rank[:, 1:])
        rank = np.sort(rank, axis=1)
    return rank


@dataclass
class Pass:
    """The measurements of a pass, including reading and writing."""

    name: str
    seconds: float = 0.0
    peak_bytes: int = 0
    file_bytes: int = 0
    found: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the duration of a `with` block."""
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started


@dataclass(frozen=True, kw_only=True)
class Balancing:
    """The passes over a corpus, in a folder."""

    corpus: Corpus
    order: Sequence[int]
    """The order in which the parts are processed."""
    folder: Path
    max_pairs: int = paper.MAX_PAIRS_PER_QUERY.value
    num_buckets: int = 8

    def make(self, done: Pass) -> None:
        """Write the parts, which in a real run are the output of a crawl."""
        stage = self._stage("pairs")
        for part in self.order:
            done.file_bytes += stage.write(part, self.corpus.part(part)).num_bytes

    def count(self, done: Pass) -> None:
        """Count the pairs per query of every part."""
        with done.timed():
            for part in self.order:
                self._write("counts", part, count(self._pairs(part, ["query_ids"])), done)

    def total(self, done: Pass) -> None:
        """Sum the counts of all parts, by bucket."""
        with done.timed():
            for bucket in range(self.num_buckets):
                table = self._output("counts").bucket(bucket) or SKETCHES.empty_table()
                self._write("totals", bucket, merge([table], 0), done)

    def sketch(self, done: Pass) -> None:
        """Write the bounded sketches of every part."""
        with done.timed():
            bound = bounds(self._output("totals").table(SKETCHES), self.max_pairs)
            for part in self.order:
                pairs = self._pairs(part, ["pair_id", "query_ids"])
                self._write("sketches", part, sketch(pairs, self.max_pairs, SEED, bound), done)

    def merge(self, done: Pass) -> None:
        """Merge the sketches into thresholds, by bucket."""
        with done.timed():
            for bucket in range(self.num_buckets):
                table = self._output("sketches").bucket(bucket) or SKETCHES.empty_table()
                merged = merge([table], self.max_pairs)
                self._write("limits", bucket, thresholds(merged, self.max_pairs, "paper"), done)

    def select(self, done: Pass) -> None:
        """Select the kept pairs; record their number and a checksum of their ids that does not depend on order."""
        kept, checksum = 0, 0
        with done.timed():
            selection = Selection(self.limits(), SEED)
            for part in self.order:
                chosen = selection(self._pairs(part, ["pair_id", "query_ids", "reason"]))
                words = id_words(chosen["pair_id"])[chosen["reason"].is_null().to_numpy()]
                kept, checksum = kept + len(words), (checksum + int(mix(words).sum())) % 2**64
        done.found = {"kept": kept, "checksum": checksum}

    def check(self, done: Pass) -> None:
        """Count the draws of each query over all matches, independently of Selection and the sketches."""
        limits = self.limits()
        queries, num_pairs = limits["query_id"].to_numpy(), limits["num_pairs"].to_numpy()
        limit = np.zeros(self.corpus.num_queries, np.uint64)
        limit[queries] = limits["threshold"].to_numpy()
        drawn, matched = np.zeros((2, self.corpus.num_queries), np.int64)
        for part in self.order:
            pairs = self._pairs(part, ["pair_id", "query_ids"])
            for start in range(0, pairs.num_rows, BLOCK_PAIRS):
                block = pairs.slice(start, BLOCK_PAIRS)
                query = block["query_ids"].combine_chunks().flatten().to_numpy()
                words = np.repeat(id_words(block["pair_id"]), MATCHES)
                low = draws(SEED, query.astype(np.uint64), words) <= limit[query]
                drawn += np.bincount(query[low], minlength=len(drawn))
                matched += np.bincount(query, minlength=len(matched))
        assert np.array_equal(np.flatnonzero(matched), queries), "queries are missing"
        assert (matched[queries] == num_pairs).all(), "counts are wrong"
        assert (drawn == np.minimum(matched, self.max_pairs)).all(), "a query drew too many pairs, or too few"
        done.found = {
            "queries": len(queries),
            "queries above the limit": int((num_pairs > self.max_pairs).sum()),
            "largest number of pairs": int(num_pairs.max()),
            "largest number of draws": int(drawn.max()),
        }

    def limits(self) -> pa.Table:
        """THRESHOLDS, sorted by query."""
        return self._output("limits").table(THRESHOLDS).sort_by("query_id")

    def _pairs(self, part: int, columns: Sequence[str]) -> pa.Table:
        table = self._output("pairs").part(part, columns)
        assert table is not None, f"part {part} is empty"
        return table

    def _stage(self, name: str) -> Stage:
        parts = self.num_buckets if name in ("totals", "limits") else self.corpus.num_parts
        return Stage(str(self.folder / name), parts)

    def _output(self, name: str) -> Output:
        return Output.of(self._stage(name))

    def _write(self, name: str, index: int, table: pa.Table, done: Pass) -> None:
        buckets = bucket_of(mix(table["query_id"].to_numpy().astype(np.uint64)), self.num_buckets)
        part = self._stage(name).write(index, table, buckets=buckets, num_buckets=self.num_buckets)
        done.file_bytes += part.num_bytes


def run_in_process(balancing: Balancing, name: str) -> Pass:
    """Run a pass in its own process, to measure its peak memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_run, (balancing, name))


def _run(balancing: Balancing, name: str) -> Pass:
    done = Pass(name)
    getattr(balancing, name)(done)
    done.peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return done


PASSES = ("count", "total", "sketch", "merge", "select")


def balance_all(balancing: Balancing, run: Callable[[Balancing, str], Pass] = _run) -> dict[str, Pass]:
    """Run all passes in order."""
    return {name: run(balancing, name) for name in ("make", *PASSES, "check")}


def same_in_any_parts(num_pairs: int, folder: Path, parts: Sequence[int] = (1, 7, 64), **options: int) -> bool:
    """Whether thresholds and kept pairs are the same for each number of parts, with parts in shuffled order."""
    results = []
    for num_parts in parts:
        order = np.random.default_rng(num_parts).permutation(num_parts).tolist()
        corpus = Corpus(num_pairs=num_pairs, num_parts=num_parts)
        balancing = Balancing(corpus=corpus, order=order, folder=folder / str(num_parts), **options)
        passes = balance_all(balancing)
        results.append((passes["select"].found, passes["check"].found, balancing.limits()))
    return all(result == results[0] for result in results)


def describe(num_pairs: int, num_parts: int, passes: dict[str, Pass]) -> str:
    """A report of the measurements, with a projection to the paper's scale."""
    lines = [
        f"{num_pairs:,} pairs, {MATCHES} matches each, Zipf over {NUM_QUERIES:,} queries, {num_parts} parts",
        "",
        "| pass | s | pairs/s/core | ns/match | peak RSS MiB | files MB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in PASSES:
        done = passes[name]
        rates = f"{num_pairs / done.seconds:,.0f} | {1e9 * done.seconds / num_pairs / MATCHES:.1f}"
        memory = f"{done.peak_bytes / 2**20:,.0f} | {done.file_bytes / 1e6:,.1f}"
        lines.append(f"| {name} | {done.seconds:.2f} | {rates} | {memory} |")
    found = passes["check"].found | {"pairs kept": passes["select"].found["kept"]}
    counts = [f"{name}: {value:,}" for name, value in found.items()]
    total = sum(passes[name].seconds for name in PASSES)
    pace = f"all passes: {total:.1f} s, {num_pairs / total:,.0f} pairs/s/core"
    return "\n".join([*lines, "", *counts, "", pace, *project(num_pairs, total)])


def project(num_pairs: int, seconds: float, max_pairs: int = paper.MAX_PAIRS_PER_QUERY.value) -> list[str]:
    """Project hours and bytes to the paper's scale: time by matches, draws by the number of queries above the limit."""
    scale = PAPER_INCIDENCES / (MATCHES * num_pairs)
    queries = PAPER_INCIDENCES / (max_pairs * np.log(NUM_QUERIES + 1))
    many = pa.table([[0], [10**9], [[]]], schema=SKETCHES)
    num_draws = float(bounds(many, max_pairs)[0]) / 2.0**64 * 10**9
    size = queries * num_draws * 8
    matches = f"{PAPER_PAIRS:,.0f} pairs have {PAPER_INCIDENCES:,.0f} matches, {scale:.0f} times as many"
    hours = f"{seconds:.1f} s x {scale:.0f} = {seconds * scale / 3600:.2f} core hours"
    heads = f"{PAPER_INCIDENCES:,.0f} / ({max_pairs:,} ln {NUM_QUERIES + 1:,}) = {queries:,.0f} queries above the limit"
    bound = f"{num_draws:,.0f} draws x 8 B = {size / 1e9:.1f} GB, {size / 64e6:.0f} MB in each of 64 buckets"
    whole = f"whole sketches: {PAPER_INCIDENCES:,.0f} x 8 B = {PAPER_INCIDENCES * 8e-9:.0f} GB"
    return [f"projection: {matches}: {hours}", f"draws: {heads} x {bound}; {whole}"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20_000_000)
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--compared_pairs", type=int, default=1_000_000, help="of the check with 1, 7 and 64 parts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = Corpus(num_pairs=options.pairs, num_parts=options.parts)
        balancing = Balancing(corpus=corpus, order=range(options.parts), folder=Path(folder, "all"))
        print(describe(options.pairs, options.parts, balance_all(balancing, run_in_process)))
        max_pairs = max(1, options.compared_pairs // 1000)
        same = same_in_any_parts(options.compared_pairs, Path(folder, "compared"), max_pairs=max_pairs)
    work = f"{options.compared_pairs:,} pairs, at most {max_pairs:,} a query, in 1, 7 and 64 parts in shuffled order"
    print(f"{work}: {'the same result' if same else 'DIFFERENT RESULTS'}")


if __name__ == "__main__":
    main()
