"""Test which rounds of retries are run; the whole job is tested with real rounds (tests/jobs/test_crawl.py)."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.parts import Output
from cluster.runs import Run
from cluster.stages import Stages
from pipeline.data.crawl.retries import Retry
from pipeline.data.flows import retry_flow
from pipeline.data.flows.crawl_flow import CrawlConfig
from pipeline.data.safety.block_lists import NO_LISTS, BlockLists
from pipeline.reasons import Reason

MOVED, BUSY, GONE = Reason.MOVED, Reason.SERVER_ERROR, Reason.NOT_FOUND


class Killed(Exception):  # noqa: N818 (it stands for a signal)
    """Raised instead of running a round."""


class Crawl:
    """A crawl of two URLs; a script gives the reason of each URL in each generation."""

    def __init__(self, folder: Path, script: Sequence[tuple[Reason | None, ...]]) -> None:
        self.run = Run.open(str(folder), {"seed": 0})
        self.script = script
        self.dies_in = 0
        self.write(0)

    def write(self, generation: int) -> Output:
        stage = self.run.stage("fetched", 1, generation)
        reasons = pa.array(self.script[generation], pa.string())
        stage.write(0, pa.table({"generation": pa.array([generation] * len(reasons)), "reason": reasons}))
        return Output.of(stage)

    def again(
        self, _stages: Stages, fetched: Output, kinds: Sequence[Retry], _config: CrawlConfig, _lists: BlockLists
    ) -> Output:
        """Replacement for a round; does not rewrite complete generations."""
        assert fetched.stage.generation + 1 == len(kinds)
        if len(kinds) == self.dies_in:
            raise Killed
        return self.write(len(kinds))

    def attempt(self, retry: Retry | None, *, killed_in: int = 0, ends: bool = True) -> list[Retry]:
        """Run the job once, and return all rounds that have begun."""
        self.dies_in = killed_in
        fetched = Output.of(self.run.stage("fetched", 1))
        try:
            after = retry_flow.later_attempts(Stages(self.run), fetched, retry, CrawlConfig(), NO_LISTS)
        except Killed:
            ends = False
        begun = retry_flow._begun(self.run)
        if ends:
            assert after.stage.generation == len(begun)
            stages = [{"stage": f"answers-{number}"} for number in range(1, len(begun) + 1)]
            Path(self.run.uri, "funnel.json").write_text(json.dumps(stages))
        return begun


@pytest.fixture
def crawl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Crawl:
    """The moved row is found after two rounds. The busy row has moved when it is retried."""
    script = [(MOVED, BUSY), (MOVED, BUSY), (None, BUSY), (None, MOVED), (None, BUSY), (None, BUSY), (None, GONE)]
    crawl = Crawl(tmp_path / "run", script)
    monkeypatch.setattr(retry_flow, "attempt_again", crawl.again)
    return crawl


def test_moved_rows_are_followed_before_and_after_every_requested_round(crawl: Crawl) -> None:
    assert crawl.attempt(None) == ["moved", "moved"]
    assert crawl.attempt(None) == ["moved", "moved"]
    assert crawl.attempt("transient") == ["moved", "moved", "transient", "moved"]
    assert crawl.attempt(None) == ["moved", "moved", "transient", "moved"]
    assert crawl.attempt("transient") == ["moved", "moved", "transient", "moved", "transient"]
    assert crawl.attempt("policy")[5:] == [], "no row was dropped for such a reason"


@pytest.mark.parametrize("killed_in", [1, 2, 3, 4])
def test_a_killed_run_resumes_its_rounds(crawl: Crawl, killed_in: int) -> None:
    """The same command resumes the run, in whichever round it was killed."""
    expected: list[Retry] = ["moved", "moved", "transient", "moved"]
    assert crawl.attempt("transient", killed_in=killed_in) == expected[:killed_in]
    assert crawl.attempt("transient") == expected


def test_a_run_killed_before_it_wrote_its_funnel_repeats_no_round(crawl: Crawl) -> None:
    expected: list[Retry] = ["moved", "moved", "transient", "moved"]
    assert crawl.attempt("transient", ends=False) == expected
    assert crawl.attempt("transient") == expected
    assert crawl.attempt("transient") == [*expected, "transient"], "the previous run had ended"


def test_a_request_for_another_class_starts_another_round(crawl: Crawl) -> None:
    crawl.script = [*crawl.script[:4], (None, Reason.ROBOTS_TXT), (None, BUSY)]
    assert crawl.attempt("transient", killed_in=3) == ["moved", "moved", "transient"]
    assert crawl.attempt("policy") == ["moved", "moved", "transient", "moved", "policy"]
