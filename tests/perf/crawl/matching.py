"""Measure matching at the paper's scale: `python -m tests.perf.crawl.matching`; needs CLIP_DATA.

Measures the speed on one core compared with pyahocorasick (text by text, on texts normalized beforehand), the memory of
both, and the speedup from one Ray Data actor to two.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import ahocorasick
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from cluster.resources import Pool
from cluster.session import SessionConfig, session
from pipeline.data.queries.counting import count_terms
from pipeline.data.queries.query_list import wordnet_synsets
from pipeline.data.queries.wikipedia import read_articles
from pipeline.data.sources.byte_ranges import ByteRange
from pipeline.data.text.match import Matcher
from pipeline.data.text.words import is_word_character, normalize
from tests.perf.corpus.rows import Row, row

NUM_QUERIES = 500_000
WORDNET = "/usr/share/wordnet"
CAPTIONS_PER_PART = 110_000
DATA = Path(os.environ.get("CLIP_DATA", "../shared/data"))


def captions() -> pa.StringArray:
    """117,680 human captions, 68 characters each."""
    return pq.read_table(DATA / "captions.parquet", columns=["text"])["text"].combine_chunks()


def query_list() -> list[str]:
    """WordNet's synsets, then the words and word pairs of a Wikipedia sample, then its sequences of three words."""
    data = (DATA / "enwiki-sample.xml.bz2").read_bytes()
    texts = [text for text in read_articles(io.BytesIO(data), ByteRange("", 0, len(data)))["text"].to_pylist() if text]
    terms = count_terms(texts)["term"].to_pylist()
    triples = (" ".join(words[i : i + 3]) for words in (text.split() for text in texts) for i in range(len(words)))
    queries: dict[str, None] = {}
    for text in chain(wordnet_synsets(WORDNET), terms, triples):
        if len(queries) == NUM_QUERIES:
            break
        if form := normalize(text):
            queries[form] = None
    assert len(queries) == NUM_QUERIES, f"the sample gives only {len(queries)} queries"
    return list(queries)


def automaton(queries: list[str]) -> ahocorasick.Automaton:
    """Build the automaton of the peer."""
    built = ahocorasick.Automaton()
    for index, query in enumerate(queries):
        built.add_word(query, (index, len(query)))
    built.make_automaton()
    return built


def peer_matches(built: ahocorasick.Automaton, texts: list[str]) -> list[list[int]]:
    """The peer's matches at word boundaries, in normalized texts."""
    matches = []
    for text in texts:
        found = set()
        for last, (index, length) in built.iter(text):
            start, end = last - length + 1, last + 1
            if (start == 0 or not is_word_character(text[start - 1])) and (
                end == len(text) or not is_word_character(text[end])
            ):
                found.add(index)
        matches.append(sorted(found))
    return matches


def matching() -> Row:
    """Measure captions per second on one core, from a column of strings to lists of ids, including normalization."""
    queries, texts = query_list(), captions()
    matcher, built = Matcher(queries), automaton(queries)
    normalized = [normalize(text) for text in texts.to_pylist()]
    assert matcher(texts).to_pylist() == peer_matches(built, normalized)
    return row(
        f"match captions against {len(queries):,} queries",
        "captions/s",
        len(texts),
        "pyahocorasick, text normalised beforehand",
        lambda: matcher(texts),
        lambda: peer_matches(built, normalized),
    )


def memory_mib(build: Callable[[list[str]], object]) -> float:
    """The memory growth of a separate process that builds a matcher."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_grown, (build,))


def _grown(build: Callable[[list[str]], object]) -> float:
    queries = query_list()
    Matcher(["warm"]).match("up")
    before = _resident()
    built = build(queries)
    grown = _resident() - before
    assert built is not None
    return grown / 2**20


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Actor:
    """An actor that keeps a matcher, as in the actor pool of a crawl."""

    def __init__(self, queries: list[str]) -> None:
        self._matcher = Matcher(queries)

    def __call__(self, block: pa.Table) -> pa.Table:
        found = self._matcher(block["text"])
        return pa.table({"matches": [len(found.values)], "texts": [block.num_rows]})


def through_ray_data(num_actors: int, num_parts: int = 30) -> float:
    """Captions per second, between the completion of the first parts and of the last part."""
    texts = captions()
    parts = [pa.table({"text": texts.slice(0, CAPTIONS_PER_PART)}) for _ in range(num_parts)]
    with session(SessionConfig(address="local", num_cpus=4)):
        pool = Pool(size=num_actors)
        arguments = pool.map_batches_arguments()
        dataset = ray.data.from_arrow(parts).map_batches(_Actor, fn_constructor_args=(query_list(),), **arguments)
        times = [time.perf_counter() for _ in dataset.iter_batches(batch_size=None)]
    return (len(times) - num_actors) * CAPTIONS_PER_PART / (times[-1] - times[num_actors - 1])


def main() -> None:
    """Measure and print the results."""
    measured = matching()
    print(f"{measured.work}: {measured.ours:,.0f} captions/s, {measured.peer_name}: {measured.peer:,.0f}")
    print(f"ratio {measured.ratio:.2f}")
    ours, peer = memory_mib(Matcher), memory_mib(automaton)
    print(f"memory of {NUM_QUERIES:,} queries: {ours:,.0f} MiB, the peer's {peer:,.0f} MiB")
    one, two = through_ray_data(1), through_ray_data(2)
    print(f"through Ray Data: {one:,.0f} captions/s with one actor, {two:,.0f} with two: {two / one:.2f} times")


if __name__ == "__main__":
    main()
