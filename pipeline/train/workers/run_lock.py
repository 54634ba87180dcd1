"""Let only one job at a time train in a folder. The same actor passes requests to save and leave to the workers.

A separate module so that the actor does not import torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import ray
from ray.exceptions import ActorAlreadyExistsError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

NAMESPACE = "clip-training"
NAME_RELEASE_SECONDS = 15.0
"""How long the actor name of a job that was just killed may still be in use."""


class RunLock:
    """The actor that passes requests to save and leave from a job to its workers, and the confirmation back."""

    def __init__(self) -> None:
        self._leave_requested, self._saved = asyncio.Event(), asyncio.Event()

    async def save_and_leave(self) -> None:
        """Called by a job that is being stopped: ask all workers to save and leave, and wait for the checkpoint."""
        self._saved.clear()  # set by workers that left earlier
        self._leave_requested.set()
        await self._saved.wait()

    async def leave_for_resize(self) -> None:
        """Ask the present workers to save and leave, because a group of another size will replace them."""
        requested, self._leave_requested = self._leave_requested, asyncio.Event()
        requested.set()

    async def leave_requested(self) -> None:
        """Called by the workers: wait for a request to save and leave."""
        await self._leave_requested.wait()

    async def saved(self) -> None:
        """Called by the workers: confirm that the checkpoint is written."""
        self._saved.set()


@contextlib.contextmanager
def only_job(output: str) -> Iterator[Any]:
    """Start the actor that makes this the only job of the cluster that trains in a folder. It ends with the job.

    Raises:
        ValueError: another job trains in the folder.
    """
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor = ray.remote(RunLock).options(
        name=actor_name(output), namespace=NAMESPACE, num_cpus=0, scheduling_strategy=node,
        max_restarts=-1, max_task_retries=-1,  # otherwise its death would look like a request
    )  # fmt: skip
    deadline = time.monotonic() + NAME_RELEASE_SECONDS
    while True:
        try:
            run_lock: Any = actor.remote()
            break
        except ActorAlreadyExistsError:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"output={output}: another job trains in it now; wait for it, stop it, or choose another output"
                ) from None
        time.sleep(0.2)
    try:
        yield run_lock
    finally:
        ray.kill(run_lock)


def actor_name(output: str) -> str:
    """The name of the actor of the job that trains in a folder."""
    return f"stop-{sha256(output.encode()).hexdigest()[:16]}"
