"""Patterns of names that the user excludes: one that matches nothing was mistyped, and would protect nothing."""

from __future__ import annotations

import glob
from collections.abc import Iterable

from onnxcomp.contract import matches
from onnxcomp.errors import ParameterError
from onnxcomp.graph.ir.query import node_key
from onnxcomp.graph.ir.reader import shown
from onnxcomp.graph.stored.opening import open_plain, weights_by_decoded_name
from onnxcomp.model import Model
from onnxcomp.nearest import nearest

NEAREST = 3
WILD = "*?[]!"
ALIKE = 0.4  # a pattern is a part of a name


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
            near = nearest(pattern.strip(WILD), names, most=NEAREST, alike=ALIKE)
            hint = f" The nearest names are {', '.join(near)}." if near else " `onnxcomp inspect` lists the names."
            raise ParameterError(f"exclude: {pattern} matches no weight and no node of {model.name}.{hint}")


def with_stored(model: Model, patterns: Iterable[str]) -> tuple[str, ...]:
    """The patterns, with the names of the weights whose decoded form goes by one of them."""
    asked = tuple(patterns)
    names = weights_by_decoded_name(open_plain(model)) if asked else {}
    meant = {key for made, key in names.items() if key != made and any(matches(made, each) for each in asked)}
    return (*asked, *(glob.escape(key) for key in sorted(meant)))


def known_names(model: Model) -> list[str]:
    """Every name that a weight or node can be excluded by, subgraphs included."""
    names: dict[str, None] = {}
    for scope in shown(model).scopes:
        for constant in scope.constants:
            names |= dict.fromkeys((constant.name, scope.key(constant.name)))
        for node in scope.graph.nodes:
            outputs = [each.name for each in node.outputs]
            names |= dict.fromkeys((node.name, node_key(scope, node), *outputs, *map(scope.key, outputs)))
    return [name for name in names if name]
