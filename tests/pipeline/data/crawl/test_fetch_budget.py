import asyncio
from collections.abc import Sequence

from pipeline.data.crawl.fetch_budget import TABLE_NUMBER, FetchBudget


async def settle() -> None:
    """Let the event loop run until every task waits for the budget."""
    for _ in range(5):
        await asyncio.sleep(0)


async def acquire_and_record(budget: FetchBudget, table_number: int, started: list[int]) -> None:
    TABLE_NUMBER.set(table_number)
    await budget.acquire()
    started.append(table_number)


def test_the_first_table_starts_first() -> None:
    async def run() -> list[int]:
        budget, started = FetchBudget(1, 100), list[int]()
        await budget.acquire()
        tasks = [
            asyncio.create_task(acquire_and_record(budget, table_number, started)) for table_number in (2, 1, 2, 0)
        ]
        await settle()
        assert started == []
        for _ in tasks:
            budget.release()
            await settle()
        return started

    assert asyncio.run(run()) == [0, 1, 2, 2]


def started_of(waiting: Sequence[int], num_requests: int, max_in_flight: int = 8, max_bytes: int = 100) -> int:
    """The number of requests that start while bodies of these sizes wait to be decoded."""

    async def run() -> int:
        budget, started = FetchBudget(max_in_flight, max_bytes), list[int]()
        for num_bytes in waiting:
            budget.change_waiting(num_bytes)
        tasks = [asyncio.create_task(acquire_and_record(budget, 0, started)) for _ in range(num_requests)]
        await settle()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return len(started)

    return asyncio.run(run())


def test_idle_decoders_let_all_requests_start() -> None:
    assert started_of([], 20) == 8
    assert started_of([50, -50] * 100, 20) == 8  # regardless of the average size of bodies


def test_busy_decoders_limit_the_number_of_requests() -> None:
    assert started_of([100], 20) == 0
    assert started_of([26], 20) == 0
    usual_20 = [20, -20] * 500
    assert started_of([*usual_20, 20], 20, max_bytes=110) == 5


def test_a_cancelled_request_uses_no_budget() -> None:
    async def run() -> list[int]:
        budget, started = FetchBudget(1, 100), list[int]()
        await budget.acquire()
        cancelled, granted, last = (
            asyncio.create_task(acquire_and_record(budget, table_number, started)) for table_number in (0, 1, 2)
        )
        await settle()
        cancelled.cancel()
        await settle()
        budget.release()
        granted.cancel()  # cancelled after its request was granted, before the task has resumed
        await settle()
        await last
        return started

    assert asyncio.run(run()) == [2]
