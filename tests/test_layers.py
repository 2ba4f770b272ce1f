"""Imports point down only: docs/layers.toml has the layers, top first, and every import is held to them.

Imports inside functions and under TYPE_CHECKING count too: they are the same dependency, only later.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).parent.parent

TABLE = tomllib.loads((ROOT / "docs" / "layers.toml").read_text(encoding="utf-8"))


def heights(rows: list[list[str]]) -> dict[str, int]:
    """How high each name of a table stands; the first row is the highest."""
    return {name: -row for row, names in enumerate(rows) for name in names}


LEVEL = heights(TABLE["layers"])
ROOMS = {package: heights(rows) for package, rows in TABLE["rooms"].items()}
PASSES_MAY_IMPORT = {
    "contract", "calibration", "target", "graph", "numerics", "runtime", "training", "model", "tensors",
    "noise", "operators", "errors",
}  # fmt: skip
ONLY_IN = {  # outside package -> the parts that may import it
    "onnxruntime": {"runtime"},
    "torch": {"training"},
    "click": {"cli"},
    "rich": {"cli"},
    "jinja2": {"report"},
    "squarify": {"report"},
}
DECLARED = {
    "onnxcomp", "onnx", "onnxruntime", "onnx_graphsurgeon", "numpy", "scipy", "sklearn", "click", "rich",
    "psutil", "ml_dtypes", "google", "threadpoolctl", "torch", "joblib", "distributed",
    "jinja2", "markupsafe", "squarify",
}  # fmt: skip
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

    @cached_property
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


def inside(*parts: str) -> list[Source]:
    """The files of these layers."""
    return [source for source in SOURCES if source.part in parts]


def faults(chosen: Iterable[Source], wrong: Callable[[Source, Import], bool]) -> list[str]:
    """Every import that is wrong, by file and line."""
    return [
        f"{where(source, found.line)}: {source.name} imports {found.module}"
        for source in chosen
        for found in imports(source)
        if wrong(source, found)
    ]


@cache
def imports(source: Source) -> tuple[Import, ...]:
    """Every module that a file imports: relative ones resolved, `from package import module` too."""
    return tuple(_walked(source))


def _walked(source: Source) -> Iterator[Import]:
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


def root_of(module: str) -> str:
    return module.split(".")[0]


def is_own(found: Import) -> bool:
    return root_of(found.module) == "onnxcomp"


def test_every_module_has_a_layer() -> None:
    missing = [source.name for source in SOURCES if source.part not in {"", "__main__", *LEVEL}]
    assert not missing, f"give a layer in docs/layers.toml to {missing}"


def test_imports_point_down_only() -> None:
    def points_up(source: Source, found: Import) -> bool:
        part = part_of(found.module)
        return is_own(found) and part != source.part and LEVEL[source.part] <= LEVEL.get(part, 1)

    # The public names, "" and "__main__", stand above every layer.
    assert not (wrong := faults(inside(*LEVEL), points_up)), "\n".join(wrong)


def room_of(source: Source | str) -> str:
    """The folder of a module inside its package, "" for the package's own files."""
    name = source if isinstance(source, str) else source.name
    parts = name.split(".")
    return parts[2] if len(parts) > 2 and (ROOT / "onnxcomp" / parts[1] / parts[2]).is_dir() else ""


def test_every_room_of_an_ordered_package_has_a_place() -> None:
    found = {(each.part, room_of(each)) for each in inside(*ROOMS) if room_of(each)}
    stated = {(package, room) for package, rooms in ROOMS.items() for room in rooms}
    assert found == stated


def test_rooms_import_the_rooms_below() -> None:
    def points_up(source: Source, found: Import) -> bool:
        rooms, own, other = ROOMS[source.part], room_of(source), room_of(found.module)
        if not own or not other or part_of(found.module) != source.part or own == other or not is_own(found):
            return False
        return rooms[own] <= rooms[other]

    assert not (wrong := faults(inside(*ROOMS), points_up)), "\n".join(wrong)


def test_passes_are_reached_by_name_only() -> None:
    def reaches_a_pass(source: Source, found: Import) -> bool:
        return is_own(found) and part_of(found.module) == "passes" and found.module != source.name

    assert not (wrong := faults(SOURCES, reaches_a_pass)), "take it from the registry\n" + "\n".join(wrong)


def test_passes_import_the_contract_and_what_is_below() -> None:
    def is_above(source: Source, found: Import) -> bool:
        return is_own(found) and part_of(found.module) not in PASSES_MAY_IMPORT

    assert not (wrong := faults(inside("passes"), is_above)), "\n".join(wrong)


def test_nothing_that_ships_imports_the_suite_for_plugins() -> None:
    def reaches_the_suite(source: Source, found: Import) -> bool:
        return is_own(found) and part_of(found.module) == "testing" and source.part != "testing"

    assert not (wrong := faults(SOURCES, reaches_the_suite)), "\n".join(wrong)


def test_nothing_imports_the_folder_passes_by_its_own_name() -> None:
    wrong = faults(SOURCES, lambda source, found: root_of(found.module) == "passes")
    assert not wrong, f"`import passes` makes a second copy of every pass: {wrong}"


def test_outside_packages_stay_in_their_layer() -> None:
    def strays(source: Source, found: Import) -> bool:
        return source.part not in ONLY_IN.get(root_of(found.module), {source.part})

    assert not (wrong := faults(SOURCES, strays)), "\n".join(wrong)


def test_numerics_sees_arrays_only() -> None:
    wrong = faults(inside("numerics"), lambda source, found: root_of(found.module) in NEVER_IN_NUMERICS)
    assert not wrong, "\n".join(wrong)


def test_a_public_class_name_means_one_thing() -> None:
    homes: dict[str, list[str]] = {}
    for source in SOURCES:
        for node in source.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(where(source, node.lineno))
    shared = {name: places for name, places in homes.items() if len(places) > 1}
    assert not shared, shared


def test_only_the_command_line_prints() -> None:
    quiet = [source for source in SOURCES if source.part not in {"cli", "__main__"}]
    wrong = [where(source, line) for source in quiet for line in _lines_that_print(source)]
    assert not wrong, f"output outside onnxcomp/cli: {wrong}"


def _lines_that_print(source: Source) -> Iterator[int]:
    for node in ast.walk(source.tree):
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        stream = (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and (node.value.id, node.attr) in {("sys", "stdout"), ("sys", "stderr")}
        )
        if called or stream:
            yield node.lineno


def test_imports_come_from_the_standard_library_or_declared_dependencies() -> None:
    known = DECLARED | sys.stdlib_module_names
    wrong = faults(SOURCES, lambda source, found: root_of(found.module) not in known)
    assert not wrong, "\n".join(wrong)


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


def test_the_files_of_both_folders_are_walked() -> None:
    assert {"onnxcomp", "onnxcomp.errors", "onnxcomp.passes.round_weights"} <= MODULES
