"""The packages of this project and their imports: read from the code, compared with layers.toml, drawn for the docs.

`python -m tests.layers` writes docs/pictures/packages.svg and the table of packages in docs/architecture.md.
"""

from __future__ import annotations

import ast
import functools
import tomllib
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "pictures" / "packages.svg"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- packages: written by python -m tests.layers -->", "<!-- end of packages -->"
TOP_LEVEL = ("cluster", "jobs", "pipeline", "tests")


class Layer(NamedTuple):
    """A package of layers.toml."""

    imports: frozenset[str]
    """Packages and modules that it may import, groups resolved."""
    stated: tuple[str, ...]
    """The same as layers.toml has it, without the groups."""
    ray: bool


class Import(NamedTuple):
    """A module that a file imports."""

    module: str
    at_once: bool
    """Whether it is imported with the file, and not when a function is called."""


@functools.cache
def files() -> dict[str, Path]:
    """Every Python file of ours by the name of its module; an __init__.py by the name of its package."""
    found = [file.relative_to(ROOT) for package in TOP_LEVEL for file in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(file.with_suffix("").parts).removesuffix(".__init__"): ROOT / file for file in found}


@functools.cache
def ours() -> tuple[str, ...]:
    """All modules but the tests."""
    return tuple(name for name in files() if not is_in(name, "tests"))


@functools.cache
def imports(module: str) -> tuple[Import, ...]:
    """Every module that a file imports, wherever in the file."""
    return imports_in(files()[module].read_text(encoding="utf-8"))


def imports_in(source: str) -> tuple[Import, ...]:
    """Every module that a source text imports."""
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
    """Whether a module is the package itself or below it."""
    return module == package or module.startswith(f"{package}.")


@functools.cache
def layers() -> dict[str, Layer]:
    """The table of layers.toml."""
    table = tomllib.loads((ROOT / "tests" / "layers.toml").read_text(encoding="utf-8"))
    groups: dict[str, list[str]] = table["groups"]
    found = {}
    for name, row in table["packages"].items():
        stated = tuple(entry for entry in row["imports"] if entry not in groups)
        resolved = {module for entry in row["imports"] for module in groups.get(entry, [entry])}
        found[name] = Layer(frozenset(resolved), stated, row.get("ray", False))
    return found


def package_of(module: str) -> str:
    """The package of layers.toml that a module belongs to."""
    return max((name for name in layers() if is_in(module, name)), key=len)


@functools.cache
def edges() -> dict[str, frozenset[str]]:
    """The packages that each package imports."""
    found: dict[str, set[str]] = {name: set() for name in layers()}
    for module in ours():
        package = package_of(module)
        found[package] |= {package_of(name) for name, _ in imports(module) if name in files()} - {package}
    return {name: frozenset(imported) for name, imported in found.items()}


def cycle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """A cycle of a graph of names, empty where it has none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for other in sorted(graph.get(name, ())):
                if found := visit(other, [*path, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := visit(name, []))), [])


def table() -> str:
    """The packages as a Markdown table: number of modules, what each holds, what it imports of its own column."""
    lines = ["| package | modules | what lives there | imports |", "|---|---|---|---|"]
    for name in layers():
        source = ast.parse(files()[name].read_text(encoding="utf-8"))
        first = (ast.get_docstring(source) or "").partition("\n")[0].rstrip(".")
        num_modules = sum(1 for module in ours() if package_of(module) == name and module != name)
        stated = ", ".join(f"`{entry.removeprefix('pipeline.')}`" for entry in layers()[name].stated)
        lines.append(f"| `{name}` | {num_modules or ''} | {first} | {stated} |")
    return "\n".join(lines)


BOX_WIDTH, BOX_HEIGHT, GAP, ROW_HEIGHT, MARGIN = 124, 34, 14, 62, 16
PANELS = (("data", "train"), ("eval", "model"))
COLOURS = {"data": "#e8f1fb", "train": "#fdf0e2", "eval": "#eaf6ea", "model": "#f3ecf8", "": "#f2f2f2"}


def picture() -> str:
    """The packages of pipeline/ as an SVG with one panel each: a box stands above all boxes that it imports."""
    panels = [[_panel(name) for name in row] for row in PANELS]
    width = max(sum(panel.width for panel in row) + 3 * GAP * (len(row) - 1) for row in panels) + 2 * MARGIN
    parts = [_band("jobs/: what people start  (orange frame: may import Ray, as jobs and cluster may)", MARGIN, width)]
    top: float = MARGIN + BOX_HEIGHT
    for row in panels:
        height = max(panel.height for panel in row)
        left = (width - sum(panel.width for panel in row) - 3 * GAP * (len(row) - 1)) / 2
        for panel in row:
            parts.append(f'<g transform="translate({left:g} {top + height:g})">\n{panel.svg}\n</g>')
            left += panel.width + 3 * GAP
        top += height + BOX_HEIGHT
    for text in (
        "pipeline/: hashing, paper, reasons, resume_safe, schemas",
        "cluster/: storage, parts, stages, sessions",
    ):
        parts.append(_band(text, top, width))
        top += BOX_HEIGHT + GAP
    style = (
        "text{font:13px sans-serif;text-anchor:middle;fill:#1d2128}.panel{font-weight:bold}"
        "rect{stroke:#8a8f98;rx:4}.ray{stroke:#c05a00;stroke-width:2.5}"
    )
    background = f'<rect width="{width:g}" height="{top:g}" style="stroke:none" fill="#fff"/>'
    body = "\n".join((f"<style>{style}</style>", background, *parts))
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {top:g}">\n{body}\n</svg>\n'


class _Panel(NamedTuple):
    """One sub-package of pipeline/. Its origin is the left end of its lowest line, y grows downwards."""

    svg: str
    width: float
    height: float


def _panel(panel: str) -> _Panel:
    names = [name for name in layers() if is_in(name, f"pipeline.{panel}") and name != f"pipeline.{panel}"]
    inside = {name: edges()[name] & set(names) for name in names}
    rows: dict[int, list[str]] = {}
    for name in names:
        rows.setdefault(_depth(name, inside), []).append(name)
    width = max(len(row) for row in rows.values()) * (BOX_WIDTH + GAP) - GAP
    centres: dict[str, tuple[float, float]] = {}
    for depth, row in rows.items():
        start = (width - len(row) * (BOX_WIDTH + GAP) + GAP) / 2
        for number, name in enumerate(row):
            x = start + number * (BOX_WIDTH + GAP) + BOX_WIDTH / 2
            centres[name] = (x, -BOX_HEIGHT / 2 - 20 - depth * ROW_HEIGHT)
    lines = []
    for name in names:
        indirect = {far for near in inside[name] for far in _reachable(near, inside)}
        for other in sorted(inside[name] - indirect):
            (x, y), (x_other, y_other) = centres[name], centres[other]
            ends = f'x1="{x:g}" y1="{y + BOX_HEIGHT / 2:g}" x2="{x_other:g}" y2="{y_other - BOX_HEIGHT / 2:g}"'
            lines.append(f'<line {ends} stroke="#8a8f98"/>')
    boxes = [_box(*centres[name], name.rsplit(".", 1)[1], COLOURS[panel], layers()[name].ray) for name in names]
    title = f'<text x="{width / 2:g}" y="0" class="panel">pipeline/{panel}/</text>'
    return _Panel("\n".join((*lines, *boxes, title)), width, max(rows) * ROW_HEIGHT + 2 * BOX_HEIGHT + 20)


def _band(text: str, top: float, width: float) -> str:
    size = f'width="{width - 2 * MARGIN:g}" height="{BOX_HEIGHT}"'
    rectangle = f'<rect x="{MARGIN}" y="{top:g}" {size} fill="#f2f2f2"/>'
    return f'{rectangle}<text x="{width / 2:g}" y="{top + BOX_HEIGHT / 2 + 5:g}">{escape(text)}</text>'


def _box(x: float, y: float, name: str, colour: str, ray: bool) -> str:
    kind = ' class="ray"' if ray else ""
    corner = f'x="{x - BOX_WIDTH / 2:g}" y="{y - BOX_HEIGHT / 2:g}"'
    rectangle = f'<rect{kind} {corner} width="{BOX_WIDTH}" height="{BOX_HEIGHT}" fill="{colour}"/>'
    return f'{rectangle}<text x="{x:g}" y="{y + 5:g}">{name}</text>'


def _depth(name: str, graph: Mapping[str, Iterable[str]]) -> int:
    return max((1 + _depth(other, graph) for other in graph[name]), default=0)


def _reachable(name: str, graph: Mapping[str, Iterable[str]]) -> set[str]:
    return {far for near in graph[name] for far in (near, *_reachable(near, graph))}


def page() -> str:
    """docs/architecture.md with today's table."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Write the picture and the table."""
    PICTURE.write_text(picture(), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
