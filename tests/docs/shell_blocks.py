"""Find the shell commands that the documentation shows."""

import re
from collections.abc import Iterator
from pathlib import Path

from tests.ray_head import ROOT

PAGES = ("README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")))
CLUSTER_FILE = "ray_cluster.yaml"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`]+)`")
_SHELLS = ("", "bash", "sh")


def blocks(page: str) -> list[str]:
    """The code blocks of a page that are commands of a shell, in order."""
    return [text for language, text in _FENCE.findall(_read(page)) if language in _SHELLS]


def cluster_block(page: str) -> str:
    """The block of a page about a cluster, which starts one with `ray up`. In ray_cluster.yaml it is a comment."""
    if page == CLUSTER_FILE:
        indent = "#   "
        return "".join(
            line.removeprefix(indent) for line in _read(page).splitlines(keepends=True) if line.startswith(indent)
        )
    (block,) = [block for block in blocks(page) if "\nray up " in block]
    return block


def commands(block: str) -> list[str]:
    """The commands of a block, each on one line, with their comments."""
    lines = block.replace("\\\n", " ").splitlines()
    return [" ".join(line.removeprefix("$ ").split()) for line in lines if line.strip()]


def job_commands(page: str) -> Iterator[str]:
    """Every command on a page that starts a job of ours, in a block or in the text."""
    prose = _FENCE.sub("", _read(page))
    inline = [" ".join(code.split()) for code in _INLINE.findall(prose)]
    for command in [line for block in blocks(page) for line in commands(block)] + inline:
        _, start, rest = command.rpartition("python -m jobs.")
        if start and rest:
            yield start + rest


def _read(page: str) -> str:
    return Path(ROOT, page).read_text(encoding="utf-8")
