"""The imports run one way, as layers.toml has it: jobs -> pipeline -> cluster, and inside pipeline likewise."""

import ast
from collections import Counter

import pytest

from tests.layers import (
    PAGE,
    PICTURE,
    ROOT,
    TOP_LEVEL,
    cycle,
    edges,
    files,
    imports,
    imports_in,
    is_in,
    layers,
    ours,
    package_of,
    page,
    picture,
)

MAX_FILES = 15
"""Of a folder; more of them are several subjects."""


def test_the_files_are_found() -> None:
    assert set(ours()) >= {"jobs.options.launch", "cluster.runs", "pipeline", "pipeline.train.workers.loop"}


@pytest.mark.parametrize("module", ours())
def test_imports_run_one_way(module: str) -> None:
    package = package_of(module)
    # `from pipeline import load` is the model's
    found = ["pipeline.model" if name == "pipeline" else name for name, _ in imports(module)]
    foreign = [name for name in found if name.partition(".")[0] in TOP_LEVEL and not is_in(name, package)]
    allowed = layers()[package].imports
    assert [name for name in foreign if not any(is_in(name, entry) for entry in allowed)] == []


@pytest.mark.parametrize("package", layers())
def test_every_import_that_is_allowed_is_used(package: str) -> None:
    found = {name for module in ours() if package_of(module) == package for name, _ in imports(module)}
    stated = [name for name in layers()[package].stated if not any(is_in(module, name) for module in found)]
    assert stated == []


def test_packages_import_each_other_in_no_cycle() -> None:
    assert cycle(edges()) == []


def test_modules_import_each_other_in_no_cycle() -> None:
    at_once = {name: [module for module, now in imports(name) if now and module in files()] for name in ours()}
    assert cycle(at_once) == []


def test_a_cycle_is_found() -> None:
    assert cycle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c", "b"]
    assert cycle({"a": ["b", "c"], "b": ["c"], "c": []}) == []


@pytest.mark.parametrize("module", ours())
def test_ray_is_imported_in_flows_only(module: str) -> None:
    package = package_of(module)
    if not layers()[package].ray:
        assert [name for name, _ in imports(module) if is_in(name, "ray")] == []
    elif is_in(package, "pipeline"):
        assert package.endswith((".flows", ".workers"))


@pytest.mark.parametrize("module", [name for name in ours() if not is_in(name, "cluster.ray_private")])
def test_private_parts_of_ray_have_one_adapter(module: str) -> None:
    source = files()[module].read_text(encoding="utf-8")
    assert not any(part in source for part in ("ray._private", "ray._raylet", "._internal"))


@pytest.mark.parametrize("module", sorted(files()))
def test_imports_are_absolute_and_named(module: str) -> None:
    for node in ast.walk(ast.parse(files()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} imports relatively"
            assert "*" not in [alias.name for alias in node.names], f"line {node.lineno} imports everything"


def test_no_folder_holds_many_files() -> None:
    found = [file for top in (*TOP_LEVEL, "docs") for file in (ROOT / top).rglob("*") if file.is_file()]
    folders = Counter(file.parent.relative_to(ROOT) for file in found if "__pycache__" not in file.parts)
    assert {folder: number for folder, number in folders.items() if number > MAX_FILES} == {}


@pytest.mark.parametrize("package", [name for name in ours() if files()[name].name == "__init__.py"])
def test_a_package_opens_with_what_lives_there(package: str) -> None:
    docstring = ast.get_docstring(ast.parse(files()[package].read_text(encoding="utf-8"))) or ""
    assert 3 <= len(docstring.splitlines()) <= 10 or package == "pipeline"


def subject_of(module: str) -> str:
    """The module that a file of tests is about, or its package."""
    folder, _, name = module.removeprefix("tests.").rpartition(".")
    return f"{folder}.{name.removeprefix('test_')}"


@pytest.mark.parametrize("module", [name for name in files() if ".test_" in name])
def test_tests_mirror_the_tree(module: str) -> None:
    """A file of tests lies where its module lies, or at least in a folder that mirrors a package."""
    about = subject_of(module)
    folder = about.rpartition(".")[0]
    if folder and folder.partition(".")[0] in TOP_LEVEL:
        assert about in files() or folder in files() or (ROOT / folder.replace(".", "/")).is_dir(), about


def test_the_picture_of_the_packages_is_that_of_the_code() -> None:
    advice = "run python -m tests.layers"
    assert PICTURE.read_text(encoding="utf-8") == picture(), advice
    assert PAGE.read_text(encoding="utf-8") == page(), advice


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import a.b, c", [("a.b", True), ("c", True)]),
        (
            "from pipeline.data.text import match, words",
            [("pipeline.data.text.match", True), ("pipeline.data.text.words", True)],
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
