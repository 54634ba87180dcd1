"""Lines about storage that does not answer."""

import logging
import multiprocessing
import time
from multiprocessing.queues import SimpleQueue

import pytest

from cluster.stores import waiting
from cluster.stores.waiting import waiting_for


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.2)
    monkeypatch.setattr(waiting, "_POLL_SECONDS", 0.02)


def wait(what: str, seconds: float) -> None:
    with waiting_for(what):
        time.sleep(seconds)


def test_a_slow_answer_is_shown_more_and_more_seldom(caplog: pytest.LogCaptureFixture) -> None:
    wait("the watcher polls once a second until it notices", 1.2)
    caplog.clear()
    wait("reading s3://bucket/key", 1.0)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"no answer for {seconds} s: reading s3://bucket/key" for seconds in (0, 0, 1)]
    caplog.clear()
    wait("reading s3://bucket/other", 0.05)
    assert caplog.records == []


def _in_child(lines: "SimpleQueue[str]") -> None:
    handler = logging.Handler()
    handler.emit = lambda record: lines.put(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("clip").addHandler(handler)
    wait("of the child", 0.5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork with threads, which is what is tested
def test_a_forked_process_has_a_watcher_of_its_own() -> None:
    wait("of the parent", 0.05)
    context = multiprocessing.get_context("fork")
    lines: SimpleQueue[str] = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(lines,))
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert lines.get() == "no answer for 0 s: of the child"
