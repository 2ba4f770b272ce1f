"""Imports point down only: the rows below are the layers, top first, and every import is held to them.

Imports inside functions and under TYPE_CHECKING count too: they are the same dependency, only later.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A part may import the rows below its own, and itself. `numerics` sees arrays and never a graph, so it stands
# under `model`, which keeps the encodings that numerics defines. `registry` reaches the passes by name only.
ROWS = (
    ("cli",),
    ("pipeline",),
    ("recipe", "verify"),
    ("registry",),
    ("passes",),
    ("contract",),
    ("calibration", "target", "budget", "receipt"),
    ("graph", "runtime", "training"),
    ("model",),
    ("stored_encodings", "validity", "external_data", "regular_form"),
    ("tensors", "files", "noise"),
    ("typed", "operators"),
    ("numerics",),
    ("errors",),
)
LEVEL = {part: len(ROWS) - row for row, parts in enumerate(ROWS) for part in parts}
PASSES_MAY_IMPORT = {
    "contract", "calibration", "target", "graph", "numerics", "runtime", "training", "model", "tensors",
    "noise", "operators", "errors",
}  # fmt: skip
ONLY_IN = {  # outside package -> the parts that may import it
    "onnxruntime": {"runtime"},
    "torch": {"training"},
    "click": {"cli"},
    "rich": {"cli"},
}
NEVER_IN_NUMERICS = {"onnx", "onnxruntime", "onnx_graphsurgeon", "google", "torch"}


@dataclass(frozen=True)
class Import:
    """One imported module, by its dotted name as if onnxcomp were installed."""

    module: str
    line: int


@dataclass(frozen=True)
class Source:
    """One Python file of the package and the dotted name it is installed under."""

    path: Path
    name: str

    @property
    def part(self) -> str:
        return part_of(self.name)

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"), filename=str(self.path))

    @property
    def package(self) -> str:
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


def part_of(module: str) -> str:
    """Name the layer of an onnxcomp module: its second component, "" for the package's own __init__."""
    return [*module.split("."), ""][1]


def sources() -> list[Source]:
    """List every file of onnxcomp/ and passes/."""
    found = []
    for folder, package in ((ROOT / "onnxcomp", "onnxcomp"), (ROOT / "passes", "onnxcomp.passes")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            found.append(Source(path, ".".join((package, *parts))))
    return found


SOURCES = sources()
MODULES = {source.name for source in SOURCES}


def sources_where(wanted: Callable[[str], bool]) -> pytest.MarkDecorator:
    """Run a test on every file whose layer is wanted."""
    chosen = [source for source in SOURCES if wanted(source.part)]
    return pytest.mark.parametrize("source", chosen, ids=lambda source: source.name)


each_source = sources_where(lambda part: True)


def imports(source: Source) -> Iterator[Import]:
    """Give every module that a file imports: relative ones resolved, `from package import module` too."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            origin = absolute(node, source.package)
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield Import(inner if inner in MODULES else origin, node.lineno)


def absolute(node: ast.ImportFrom, package: str) -> str:
    """Resolve the module of a `from` import made inside a package."""
    if not node.level:
        return node.module or ""
    parents = package.split(".")
    base = parents[: len(parents) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def where(source: Source, line: int) -> str:
    return f"{source.path.relative_to(ROOT)}:{line}"


def own(source: Source) -> Iterator[Import]:
    return (found for found in imports(source) if found.module.split(".")[0] == "onnxcomp")


@each_source
def test_every_module_has_a_layer(source: Source) -> None:
    assert source.part in {"", "__main__", *LEVEL}, f"give {source.name} a row in ROWS"


@each_source
def test_imports_point_down_only(source: Source) -> None:
    if source.part in {"", "__main__"}:  # the public names: above every layer
        return
    wrong = [
        f"{where(source, found.line)}: {source.part} imports {found.module}"
        for found in own(source)
        if part_of(found.module) != source.part and LEVEL[source.part] <= LEVEL.get(part_of(found.module), 99)
    ]
    assert not wrong, "\n".join(wrong)


@each_source
def test_passes_are_reached_by_name_only(source: Source) -> None:
    wrong = [
        f"{where(source, found.line)}: imports {found.module}; take it from the registry"
        for found in own(source)
        if part_of(found.module) == "passes" and found.module != source.name
    ]
    assert not wrong, "\n".join(wrong)


@sources_where(lambda part: part == "passes")
def test_passes_import_the_contract_and_what_is_below(source: Source) -> None:
    wrong = [
        f"{where(source, found.line)}: a pass imports {found.module}"
        for found in own(source)
        if part_of(found.module) not in PASSES_MAY_IMPORT
    ]
    assert not wrong, "\n".join(wrong)


@each_source
def test_nothing_imports_the_folder_passes_by_its_own_name(source: Source) -> None:
    wrong = [where(source, found.line) for found in imports(source) if found.module.split(".")[0] == "passes"]
    assert not wrong, f"`import passes` makes a second copy of every pass: {wrong}"


@each_source
def test_outside_packages_stay_in_their_layer(source: Source) -> None:
    wrong = [
        f"{where(source, found.line)}: {source.part or 'onnxcomp'} imports {found.module}"
        for found in imports(source)
        if source.part not in ONLY_IN.get(found.module.split(".")[0], {source.part})
    ]
    assert not wrong, "\n".join(wrong)


@sources_where(lambda part: part == "numerics")
def test_numerics_sees_arrays_only(source: Source) -> None:
    wrong = [
        f"{where(source, found.line)}: numerics imports {found.module}"
        for found in imports(source)
        if found.module.split(".")[0] in NEVER_IN_NUMERICS
    ]
    assert not wrong, "\n".join(wrong)


@sources_where(lambda part: part not in {"cli", "__main__"})
def test_only_the_command_line_prints(source: Source) -> None:
    wrong = []
    for node in ast.walk(source.tree):
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        stream = (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and (node.value.id, node.attr) in {("sys", "stdout"), ("sys", "stderr")}
        )
        if called or stream:
            wrong.append(where(source, node.lineno))
    assert not wrong, f"output outside onnxcomp/cli: {wrong}"


def test_the_walk_resolves_every_form_of_import(tmp_path: Path) -> None:
    path = tmp_path / "weights.py"
    path.write_text(
        "import onnx.helper\nfrom .. import errors\nfrom ..model import Model\n"
        "from onnxcomp import contract\nfrom onnxcomp.numerics import encodings\n"
        "def late():\n    from onnxcomp.errors import ModelError\n"
    )
    walked = imports(Source(path, "onnxcomp.graph.weights"))
    found = [item.module.removeprefix("onnxcomp.") for item in walked]
    assert found == ["onnx.helper", "errors", "model", "contract", "numerics.encodings", "errors"]


@each_source
def test_imports_come_from_the_standard_library_or_declared_dependencies(source: Source) -> None:
    declared = {
        "onnxcomp", "onnx", "onnxruntime", "onnx_graphsurgeon", "numpy", "scipy", "sklearn", "click", "rich",
        "psutil", "ml_dtypes", "google", "threadpoolctl", "torch",
    }  # fmt: skip
    roots = {found.module.split(".")[0] for found in imports(source)}
    assert roots <= declared | sys.stdlib_module_names
