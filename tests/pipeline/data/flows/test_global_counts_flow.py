import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster.runs import Run
from cluster.stages import Stages
from pipeline.data.balance.balancing import BalanceConfig, MaxPairs, sketch, thresholds
from pipeline.data.crawl import link_rot as rot
from pipeline.data.flows import global_counts_flow
from pipeline.reasons import Reason
from pipeline.schemas import LINK_ROT, SKETCHES, THRESHOLDS
from tests.perf.corpus.balancing import Corpus
from tests.pipeline.data.rows import fetched

pytestmark = pytest.mark.cluster

NUM_QUERIES, NUM_PARTS, NUM_BUCKETS = 300, 5, 3


def read(corpus: Corpus) -> global_counts_flow.ReadColumns:
    return lambda part, columns: corpus.part(part).select(list(columns))


@pytest.mark.parametrize("k", [40, np.arange(NUM_QUERIES) % 50 + 5], ids=["one limit", "limits by query"])
def test_limits_over_parts_equal_limits_over_all_pairs_and_resume(
    k: MaxPairs,
    ray_local: None,  # noqa: ARG001
    tmp_path: Path,
) -> None:
    corpus = Corpus(num_pairs=9_001, num_parts=NUM_PARTS, num_queries=NUM_QUERIES)
    pairs = pa.concat_tables([corpus.part(part) for part in range(NUM_PARTS)])
    whole = thresholds(sketch(pairs, k, 0), k, "paper")
    assert (whole["threshold"].to_numpy() < 2**64 - 1).sum() > 10
    for num_parts_done in (NUM_PARTS, 1):
        stages = Stages(Run.open(str(tmp_path), {}))
        limits = global_counts_flow.limits(stages, "", NUM_PARTS, read(corpus), BalanceConfig(), k, NUM_BUCKETS)
        assert limits.sort_by("query_id") == whole
        done = {event["stage"]: event["parts"] for event in stages.events.read()}  # the last event of each stage
        assert done["sketches"] == num_parts_done
        (tmp_path / "sketches" / "_part-00002.json").unlink()  # as if the worker had died
        for manifest in (tmp_path / "limits").glob("*.json"):
            manifest.unlink()


def test_totals_without_pairs_are_empty(ray_local: None, tmp_path: Path) -> None:  # noqa: ARG001
    stages = Stages(Run.open(str(tmp_path), {}))
    assert global_counts_flow.totals(stages, "kept_", 2, lambda *_: None, 2) == SKETCHES.empty_table()
    assert global_counts_flow.limits(stages, "", 2, lambda *_: None, BalanceConfig(), 5, 2) == THRESHOLDS.empty_table()


def test_link_rot_over_parts_equals_link_rot_over_all_rows(ray_local: None, tmp_path: Path) -> None:  # noqa: ARG001
    reasons = [None, Reason.NOT_FOUND, Reason.BALANCED_OUT, Reason.TIMEOUT, Reason.ROBOTS_TXT, Reason.TOO_SMALL]
    rows = fetched(
        url=[f"http://i{n % 11}.a{n % 7}.example/{n}" for n in range(200)],
        page_date=[datetime.datetime(2014 + n % 5, 1, 1, tzinfo=datetime.UTC) if n % 6 else None for n in range(200)],
        reason=[reasons[n % 13 % 6] for n in range(200)],
    )
    parts = [rows.slice(0, 150), rows.slice(150), rows.slice(200)]
    stages = Stages(Run.open(str(tmp_path), {}))
    output = stages("fetched", 3, parts.__getitem__)
    found = global_counts_flow.link_rot(stages, output, 2, num_names=4)
    assert found == rot.busiest_names(rot.count(rows), 4)
    assert found.num_rows == 4 + 4 + 6
    empty = stages("nothing", 1, lambda _: None)
    assert (
        global_counts_flow.link_rot(Stages(Run.open(str(tmp_path / "empty"), {})), empty, 2) == LINK_ROT.empty_table()
    )
