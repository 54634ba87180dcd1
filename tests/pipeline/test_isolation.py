import os
import time
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("num_bytes", [0, 1, 5_000_000])
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
