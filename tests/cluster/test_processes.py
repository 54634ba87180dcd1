import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from cluster.processes import descendants, kill


def test_a_whole_tree_is_found_and_ended() -> None:
    before = set(descendants())
    code = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'input()']).pid, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        assert [pid for pid in descendants() if pid not in before] == [child.pid, grandchild]
        kill([child.pid, grandchild])
        assert child.wait(timeout=10) == -signal.SIGKILL
        deadline = time.monotonic() + 10
        while _runs(grandchild) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not _runs(grandchild)
    kill([child.pid])  # it is gone, which is no error


def test_it_is_not_its_own_descendant() -> None:
    assert os.getpid() not in descendants()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
