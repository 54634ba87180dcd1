"""Compare cleaning and tokenizing with open_clip's SimpleTokenizer: `python -m tests.perf.training.tokenizing`.

Needs CLIP_DATA. Both sides turn all real captions into the same tensor of 77 columns, on one core (neither uses
threads). Both cache merges: the peer per word, ours per text between white spaces. The first pass, with empty caches,
is therefore timed separately.
"""

from __future__ import annotations

import pyarrow.parquet as pq
from open_clip.tokenizer import SimpleTokenizer

from pipeline.model.tokenizer.tokenizer import Tokenizer
from tests.perf.corpus.rows import REPEATS, Row, row
from tests.perf.crawl.matching import DATA

UNIT, PEER = "captions/s", "open_clip SimpleTokenizer"


def first_pass(captions: list[str]) -> Row:
    """Time tokenizers with empty caches."""
    ours = iter([Tokenizer.released() for _ in range(REPEATS)])
    theirs = iter([SimpleTokenizer() for _ in range(REPEATS)])
    return row(
        "tokenize captions, first pass",
        *(UNIT, len(captions), PEER),
        lambda: next(ours)(captions),
        lambda: next(theirs)(captions),
    )


def tokenizing() -> Row:
    """Time tokenizers that have cached these captions."""
    captions = _captions()
    ours, theirs = Tokenizer.released(), SimpleTokenizer()
    assert ours(captions).equal(theirs(captions))
    return row("tokenize captions", UNIT, len(captions), PEER, lambda: ours(captions), lambda: theirs(captions))


def _captions() -> list[str]:
    captions: list[str] = pq.read_table(DATA / "captions.parquet", columns=["text"])["text"].to_pylist()
    return captions


def main() -> None:
    """Measure, and print the table."""
    print(f"| work | ours, {UNIT} | {PEER} | ratio |\n|---|---:|---:|---:|")
    for result in (first_pass(_captions()), tokenizing()):
        print(f"| {result.work} | {result.ours:,.0f} | {result.peer:,.0f} | {result.ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
