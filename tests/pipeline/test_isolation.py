import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline import isolation
from pipeline.isolation import DiedError, Isolated, TooSlowError

MODULE = "tests.pipeline.test_isolation"


def behave(data: bytes) -> bytes:
    """What the child does with a message."""
    match data.split(b" "):
        case [b"sleep"]:
            time.sleep(60)
        case [b"spin"]:
            while True:
                pass
        case [b"exit"]:
            os._exit(3)
        case [b"raise"]:
            raise ValueError
        case [b"allocate"]:
            return bytes(2**30)
        case [b"environment"]:
            return " ".join(os.environ).encode()
        case [b"print"]:
            print("a library says something")
        case [b"pid"]:
            return str(os.getpid()).encode()
    return data[::-1]


@pytest.fixture(scope="module")
def child() -> Isolated:
    return Isolated(MODULE, "behave", memory_gib=0.5)


@pytest.mark.parametrize("num_bytes", [0, 1, 5_000_000, 10_000_000])
def test_messages_of_all_sizes_come_back(child: Isolated, num_bytes: int) -> None:
    data = b"ab" * num_bytes
    assert child(data, 30) == data[::-1]


@pytest.mark.parametrize("command", [b"sleep", b"spin"])
def test_a_call_that_takes_too_long_is_ended(child: Isolated, command: bytes) -> None:
    child(b"warm", 30)
    began = time.monotonic()
    with pytest.raises(TooSlowError):
        child(command, 0.3)
    assert time.monotonic() - began < 5
    assert child(b"ab", 30) == b"ba", "the next call has a child"


@pytest.mark.parametrize("command", [b"exit", b"raise", b"allocate"])
def test_a_child_that_dies_costs_one_call(child: Isolated, command: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DiedError):
        child(command, 30)
    assert child(b"ab", 30) == b"ba"
    capfd.readouterr()


def test_a_child_has_no_secrets_and_its_prints_do_no_harm(child: Isolated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    child.close()
    assert b"AWS" not in child(b"environment", 30)
    assert child(b"print", 30) == b"tnirp"


def test_closing_ends_the_child(child: Isolated) -> None:
    number = child(b"pid", 30).decode()
    child.close()
    assert not Path(f"/proc/{number}").exists()


def test_a_module_that_cannot_be_imported_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="no_such_module did not start"):
        Isolated("no_such_module", "x", memory_gib=1)(b"", 1)
    assert "No module named" in capfd.readouterr().err


def test_a_child_outlives_the_thread_that_started_it(child: Isolated) -> None:
    child.close()
    numbers: list[bytes] = []
    thread = threading.Thread(target=lambda: numbers.append(child(b"pid", 30)))
    thread.start()
    thread.join()
    time.sleep(0.2)  # the kernel's signal would have ended it by now
    assert [child(b"pid", 30)] == numbers


def test_a_child_that_dies_between_two_calls_costs_none(child: Isolated) -> None:
    number = int(child(b"pid", 30))
    os.kill(number, signal.SIGKILL)
    while Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert child(b"ab", 30) == b"ba"


def test_a_child_that_does_not_read_costs_one_call(child: Isolated) -> None:
    os.kill(int(child(b"pid", 30)), signal.SIGSTOP)
    with pytest.raises(TooSlowError):
        child(bytes(8 * 2**20), 0.3)
    assert child(b"ab", 30) == b"ba"


def test_an_interrupt_while_the_child_starts_moves_no_answer(child: Isolated, monkeypatch: pytest.MonkeyPatch) -> None:
    child.close()
    receive = isolation._receive

    def interrupted(_process: subprocess.Popen[bytes], _deadline: float) -> bytes:
        monkeypatch.setattr(isolation, "_receive", receive)
        raise KeyboardInterrupt

    monkeypatch.setattr(isolation, "_receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        child(b"ab", 30)
    assert child(b"cd", 30) == b"dc"


def test_each_of_many_threads_gets_its_own_answer(child: Isolated) -> None:
    calls = [b"%d" % number * 50_000 for number in range(100, 164)]
    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(lambda data: child(data, 30), calls)) == [data[::-1] for data in calls]
