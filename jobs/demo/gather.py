"""Collect the data of the demo's report from the folders of its jobs. Returns samples of rows, not all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.parts import Output
from cluster.runs import Run
from pipeline.data.snapshots.snapshot import Snapshot
from pipeline.eval.report.link_rot import LinkCount
from pipeline.eval.report.queries import QueryCount
from pipeline.eval.report.report import Example, KeptPair, RejectedPair, Stage
from pipeline.reasons import SAFETY, Reason
from pipeline.schemas import SKETCHES

STAGES = {
    "candidates": "extracted, captions checked, matched",
    "unique": "one pair for each address",
    "fetched": "fetched, checked and resized",
    "placed": "one pair for each picture, balanced",
}
"""The stages that drop rows, with their titles in the funnel."""
PACKAGES = ("ray", "torch", "timm", "pyarrow", "img2dataset", "tokenizers", "numpy", "pillow")
NUM_KEPT_SHOWN = 48
NUM_REJECTED_PER_REASON = 2
NUM_EXAMPLES = 6


def funnel(folder: Path) -> list[Stage]:
    """The funnel of the crawl and the curation below a folder."""
    records = [json.loads((folder / job / "funnel.json").read_text()) for job in ("crawl", "curate")]
    stages = {record["stage"]: record for records_of_job in records for record in records_of_job}
    return [
        Stage(
            name=title,
            rows_in=stages[name]["kept"] + sum(stages[name]["dropped"].values()),
            kept=stages[name]["kept"],
            dropped=stages[name]["dropped"],
        )
        for name, title in STAGES.items()
    ]


def query_counts(folder: Path, snapshot: Snapshot) -> list[QueryCount]:
    """The number of pairs of each query, before and after balancing."""
    queries = pq.read_table(folder / "queries" / "queries.parquet")
    before = _counts(_output(folder / "crawl", "totals").table(SKETCHES))
    after = _counts(snapshot.query_counts())
    columns = (queries[name].to_pylist() for name in ("query_id", "text", "source"))
    return [
        QueryCount(text, source, before.get(query, 0), after.get(query, 0))
        for query, text, source in zip(*columns, strict=True)
    ]


def link_rot(folder: Path) -> list[LinkCount]:
    """The outcomes of the URLs that the crawl tried."""
    return [LinkCount(**row) for row in pq.read_table(folder / "crawl" / "link_rot.parquet").to_pylist()]


def kept_pairs(snapshot: Snapshot) -> list[KeptPair]:
    """The first pairs of the snapshot. They are a random sample, because the snapshot is shuffled."""
    table = snapshot.shards[0].read_row_group(0, columns=["image", "caption", "url"])
    return [KeptPair(**row) for row in table.slice(0, NUM_KEPT_SHOWN).to_pylist()]


def rejected_pairs(folder: Path) -> list[RejectedPair]:
    """A few rejected rows for each reason, with their images if available. Omits rows blocked or rejected as unsafe."""
    return [
        RejectedPair(
            image=row["image"] if reason not in _WITHOUT_IMAGE else None,
            caption=row["caption"] or "",
            url=row["url"] or row["page_url"] or "",
            reason=reason,
            stage=STAGES[name],
        )
        for job, name in (("crawl", "candidates"), ("crawl", "unique"), ("crawl", "fetched"), ("curate", "placed"))
        for reason, row in _rejected(_output(folder / job, name), fetched=name in {"fetched", "placed"})
        if reason not in SAFETY
    ]


_WITHOUT_IMAGE = frozenset({Reason.NOT_AN_IMAGE, Reason.CORRUPT_IMAGE, Reason.TOO_MANY_PIXELS})
"""Reasons of rows without a displayable image."""


def _rejected(output: Output, fetched: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    image = "jpg" if fetched else "image"
    num_shown: dict[str, int] = {}
    for part in range(len(output.parts)):
        table = output.dropped(part, ["url", image, "caption", "page_url", "reason"])
        for row in table.to_pylist() if table is not None else []:
            reason = row["reason"]
            if row["caption"] is not None and num_shown.get(reason, 0) < NUM_REJECTED_PER_REASON:
                num_shown[reason] = num_shown.get(reason, 0) + 1
                yield reason, row | {"image": row[image]}


def examples(folder: Path, names: Sequence[str]) -> list[Example]:
    """Up to NUM_EXAMPLES right and NUM_EXAMPLES wrong predictions of each evaluation set, spread over the set."""
    chosen = []
    for name in names:
        predictions = pq.read_table(folder / "benchmark" / "predictions" / f"{name}.parquet").to_pylist()
        images = pq.read_table(folder / "sets" / name / "test.parquet", columns=["image"])["image"]
        for right in (True, False):
            rows = [row for row in predictions if (row["truth"] == row["predicted"]) is right]
            for row in rows[:: max(1, len(rows) // NUM_EXAMPLES)][:NUM_EXAMPLES]:
                ranked = list(zip(row["labels"], row["probabilities"], strict=True))
                chosen.append(Example(images[row["sample"]].as_py(), row["truth"], ranked, name))
    return chosen


def versions() -> dict[str, str]:
    """The versions of the packages that influence the results."""
    return {name: version(name) for name in PACKAGES}


def _counts(table: pa.Table) -> Mapping[int, int]:
    return dict(zip(table["query_id"].to_pylist(), table["num_pairs"].to_pylist(), strict=True))


def _output(folder: Path, name: str) -> Output:
    """Open the output of a stage. Its files determine the number of parts."""
    run = Run.read(str(folder), option="output")
    return run.output(name, len(list((folder / name).glob("_part-*.json"))))
