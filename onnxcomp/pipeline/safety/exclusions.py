"""Patterns of names that the user excludes: one that matches nothing was mistyped, and would protect nothing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from onnxcomp.contract import matches
from onnxcomp.errors import ParameterError
from onnxcomp.graph.ir.query import node_key
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.model import Model

NEAREST = 3
WILD = "*?[]!"


def refuse_idle(model: Model, patterns: Iterable[str]) -> None:
    """Raise ParameterError for a pattern that no weight and no node of the model goes by, with the nearest names.

    A model with functions of its own is let through: its nodes get other names once they are written out.
    """
    asked = list(patterns)
    if not asked or model.proto.functions:
        return
    names = known_names(model)
    for pattern in asked:
        if not any(matches(name, pattern) for name in names):
            near = _nearest(pattern, names)
            hint = f" The nearest names are {', '.join(near)}." if near else " `onnxcomp inspect` lists the names."
            raise ParameterError(f"exclude: {pattern} matches no weight and no node of {model.name}.{hint}")


def known_names(model: Model) -> list[str]:
    """Every name that a weight or node can be excluded by, subgraphs included."""
    names: dict[str, None] = {}
    for scope in open_graph(model).scopes:
        for constant in scope.constants:
            names |= dict.fromkeys((constant.name, scope.key(constant.name)))
        for node in scope.graph.nodes:
            outputs = [each.name for each in node.outputs]
            names |= dict.fromkeys((node.name, node_key(scope, node), *outputs, *map(scope.key, outputs)))
    return [name for name in names if name]


def _nearest(pattern: str, names: list[str]) -> list[str]:
    plain = pattern.strip(WILD)
    lowered = {name.lower(): name for name in reversed(names)}
    found = difflib.get_close_matches(plain.lower(), lowered, NEAREST, 0.4)
    return [lowered[each] for each in found]
