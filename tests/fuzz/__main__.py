"""The command line of the fuzzer."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

MAX_SECONDS, MAX_MIB, MAX_INPUT_BYTES = 10, 3_000, 65_536


def main() -> None:
    """Fuzz one target. The process ends with status 0 after `--seconds`, or with another one at the first finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--findings", default="", help="folder for inputs that fail")
    options = parser.parse_args()
    with atheris.instrument_imports(include=["pipeline"]):
        from tests.fuzz.targets import TARGETS
    if options.target not in TARGETS:
        parser.error(f"target={options.target}: expected one of {', '.join(TARGETS)}")
    target = TARGETS[options.target]
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(target.seeds()):
            Path(corpus, f"seed-{number}").write_bytes(seed)
        atheris.Setup(
            [
                sys.argv[0],
                corpus,
                f"-max_total_time={options.seconds}",
                f"-timeout={MAX_SECONDS}",
                f"-rss_limit_mb={MAX_MIB}",
                f"-max_len={MAX_INPUT_BYTES}",
                f"-artifact_prefix={options.findings or tempfile.gettempdir()}/",
                "-print_final_stats=1",
                "-seed=1",
            ],
            target.run,
        )
        atheris.Fuzz()


main()
