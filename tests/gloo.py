"""Run a module as several ranks of a gloo group, each in a local process."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence


def run_ranks(
    module: str, num_ranks: int, arguments: Sequence[object] = (), timeout_seconds: float | None = None
) -> list[str]:
    """Run `python -m MODULE RANK ARGUMENTS...` for each rank, and return what each printed. All must exit with 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(rank), *map(str, arguments)],
            env=environment, stdout=subprocess.PIPE, text=True,
        )
        for rank in range(num_ranks)
    ]  # fmt: skip
    printed = [process.communicate(timeout=timeout_seconds)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * num_ranks
    return printed
