"""One job trains in a folder at a time, and through the actor that sees to it, its workers are told to save and leave.

A room of its own: its actor need not load torch.
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
TAKEN_SECONDS = 15.0
"""How long the name of a job that has just been killed may still be taken."""


class RunLock:
    """An actor through which a job has its workers save and leave, and hears that they have."""

    def __init__(self) -> None:
        self._asked, self._saved = asyncio.Event(), asyncio.Event()

    async def ask(self) -> None:
        """For a job that is being stopped: ask for a checkpoint, and return when it is written."""
        self._saved.clear()  # of workers that have left before
        self._asked.set()
        await self._saved.wait()

    async def move(self) -> None:
        """Ask the workers that are there to leave, as those that will be there instead are more or fewer."""
        asked, self._asked = self._asked, asyncio.Event()
        asked.set()

    async def asked(self) -> None:
        """For the workers: return when they are asked."""
        await self._asked.wait()

    async def saved(self) -> None:
        """For the workers: the checkpoint is written."""
        self._saved.set()


@contextlib.contextmanager
def only_job(output: str) -> Iterator[Any]:
    """The actor of the only job of this cluster that trains in a folder; it goes when the job ends, however it ends.

    Raises:
        ValueError: another one trains there.
    """
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor = ray.remote(RunLock).options(
        name=actor_name(output), namespace=NAMESPACE, num_cpus=0, scheduling_strategy=node,
        max_restarts=-1, max_task_retries=-1,  # else its death would look like its word
    )  # fmt: skip
    deadline = time.monotonic() + TAKEN_SECONDS
    while True:
        try:
            run_lock: Any = actor.remote()
            break
        except ActorAlreadyExistsError:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"output={output}: another job trains there now; wait for it, stop it, or choose another output"
                ) from None
        time.sleep(0.2)
    try:
        yield run_lock
    finally:
        ray.kill(run_lock)


def actor_name(output: str) -> str:
    """What the actor of a folder's job is called."""
    return f"stop-{sha256(output.encode()).hexdigest()[:16]}"
