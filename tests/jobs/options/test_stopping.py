"""Stop real processes without Ray; tests/faults/test_stopping.py has those with Ray, and the slow ones."""

import signal
import subprocess
import sys

import pytest

from jobs.options.stopping import REPEAT_SECONDS, STOP_SECONDS, Signals
from tests.jobs.options.waiting import stop, waiting_job

INTERRUPTED_SECONDS = 3.0
"""Ends within this time where the main thread can be interrupted, on a machine that is busy."""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_silent_storage_is_left_at_once(number: signal.Signals, status: int) -> None:
    with waiting_job("storage") as process:
        stopped = stop(process, number)
    assert (stopped.status, stopped.out, stopped.err) == (status, "bye\n", "")
    assert stopped.seconds < INTERRUPTED_SECONDS


def test_threads_that_wait_for_a_silent_storage_do_not_outlive_the_bound() -> None:
    with waiting_job("pool") as process:
        stopped = stop(process, signal.SIGTERM)
    assert (stopped.status, stopped.err, stopped.left) == (143, "", [])
    assert STOP_SECONDS <= stopped.seconds < 5.0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_at_once(number: signal.Signals, status: int) -> None:
    with waiting_job("pool") as process:
        stopped = stop(process, number, number, interval=1.0)
    assert (stopped.status, stopped.err) == (status, "")
    assert 1.0 < stopped.seconds < STOP_SECONDS


def test_a_signal_that_is_sent_twice_is_one_request() -> None:
    """`timeout` sends it to the process and to the process group."""
    with waiting_job("cleanup") as process:
        stopped = stop(process, signal.SIGTERM, signal.SIGTERM, interval=REPEAT_SECONDS / 10)
    assert (stopped.status, stopped.out) == (143, "bye\n"), "it has cleaned up"


def test_an_error_of_cleaning_up_does_not_hide_the_signal() -> None:
    with waiting_job("failing cleanup") as process:
        stopped = stop(process, signal.SIGTERM)
    assert (stopped.status, stopped.out, stopped.err) == (143, "bye\n", "")


def test_a_thread_that_python_joins_at_exit_is_not_waited_for() -> None:
    with waiting_job("exit") as process:
        stopped = stop(process, signal.SIGTERM)
    assert (stopped.status, stopped.err) == (143, "")
    assert stopped.seconds < INTERRUPTED_SECONDS


def test_signals_of_a_forked_child_are_its_own() -> None:
    with waiting_job("child") as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "bye\n", "")


def test_closing_gives_the_signals_back() -> None:
    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = [signal.getsignal(number) for number in numbers]
    with Signals() as signals:
        assert [signal.getsignal(number) for number in numbers] != handlers
    signals.close()
    assert [signal.getsignal(number) for number in numbers] == handlers
    assert signal.set_wakeup_fd(-1) == -1


def test_a_whole_tree_of_processes_is_ended() -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    code = f"""
import subprocess, sys
from jobs.options.stopping import kill_descendants
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
assert child.stdout.readline() == b"1\\n"  # the grandchild's
kill_descendants()
kill_descendants()  # with none left
assert child.stdout.read() == b"", "the grandchild has ended, too"
print(child.wait())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr) == (f"{-signal.SIGKILL}\n", "")
