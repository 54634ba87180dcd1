"""The imports run one way: jobs -> pipeline -> cluster, and inside pipeline as written below."""

import ast
import functools
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cluster", "jobs", "pipeline", "tests")
RAY_FILES = {
    "pipeline.data.flows.embedding_flow",
    "pipeline.data.flows.curate_flow",
    "pipeline.data.flows.crawl_flow",
    "pipeline.data.flows.import_export_flow",
    "pipeline.data.flows.global_counts_flow",
    "pipeline.data.flows.duplicates_flow",
    "pipeline.data.flows.retry_flow",
    "pipeline.data.flows.query_flow",
    "pipeline.data.flows.input_files",
    "pipeline.train.workers.rank_zero",
    "pipeline.train.workers.loop",
    "pipeline.train.workers.step_decisions",
    "pipeline.train.workers.run",
    "pipeline.train.workers.run_lock",
    "pipeline.train.workers.stream",
    "pipeline.train.workers.trainer",
    "pipeline.train.workers.validation",
    "pipeline.train.workers.worker_group",
    "pipeline.eval.flows.benchmark_flow",
}

_DATA = {
    "pipeline.data",
    "pipeline.schemas",
    "pipeline.reasons",
    "pipeline.hashing",
    "pipeline.paper",
    "pipeline.resume_safe",
}
_FILES_OF_SNAPSHOTS = _DATA | {"cluster.storage", "cluster.s3", "cluster.parquet"}

MAY_IMPORT: dict[str, set[str]] = {
    "cluster": {"cluster"},
    "jobs": {"cluster", "jobs", "pipeline"},
    "pipeline.paper": set(),
    "pipeline.hashing": set(),
    "pipeline.resume_safe": set(),
    "pipeline.reasons": set(),
    "pipeline.schemas": set(),
    "pipeline.data": _DATA,
    # Snapshots are files, and whoever has a URI opens one; what Ray needs of cluster/ is none of their business
    "pipeline.data.snapshots.commit": _FILES_OF_SNAPSHOTS,
    "pipeline.data.snapshots.garbage": _FILES_OF_SNAPSHOTS,
    "pipeline.data.snapshots.snapshot": _FILES_OF_SNAPSHOTS,
    "pipeline.data.snapshots.takedown": _FILES_OF_SNAPSHOTS,
    "pipeline.data.snapshots.tombstones": _FILES_OF_SNAPSHOTS,
    "pipeline.model": {"pipeline.model", "pipeline.paper"},
    "pipeline.train": {
        *("pipeline.train", "pipeline.model", "pipeline.hashing", "pipeline.paper", "pipeline.resume_safe"),
        *("pipeline.data.snapshots.epoch_order", "pipeline.data.snapshots.reading"),  # how a snapshot is read
    },
    "pipeline.eval": {"pipeline.eval", "pipeline.model", "pipeline.paper"},
    "pipeline": {"pipeline.model"},  # pipeline/__init__.py: load()
}
"""For each package, and each module that stands alone, what of ours it may import."""


class Import(NamedTuple):
    module: str
    at_once: bool
    """When the file is imported, not when a function is called."""


@functools.cache
def files() -> dict[str, Path]:
    """Every Python file of ours by its module's name, an __init__.py by that of its package."""
    found = [file.relative_to(ROOT) for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(file.with_suffix("").parts).removesuffix(".__init__"): ROOT / file for file in found}


@functools.cache
def imports(module: str) -> tuple[Import, ...]:
    """Every module that a file imports, wherever in it."""
    return imports_in(files()[module].read_text(encoding="utf-8"))


def imports_in(source: str) -> tuple[Import, ...]:
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    found = []
    for node in ast.walk(tree):
        names: set[str] = set()
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from package import module` imports the module
            below = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            names = {below[name] if below[name] in files() else f"{node.module}" for name in below}
        found += [Import(name, id(node) not in inside) for name in sorted(names)]
    return tuple(found)


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


OURS = sorted(name for name in files() if not is_in(name, "tests"))


def test_the_files_are_found() -> None:
    assert set(OURS) >= RAY_FILES | {"jobs.options.launch", "cluster.runs", "pipeline"}


@pytest.mark.parametrize("module", OURS)
def test_imports_run_one_way(module: str) -> None:
    layer = max((name for name in MAY_IMPORT if is_in(module, name)), key=len)
    allowed = MAY_IMPORT[layer] | ({"cluster"} if module in RAY_FILES else set())
    found = ["pipeline.model" if name == "pipeline" else name for name, _ in imports(module)]  # pipeline.load, that is
    ours = [name for name in found if any(is_in(name, package) for package in PACKAGES)]
    assert [name for name in ours if not any(is_in(name, package) for package in allowed)] == []


@pytest.mark.parametrize("module", [name for name in OURS if is_in(name, "pipeline") and name not in RAY_FILES])
def test_pipeline_does_without_ray(module: str) -> None:
    assert [name for name, _ in imports(module) if is_in(name, "ray")] == []


@pytest.mark.parametrize("module", sorted(files()))
def test_imports_are_absolute_and_named(module: str) -> None:
    for node in ast.walk(ast.parse(files()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} imports relatively"
            assert "*" not in [alias.name for alias in node.names], f"line {node.lineno} imports everything"


def test_no_module_imports_itself_by_a_detour() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for imported, at_once in imports(module):
                if at_once and imported in files():
                    visit(imported, (*path, module))
            done.add(module)

    for module in OURS:
        visit(module, ())


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import a.b, c", [("a.b", True), ("c", True)]),
        (
            "from pipeline.data import match, shard",
            [("pipeline.data.text.match", True), ("pipeline.data.snapshots.shard", True)],
        ),
        ("from pipeline.data.text.match import Matcher", [("pipeline.data.text.match", True)]),
        ("from pipeline import load, paper", [("pipeline", True), ("pipeline.paper", True)]),
        ("def f():\n    import ray", [("ray", False)]),
        ("class C:\n    async def f(self):\n        if x:\n            import ray.data", [("ray.data", False)]),
        ("if x:\n    try:\n        import ray\n    except E:\n        pass", [("ray", True)]),
    ],
)
def test_imports_are_found_wherever_they_stand(source: str, found: list[tuple[str, bool]]) -> None:
    assert list(imports_in(source)) == found
