"""A job that is being stopped has its workers save. A room of its own: its actor need not load torch."""

import asyncio


class Stop:
    """An actor through which a job that is being stopped has its workers save, and hears that they have."""

    def __init__(self) -> None:
        self._asked, self._saved = asyncio.Event(), asyncio.Event()

    async def ask(self) -> None:
        """For the job: ask for a checkpoint, and return when it is written."""
        self._saved.clear()  # of workers that have left a node
        self._asked.set()
        await self._saved.wait()

    async def asked(self) -> None:
        """For the workers: return when the job asks."""
        await self._asked.wait()

    async def saved(self) -> None:
        """For the workers: the checkpoint is written."""
        self._saved.set()
