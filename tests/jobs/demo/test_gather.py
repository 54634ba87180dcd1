from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.runs import Run
from jobs.demo import gather
from pipeline.eval.report.link_rot import LinkCount
from pipeline.reasons import SAFETY, Reason
from pipeline.schemas import LINK_ROT
from tests.pipeline.data.rows import candidates, fetched


def test_blocked_and_unsafe_pairs_are_not_shown(tmp_path: Path) -> None:
    reasons = [Reason.BLOCKED_URL, Reason.NOT_FOUND, *sorted(SAFETY), Reason.TOO_SMALL, None]
    captions = [f"caption {number}" for number in range(len(reasons))]
    early = candidates(url=captions, caption=captions, reason=reasons)
    late = fetched(url=captions, caption=captions, reason=reasons)
    crawl, curate = (Run.open(str(tmp_path / job), {}) for job in ("crawl", "curate"))
    for run, name, table in (
        *((crawl, name, early) for name in ("candidates", "unique")),
        *((run, name, late) for run, name in ((crawl, "fetched"), (curate, "placed"))),
    ):
        run.stage(name, 1).write(0, table)
    shown = gather.rejected_pairs(tmp_path)
    assert [pair.reason for pair in shown] == [Reason.NOT_FOUND, Reason.TOO_SMALL] * 4


def test_link_rot_is_read_from_the_crawls_table(tmp_path: Path) -> None:
    (tmp_path / "crawl").mkdir()
    table = pa.table([["host", "year"], ["a.example", None], [6, 9], [1, 3], [2, 3], [1, 1], [1, 1], [1, 1]], LINK_ROT)
    pq.write_table(table, tmp_path / "crawl" / "link_rot.parquet")
    host, year = gather.link_rot(tmp_path)
    expected = LinkCount(
        by="host", name="a.example", tried=6, kept=1, transient=2, permanent=1, policy=1, image_refused=1
    )
    assert host == expected
    assert (year.by, year.name, year.tried) == ("year", None, 9)
