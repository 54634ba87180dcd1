"""Cleaning and tokenizing against open_clip's SimpleTokenizer: `python -m tests.perf.training.tokenizing`; needs
CLIP_DATA.

All real captions to one tensor of 77 columns, the same on both sides, on one core (neither uses threads). Both remember
what they merged before (the peer words, ours what lies between white spaces), so a first pass is timed by itself.
"""

from __future__ import annotations

import pyarrow.parquet as pq
from open_clip.tokenizer import SimpleTokenizer

from pipeline.model.tokenizer.tokenizer import Tokenizer
from tests.perf.corpus.rows import REPEATS, Row, row
from tests.perf.crawl.matching import DATA

UNIT, PEER = "captions/s", "open_clip SimpleTokenizer"


def first_pass(captions: list[str]) -> Row:
    """By tokenizers that have seen nothing yet."""
    ours = iter([Tokenizer.released() for _ in range(REPEATS)])
    theirs = iter([SimpleTokenizer() for _ in range(REPEATS)])
    return row(
        "tokenize captions, first pass",
        *(UNIT, len(captions), PEER),
        lambda: next(ours)(captions),
        lambda: next(theirs)(captions),
    )


def tokenizing() -> Row:
    """By tokenizers that have seen these captions."""
    captions = _captions()
    ours, theirs = Tokenizer.released(), SimpleTokenizer()
    assert ours(captions).equal(theirs(captions))
    return row("tokenize captions", UNIT, len(captions), PEER, lambda: ours(captions), lambda: theirs(captions))


def _captions() -> list[str]:
    captions: list[str] = pq.read_table(DATA / "captions.parquet", columns=["text"])["text"].to_pylist()
    return captions


def main() -> None:
    """Measure and print."""
    print(f"| work | ours, {UNIT} | {PEER} | ratio |\n|---|---:|---:|---:|")
    for one in (first_pass(_captions()), tokenizing()):
        print(f"| {one.work} | {one.ours:,.0f} | {one.peer:,.0f} | {one.ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
