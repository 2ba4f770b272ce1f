"""Shapes that the user wants inputs to have, beside those that the model declares.

    images float32 [N, 3, H, W]   images=1,3,320,320   ->  images [1, 3, 320, 320], and N = 1 wherever N stands

A number of the model's is kept to; a symbol means the same size everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from onnxcomp.errors import ParameterError
from onnxcomp.nearest import meant

Dims = tuple[int | str | None, ...]

OPTION = "input-shape"
NAMED = 3  # inputs whose shapes a line shows


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """``images=1,3,320,320`` -> ("images", (1, 3, 320, 320)). Raises ParameterError.

    ``1x3x320x320`` says the same; without a name it is of the only input, and an empty shape is that of a scalar.
    """
    name, _, sizes = text.strip().rpartition("=")
    parts = re.split(r"[,x]", sizes.strip("[]() ").replace(" ", "")) if sizes else []
    if not all(re.fullmatch(r"\d+", each) for each in parts) or (not name and not parts):
        raise ParameterError(f"{OPTION}: must be NAME=SIZES such as images=1,3,320,320, got {text!r}")
    return name, tuple(map(int, parts))


def settle(declared: Mapping[str, Dims], asked: Mapping[str, Sequence[int]]) -> dict[str, Dims]:
    """The declared shapes with the sizes asked for; what these leave open stays open.

    declared: input -> dimensions as numbers, symbols or None; () where the rank is not known, or a scalar.
    Raises ParameterError for an input that there is not, another rank, or a size that the model, or another input with
    the same symbol, has otherwise.
    """
    wanted = {_named(name, declared): tuple(sizes) for name, sizes in asked.items()}
    symbols: dict[str, tuple[int, str]] = {}
    for name, sizes in wanted.items():
        dims = declared[name]
        if dims and len(dims) != len(sizes):
            raise ParameterError(f"{OPTION}: {name} has {len(dims)} dimensions {_words(dims)}, got {len(sizes)}")
        for axis, (dim, size) in enumerate(zip(dims, sizes, strict=False)):
            if isinstance(dim, int) and dim != size:
                raise ParameterError(f"{OPTION}: {name} must be {_words(dims)}, got {size} on axis {axis}")
            if isinstance(dim, str) and symbols.setdefault(dim, (size, name))[0] != size:
                other, where = symbols[dim]
                raise ParameterError(f"{OPTION}: {dim} is {other} in {where} and {size} in {name}")
    sizes_of = {symbol: size for symbol, (size, _) in symbols.items()}
    return {
        name: wanted.get(name, tuple(sizes_of.get(dim, dim) if isinstance(dim, str) else dim for dim in dims))
        for name, dims in declared.items()
    }


def shape_words(shapes: Mapping[str, Sequence[int]]) -> str:
    """``1x3x320x320``; of several inputs ``ids 1x16, mask 1x16``."""
    each = {name: "x".join(map(str, sizes)) or "scalar" for name, sizes in shapes.items()}
    if len(each) == 1:
        return next(iter(each.values()))
    more = [f"{len(each) - NAMED} more"] if len(each) > NAMED else []
    return ", ".join([*(f"{name} {words}" for name, words in list(each.items())[:NAMED]), *more])


def _named(name: str, declared: Mapping[str, Dims]) -> str:
    if not name and len(declared) == 1:
        return next(iter(declared))
    if name not in declared:
        hint = meant(name, declared) if name else " Say which: NAME=SIZES."
        raise ParameterError(f"{OPTION}: the model has the inputs {', '.join(declared)}, not {name!r}.{hint}")
    return name


def _words(dims: Dims) -> str:
    return f"[{', '.join('?' if dim is None else str(dim) for dim in dims)}]"
