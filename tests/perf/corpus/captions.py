"""Measure what the caption rules drop and keep: `python -m tests.perf.corpus.captions`; needs CLIP_DATA.

- Texts beside images of real pages: the distinct candidates of the web archives and of pages.parquet. All 710 were
  judged by eye: good (describes or names what is shown, in English), junk, or foreign (another language).
  captions_judged.txt has the verdicts by the hash of the text. A good text that is dropped is wrong, and so is any
  other that is kept. 200 dropped and 200 kept ones are drawn by the hash, and 200 further ones of each; `--show` prints
  them. `--sets FILE` keeps the draws for a run with other rules, which then reports on the same texts, too.
- Human captions of photographs, English and German; all of them are good.

The rules were made with these pages at hand, so their share of wrong ones is a lower bound for other pages.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.demo.web.archive import Exchange, write_archive
from pipeline.data.sources.extract import candidates_of
from pipeline.data.text.caption_rules import CaptionConfig, apply_rules
from pipeline.hashing import hash128
from pipeline.schemas import CANDIDATES, conform
from tests.perf.crawl.matching import DATA

JUDGED = Path(__file__).parent / "captions_judged.txt"
SIZE = 200
"""Number of texts in a draw."""


@dataclass(frozen=True)
class Ruled:
    """What the rules made of a text."""

    text: str
    reason: str | None
    stored: str
    verdict: str | None
    """good, junk or foreign; None if nobody has judged the text."""

    @property
    def is_wrong(self) -> bool:
        """Whether the rules and the verdict differ."""
        return self.verdict is not None and (self.verdict == "good") != (self.reason is None)


def texts_of_pages(folder: Path) -> list[str]:
    """The distinct texts beside images of all archives and pages of a folder."""
    archives = [file.read_bytes() for file in sorted(folder.glob("*.gz")) if ".wet." not in file.name]
    pages = [
        Exchange(url=page["url"], headers={"Content-Type": "text/html"}, body=page["html"])
        for page in pq.read_table(folder / "pages.parquet").to_pylist()
    ]
    with tempfile.TemporaryDirectory() as made:
        write_archive(Path(made) / "pages.warc.gz", pages)
        archives.append(Path(made, "pages.warc.gz").read_bytes())
    tables = [candidates_of(archive) for archive in archives]
    table = pa.concat_tables([table.select(["caption", "reason"]) for table in tables])
    return sorted({row["caption"] for row in table.to_pylist() if row["caption"] and row["reason"] is None})


def verdicts() -> dict[str, str]:
    """The verdict on each judged text, by its `key`."""
    return dict(line.split() for line in JUDGED.read_text(encoding="ascii").splitlines())


def key(text: str) -> str:
    """The beginning of a text's hash; texts are drawn in its order."""
    return hash128(text)[:12]


def ruled(texts: Sequence[str], language: str = "en", verdict: str | None = None) -> list[Ruled]:
    """Apply the rules, with their defaults, to texts; `verdict` is on texts that nobody has judged one by one."""
    table = pa.table({"caption": list(texts), "url": [""] * len(texts), "pair_id": [""] * len(texts)})
    done = apply_rules(conform(table, CANDIDATES), CaptionConfig(language=language))
    judged = verdicts()
    columns = zip(texts, done["reason"].to_pylist(), done["caption"].to_pylist(), strict=True)
    return [Ruled(text, reason, stored, judged.get(key(text), verdict)) for text, reason, stored in columns]


def report(name: str, rows: Iterable[Ruled]) -> str:
    """One line: the number of texts and of wrong ones, and the reasons."""
    rows = list(rows)
    wrong = sum(row.is_wrong for row in rows)
    reasons = Counter(row.reason for row in rows if row.reason)
    dropped = reasons.total()
    share = f"{100 * dropped / max(len(rows), 1):.2f}%"
    why = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    unjudged = sum(row.verdict is None for row in rows)
    judged = f"{wrong} wrong" + (f" ({unjudged} not judged)" if unjudged else "")
    return f"{name}: {len(rows):,}, {dropped:,} dropped ({share}), {judged}. {why}"


def draws(rows: Iterable[Ruled]) -> dict[str, list[Ruled]]:
    """Two draws of dropped texts and two of kept ones; fewer where there are no more."""
    ordered = sorted(rows, key=lambda row: key(row.text))
    dropped, kept = ([row for row in ordered if (row.reason is None) is is_kept] for is_kept in (False, True))
    groups = {"dropped": dropped, "kept": kept}
    return {
        f"{name}, draw {draw + 1}": group[SIZE * draw : SIZE * (draw + 1)]
        for name, group in groups.items()
        for draw in range(2)
    }


def main() -> None:
    """Print the shares, and the texts with `--show`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="print each drawn text with its reason and verdict")
    parser.add_argument("--sets", type=Path, help="file that keeps the draws; if it exists, the same texts are judged")
    options = parser.parse_args()
    show = options.show
    pages = ruled(texts_of_pages(DATA / "web"))
    groups = {"all": pages, "all dropped": [row for row in pages if row.reason]}
    groups["all kept"] = [row for row in pages if not row.reason]
    groups |= draws(pages)
    if options.sets and options.sets.exists():
        for name, texts in json.loads(options.sets.read_text()).items():
            groups[f"of the other rules, {name}"] = [row for row in pages if row.text in texts]
    elif options.sets:
        options.sets.write_text(json.dumps({name: [row.text for row in rows] for name, rows in draws(pages).items()}))
    for name, rows in groups.items():
        print(report(f"pages, {name}", rows))
        if show and "draw" in name:
            for row in rows:
                mark = "WRONG" if row.is_wrong else "     "
                print(f"  {mark} {row.verdict or 'not judged'} | {row.reason or 'kept'} | {row.stored[:120]}")
    flickr30k = pq.read_table(DATA / "captions.parquet")["text"].to_pylist()
    for name, language, texts in (
        ("Flickr30k", "en", flickr30k),
        ("Flickr8k", "en", _captions("photos.parquet")),
        ("Multi30k, German", "de", _captions("sets/photos_german.parquet")),
    ):
        rows = ruled(texts, language, verdict="good")
        print(report(name, rows), f"; {sum(row.text != row.stored for row in rows):,} changed")


def _captions(file: str) -> list[str]:
    captions = pq.read_table(DATA / file, columns=["captions"])["captions"]
    return [text for texts in captions.to_pylist() for text in texts]


if __name__ == "__main__":
    main()
