"""Stop jobs that cannot be interrupted, and jobs on a local Ray."""

import signal

import pytest

from jobs.options.stopping import STOP_SECONDS
from tests.jobs.options.wait import What
from tests.jobs.options.waiting import stop, waiting_job

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("what", ["native", "stubborn", "pipe", "join"])
def test_a_job_that_cannot_be_interrupted_ends_within_the_bound(what: What) -> None:
    """Native code; code that catches SystemExit; a pipe that nobody reads; a thread that Python joins at exit."""
    with waiting_job(what) as process:
        stopped = stop(process, signal.SIGTERM, read=what != "pipe")
    assert (stopped.status, stopped.err, stopped.left) == (143, "", [])
    assert STOP_SECONDS <= stopped.seconds < 5.0


@pytest.mark.cluster
@pytest.mark.parametrize("what", ["task", "data"])
def test_tasks_that_wait_for_a_silent_storage_end_with_the_job(what: What) -> None:
    with waiting_job(what) as process:
        stopped = stop(process, signal.SIGTERM)
    assert (stopped.status, stopped.err, stopped.left) == (143, "", [])
    assert stopped.seconds < 5.0


@pytest.mark.cluster
@pytest.mark.parametrize("signals", [1, 2])
def test_a_local_ray_that_is_starting_ends_with_the_job(signals: int) -> None:
    with waiting_job("start") as process:
        stopped = stop(process, *[signal.SIGTERM] * signals, interval=1.0)
    assert (stopped.status, stopped.left) == (143, [])
    assert stopped.seconds < 5.0


@pytest.mark.cluster
def test_a_second_signal_ends_a_local_ray_as_well() -> None:
    with waiting_job("task") as process:
        stopped = stop(process, signal.SIGTERM, signal.SIGTERM, interval=0.7)
    assert (stopped.status, stopped.left) == (143, [])
    assert stopped.seconds < STOP_SECONDS
