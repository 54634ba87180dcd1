"""Run two pieces of work in every order of their accesses to storage.

Each piece runs in a thread of its own and stops before each access that counts. Only one thread runs at a time; the
explorer decides which one goes on. It repeats the two with another decision at the last open place until none is left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from cluster import storage

ACCESSES = ("read_bytes", "write_bytes", "put_if_absent", "entries", "delete", "delete_files")
TIMEOUT_SECONDS = 30.0


@dataclass
class Side:
    """A piece of work that stops before each access to storage that counts."""

    name: str
    work: Callable[[], Any]
    step_of: Callable[[str, str], str | None]
    """The step that an access (function, URI) is; None if it is none."""
    first_step: str
    """Accesses before this one are not steps, either."""
    result: Any = None
    error: Exception | None = None
    next_step: str | None = None
    """The access before which it waits; None once it has ended."""
    steps: list[str] = field(default_factory=list)
    _go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _stopped: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Run until the first step."""
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()
        assert self._stopped.acquire(timeout=TIMEOUT_SECONDS)

    def advance(self) -> None:
        """Make the step, and run until the next one or the end."""
        assert self.next_step is not None
        self.steps.append(self.next_step)
        self._go.release()
        assert self._stopped.acquire(timeout=TIMEOUT_SECONDS), f"{self.name} hangs after {self.steps}"

    def before(self, access: str, uri: str) -> None:
        """Called in the side's thread before an access: stops if it is a step."""
        step = self.step_of(access, uri)
        if step is None or (step != self.first_step and not self.steps):
            return
        self.next_step = step
        self._stopped.release()
        self._go.acquire()

    def _run(self) -> None:
        try:
            self.result = self.work()
        except Exception as error:  # noqa: BLE001 - the tests look at it
            self.error = error
        self.next_step = None
        self._stopped.release()


def hook(patch: pytest.MonkeyPatch, sides: Callable[[], tuple[Side, ...]]) -> None:
    """Make the threads of the sides stop before their steps."""

    def hooked(name: str, access: Callable[..., Any]) -> Callable[..., Any]:
        def stop_and_access(uri: Any, *arguments: Any) -> Any:
            first = uri if isinstance(uri, str) else uri[0]
            for side in sides():
                if threading.current_thread().name == side.name:
                    side.before(name, first)
            return access(uri, *arguments)

        return stop_and_access

    for name in ACCESSES:
        patch.setattr(storage, name, hooked(name, getattr(storage, name)))


def orders(begin: Callable[[], tuple[Side, Side]], waits: Callable[[Side], bool]) -> Iterator[tuple[Side, Side]]:
    """Yield the two sides after each run, one for every order of their steps.

    Args:
        begin: makes the two sides anew.
        waits: whether the next step of a side only looks again at what has not changed since its last look. Such a step
            comes after the next one of the other side, if that has not ended.
    """
    prefix: list[int] = []
    while True:
        sides = begin()
        for side in sides:
            side.start()
        decisions: list[tuple[int, bool]] = []
        last: Side | None = None
        while any(side.next_step for side in sides):
            open_sides = [number for number, side in enumerate(sides) if side.next_step]
            if len(open_sides) == 2:
                open_sides = [n for n in open_sides if not (sides[n] is last and waits(sides[n]))] or open_sides
            chosen = open_sides[0]
            if len(open_sides) == 2:
                chosen = prefix[len(decisions)] if len(decisions) < len(prefix) else 0
                decisions.append((chosen, chosen == 0))
            sides[chosen].advance()
            last = sides[chosen]
        yield sides
        while decisions and not decisions[-1][1]:
            decisions.pop()
        if not decisions:
            return
        prefix = [chosen for chosen, _ in decisions[:-1]] + [1]
