"""A minimal job for the tests of jobs/options/launch.py."""

import time
from dataclasses import dataclass, field
from typing import Literal

from cluster.resources import Pool
from cluster.session import SessionConfig, session
from jobs.options.launch import launch


@dataclass(frozen=True, kw_only=True)
class VoiceConfig:
    """Nested options, whose values are not used."""

    volume: float = 1.0
    pool: Pool = field(default_factory=Pool)
    accents: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GreetJob:
    """Print a greeting, or fail in the way that `fail` requests."""

    output: str
    names: tuple[str, ...] = ()
    tone: Literal["warm", "cold"] = "warm"
    fail: Literal["", "user", "bug", "wait"] = ""
    voice: VoiceConfig = field(default_factory=VoiceConfig)
    session: SessionConfig = field(default_factory=SessionConfig)


def main(job: GreetJob) -> None:
    if job.fail == "user":
        raise ValueError("names: nobody to greet;\n  give at least one")
    if job.fail == "bug":
        raise KeyError("ours")
    with session(job.session):
        try:
            print("hello", *job.names, flush=True)
            if job.fail == "wait":
                time.sleep(60)
        finally:
            print("bye", flush=True)


if __name__ == "__main__":
    launch(GreetJob, main)
