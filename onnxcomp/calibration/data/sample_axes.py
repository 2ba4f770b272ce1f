"""Which axis of each input counts the samples.

    image (500, 3, 32, 32) for [N, 3, 32, 32]               -> cut along 0
    state (2, 500, 64)     for [2, batch, 64], x [batch, T]  -> state along 1, x along 0
    rate  ()               for []                            -> goes along unchanged
    ids   (252, 30)        for [1, sequence]                 -> along 0, one at a time

The axis is the one that a symbol named like a batch marks, else the one whose size most inputs share,
the first where that leaves a choice; never one along which the model runs (``graph.time_axes``). A fixed dimension
there makes every batch exactly that long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from onnxcomp.errors import CalibrationError
from onnxcomp.runtime import ValueSpec

Shape = tuple[int, ...]
Dims = tuple[int | str | None, ...]
NONE: frozenset[int] = frozenset()
BATCH_SYMBOL = re.compile(r"n|b|bs|.*batch.*|num_?samples?", re.IGNORECASE)


@dataclass(frozen=True)
class Cut:
    """How arrays are cut: ``axes`` holds the inputs that are cut, the others go along unchanged.

    ``count`` samples (1 when fed whole); ``exact`` is the batch size that the model insists on.
    ``dropped`` samples at the end do not fill such a batch. ``is_choice``: another cut
    was possible too, or the declared shapes alone would have given it.
    """

    axes: Mapping[str, int]
    count: int
    exact: int | None = None
    dropped: int = 0
    is_choice: bool = field(default=False, compare=False)


WHOLE = Cut({}, 1)


def find_cut(
    shapes: Mapping[str, Shape], specs: Sequence[ValueSpec], not_samples: Mapping[str, frozenset[int]] | None = None
) -> Cut:
    """The cut of arrays of these shapes for inputs declared as ``specs``.

    not_samples: the axes of each input that cannot hold the samples.
    Raises CalibrationError when a shape fits in no way: other ranks, or a fixed dimension that differs
    where no batch axis can be.
    """
    barred = not_samples or {}
    dims = {spec.name: _dims(spec, shapes[spec.name]) for spec in specs if spec.name in shapes}
    forced = {
        name: axis for name in dims for axis in _forced_axis(name, shapes[name], dims[name], barred.get(name, NONE))
    }
    leads, cuts = _cuts(shapes, dims, forced, barred)
    if not cuts:
        if leads and not any(size for size, _ in leads) and any(exact is None for _, exact in leads):
            raise CalibrationError(f"calibration data: {', '.join(shapes)} holds no samples")
        if forced:
            name = next(iter(forced))
            raise CalibrationError(_misfit(name, shapes[name], dims[name]))
        return replace(WHOLE, is_choice=bool(_cuts(shapes, dims, forced, {})[1]))
    best = _best(cuts, dims)
    seeming = _best(_cuts(shapes, dims, forced, {})[1], dims) if barred else best
    is_choice = best.axes != seeming.axes or (not _marked(best, dims) and len(_open_axes(cuts)) > 1)
    return replace(best, is_choice=is_choice)


def _best(cuts: Sequence[Cut], dims: Mapping[str, Dims]) -> Cut:
    named = [cut for cut in cuts if _marked(cut, dims)]
    return max(named or cuts, key=lambda cut: (len(cut.axes), -sum(cut.axes.values())))


def _open_axes(cuts: Sequence[Cut]) -> set[tuple[tuple[str, int], ...]]:
    """The different axes of cuts into any number of samples."""
    return {tuple(sorted(cut.axes.items())) for cut in cuts if cut.exact is None}


def _cuts(
    shapes: Mapping[str, Shape],
    dims: Mapping[str, Dims],
    forced: Mapping[str, int],
    barred: Mapping[str, frozenset[int]],
) -> tuple[list[tuple[int, int | None]], list[Cut]]:
    """The candidates for sample counts, and the cuts into them."""
    leads = list(_leads(shapes, dims, forced, barred))
    cuts = [_cut_by(lead, shapes, dims, forced, barred) for lead in leads]
    return leads, [cut for cut in cuts if cut is not None]


def _dims(spec: ValueSpec, shape: Shape) -> Dims:
    # ONNX Runtime shows a tensor of unknown rank as a scalar.
    if not spec.shape and shape:
        return (None,) * len(shape)
    if len(spec.shape) != len(shape):
        raise CalibrationError(_misfit(spec.name, shape, spec.shape))
    return spec.shape


def _forced_axis(name: str, shape: Shape, dims: Dims, barred: frozenset[int]) -> list[int]:
    """The axis that must be the batch because its size differs from a fixed dimension, if there is one.

    It is the first axis, or (recurrent states) one of fixed length 1, where nothing else is the batch.
    """
    wrong = [a for a, dim in enumerate(dims) if isinstance(dim, int) and shape[a] != dim]
    if not wrong:
        return []
    axis, dim = wrong[0], dims[wrong[0]]
    is_possible = axis == 0 or (dim == 1 and (isinstance(dims[0], int) or 0 in barred))
    too_few = not isinstance(dim, int) or dim == 0 or shape[axis] < dim
    if len(wrong) > 1 or not is_possible or too_few or any(map(_is_batch, dims)):
        raise CalibrationError(_misfit(name, shape, dims))
    return wrong


def _leads(
    shapes: Mapping[str, Shape],
    dims: Mapping[str, Dims],
    forced: Mapping[str, int],
    barred: Mapping[str, frozenset[int]],
) -> Iterator[tuple[int, int | None]]:
    """Candidates for (sample count, exact batch size), in the order of inputs and axes.

    A fixed first dimension is the batch only where no input leaves its first dimension open.
    """
    is_open = bool(forced) or any(own and not isinstance(own[0], int) for own in dims.values())
    for name, shape in shapes.items():
        if name not in dims:
            continue
        for axis in [forced[name]] if name in forced else range(len(shape)):
            if name not in forced and axis in barred.get(name, NONE):
                continue
            dim = dims[name][axis]
            if name in forced or not isinstance(dim, int) or (axis == 0 and not is_open):
                yield shape[axis], dim if isinstance(dim, int) else None


def _cut_by(
    lead: tuple[int, int | None],
    shapes: Mapping[str, Shape],
    dims: Mapping[str, Dims],
    forced: Mapping[str, int],
    barred: Mapping[str, frozenset[int]],
) -> Cut | None:
    """The cut into ``lead``'s sample count, or None when an input that must be cut cannot follow it."""
    size, exact = lead
    axes: dict[str, int] = {}
    for name, own in dims.items():
        fits = [
            axis
            for axis, dim in enumerate(own)
            if shapes[name][axis] == size and (not isinstance(dim, int) or dim == exact)
        ]
        if name in forced:
            fits = [axis for axis in fits if axis == forced[name]]
            if not fits:
                return None
        else:
            fits = [axis for axis in fits if axis not in barred.get(name, NONE)]
        if fits:
            axes[name] = next((axis for axis in fits if _is_batch(own[axis])), fits[0])
    if not axes or not size:
        return None
    dropped = size % exact if exact else 0
    return Cut(axes, size - dropped, exact, dropped)


def _marked(cut: Cut, dims: Mapping[str, Dims]) -> bool:
    """Whether the cut follows a symbol named like a batch in at least one input, and against it in none."""
    hits = [_is_batch(dims[name][axis]) for name, axis in cut.axes.items() if any(map(_is_batch, dims[name]))]
    return bool(hits) and all(hits)


def _is_batch(dim: int | str | None) -> bool:
    return isinstance(dim, str) and BATCH_SYMBOL.fullmatch(dim) is not None


def _misfit(name: str, shape: Shape, dims: Dims) -> str:
    wanted = ", ".join("?" if dim is None else str(dim) for dim in dims)
    return f"calibration data: input {name} has shape {list(shape)}, the model wants [{wanted}]"
