"""Measure term counting: `python -m tests.perf.corpus.counting`; needs CLIP_DATA.

Prints MB of text per second on one core compared with a Counter, time and peak memory at 1, 2 and 4 times the input,
and the speed of converting Wikipedia's markup to text.
"""

from __future__ import annotations

import io
import multiprocessing
import re
import resource
import time
from collections import Counter
from itertools import pairwise

from pipeline.data.queries.counting import count_terms
from pipeline.data.queries.wikipedia import read_articles
from pipeline.data.sources.byte_ranges import ByteRange
from pipeline.data.text.words import normalize
from tests.perf.corpus.rows import Row, row
from tests.perf.crawl.matching import DATA

_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
COPIES = 8


def text() -> str:
    """1.1 MB of Wikipedia articles."""
    return (DATA / "wikitext-valid.txt").read_text(encoding="utf-8")


def counter(document: str) -> Counter[str]:
    """Count words and pairs of words with a Counter, the simplest implementation."""
    found: Counter[str] = Counter()
    for line in document.splitlines():
        words = _WORD.findall(normalize(line))
        found.update(words)
        found.update(f"{a} {b}" for a, b in pairwise(words))
    return found


def counting() -> Row:
    """Measure bytes of text per second."""
    document = text() * COPIES
    return row(
        "count words and pairs of Wikipedia's text",
        "bytes/s",
        len(document.encode()),
        "collections.Counter",
        lambda: count_terms([document]),
        lambda: counter(document),
    )


def growth(num_parts: int) -> tuple[float, float]:
    """Seconds and peak memory in MiB of a process that counts this many parts of 4 MB, one after the other."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_count, (num_parts,))


def _count(num_parts: int) -> tuple[float, float]:
    document = text()
    seconds = 0.0
    for i in range(num_parts):
        # Words of nine or more letters differ in every part, because real pages also contain new words
        part = [re.sub(r"\b(\w{9,})\b", rf"\1{chr(97 + j) * (i + 1)}", document) for j in range(4)]
        started = time.perf_counter()
        count_terms(part)
        seconds += time.perf_counter() - started
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure and print."""
    measured = counting()
    print(f"{measured.work}: {measured.ours / 1e6:.1f} MB/s, {measured.peer_name} {measured.peer / 1e6:.1f} MB/s")
    print(f"ratio {measured.ratio:.2f}")
    base = None
    for times in (1, 2, 4):
        seconds, peak = min(growth(2 * times) for _ in range(3))
        base = base or seconds
        print(f"{times} x input: {seconds:.2f} s, {seconds / base / times:.2f} of linear; peak {peak:,.0f} MiB")
    data = (DATA / "enwiki-sample.xml.bz2").read_bytes()
    started = time.perf_counter()
    articles = read_articles(io.BytesIO(data), ByteRange("", 0, len(data)))
    seconds = time.perf_counter() - started
    rates = [num_bytes / 1e6 / seconds for num_bytes in (len(data), articles.nbytes)]
    print(f"markup to text: {rates[0]:.2f} MB of bz2/s, {rates[1]:.2f} MB of text/s")


if __name__ == "__main__":
    main()
