"""Wait until no task and no actor of this process's Ray holds a CPU."""

import time

import ray

TIMEOUT_SECONDS = 15.0


def wait_until_all_cpus_are_free() -> None:
    """Raise AssertionError if CPUs are still taken after some seconds."""
    started = time.monotonic()
    while True:
        free = ray.available_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
        total = ray.cluster_resources()["CPU"]  # type: ignore[no-untyped-call]
        if free == total:
            return
        assert time.monotonic() - started < TIMEOUT_SECONDS, f"{total - free:g} of {total:g} CPUs are still taken"
        time.sleep(0.1)
