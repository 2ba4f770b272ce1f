"""Find passes by name: one file in ``onnxcomp.passes`` each, and the entry points of third parties.

Listing names imports nothing; only the pass that is asked for is loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from onnxcomp.contract import Pass
from onnxcomp.errors import PassError, UnknownPass
from onnxcomp.nearest import meant

GROUP = "onnxcomp.passes"


@cache
def _shipped() -> dict[str, str]:
    """Pass name -> module, for every file of the package ``onnxcomp.passes``."""
    spec = importlib.util.find_spec("onnxcomp.passes")
    folders = list(spec.submodule_search_locations or []) if spec else []
    stems = sorted(file.stem for folder in folders for file in Path(folder).glob("*.py"))
    return {stem.replace("_", "-"): f"onnxcomp.passes.{stem}" for stem in stems if not stem.startswith("_")}


@cache
def _third_party() -> dict[str, EntryPoint]:
    """Pass name -> entry point; a name that is taken is an error that names both."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        name = point.name.replace("_", "-")
        taken = _shipped().get(name) or (found[name].value if name in found else None)
        if taken:
            raise PassError(f"{point.value}: the pass name {name} is already taken by {taken}. Rename one of them.")
        found[name] = point
    return found


def pass_names() -> list[str]:
    """The names of all passes, sorted; no pass is imported."""
    return sorted({**_shipped(), **_third_party()})


def shipped_names() -> list[str]:
    """The names of the passes that ship with onnxcomp, sorted."""
    return sorted(_shipped())


def storing_pass() -> str:
    """The name of the shipped pass that stores what weights' encodings say."""
    return next(name for name in shipped_names() if get_pass(name).stores_encodings)


def pass_summary(name: str) -> str:
    """The first line of a shipped pass's docstring, read from its source: listing all imports none.

    "" for a pass of a third party, whose source may be anything.
    """
    stem = f"{name.replace('-', '_')}.py"
    spec = importlib.util.find_spec("onnxcomp.passes")
    for folder in spec.submodule_search_locations or [] if spec else []:
        source = Path(folder) / stem
        if source.is_file():
            text = source.read_text(encoding="utf-8")
            found = re.search(rf'^class {_class_name(name)}\b.*?"""(.*?)(?:"""|\n)', text, re.DOTALL | re.MULTILINE)
            return found[1].strip() if found else ""
    return ""


def get_pass(name: str) -> type[Pass]:
    """The class of the pass; ``name`` may be written with ``-`` or ``_``.

    Raises PassError for an unknown name (and lists the known ones) and for a plug-in that does not load, or that is
    registered under another name than its own.
    """
    key = name.replace("_", "-")
    if key in _shipped():
        return _class_in(_shipped()[key], key)
    if key not in _third_party():
        hint = meant(key, pass_names()) or f" Known passes: {', '.join(pass_names())}."
        raise UnknownPass(f"{name}: no such pass.{hint}")
    point = _third_party()[key]
    try:
        loaded = point.load()
    except (ImportError, AttributeError, SyntaxError) as error:
        raise PassError(f"{key}: the plug-in {point.value} does not load: {error}.") from error
    if not (inspect.isclass(loaded) and issubclass(loaded, Pass)):
        raise PassError(f"{key}: the plug-in {point.value} is not a subclass of onnxcomp.Pass.")
    if loaded.pass_name() != key:  # receipts name the class, and are read by entry point
        raise PassError(f"{key}: the plug-in {point.value} is the pass {loaded.pass_name()}. Name its entry point so.")
    return loaded


def _class_in(module_name: str, name: str) -> type[Pass]:
    """The one Pass that a module defines, which must carry the module's name."""
    module = importlib.import_module(module_name)
    for _, member in inspect.getmembers(module, inspect.isclass):
        if issubclass(member, Pass) and member.__module__ == module_name and member.pass_name() == name:
            return member
    raise PassError(f"{name}: {module_name} must define the class {_class_name(name)}(Pass).")


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("-"))
