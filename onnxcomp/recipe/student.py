"""Students made of their teacher: fewer units, fewer blocks, cheaper convolutions, then trained towards it.

    width=0.5,depth=0.75,separable      half of the units of every group, three quarters of the blocks, each convolution
                                        as one for each channel and one of 1 x 1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxcomp.errors import ParameterError
from onnxcomp.recipe.recipe import Recipe
from onnxcomp.recipe.sequential import Sequential
from onnxcomp.recipe.step import Apply
from onnxcomp.registry import get_pass

WORDS = "width=0.5, depth=0.5 and separable, with commas between them"
PREPARED = ("remove-noops", "inline-functions", "fold-constants", "inline-branches", "fuse-batch-norm", "fuse-pad")


@dataclass(frozen=True, kw_only=True)
class StudentShape:
    """What is left of a teacher: width, of the units of each group; depth, of the residual blocks; separable, whether
    convolutions become depthwise and pointwise ones.

    Raises ParameterError for a share that is not above 0 and at most 1.
    """

    width: float = 1.0
    depth: float = 1.0
    separable: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "depth"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ParameterError(f"student: {name} must be above 0 and at most 1, got {value:g}")

    @classmethod
    def parse(cls, text: str) -> StudentShape:
        """``width=0.5,separable``. Raises ParameterError for other words."""
        given: dict[str, Any] = {}
        for word in filter(None, (each.strip() for each in text.split(","))):
            name, equals, value = word.partition("=")
            try:
                known = {"width": float, "depth": float}[name](value) if equals else {"separable": True}[name]
            except (KeyError, ValueError):
                raise ParameterError(f"student: must be of {WORDS}, got {text!r}") from None
            if name in given:
                raise ParameterError(f"student: {name} is named twice in {text!r}")
            given[name] = known
        return cls(**given)


def distilling(shape: StudentShape, **training: Any) -> Recipe:
    """The recipe that makes a student and trains it, judged at the end. training: fields of ``finetune``."""
    made: list[tuple[str, dict[str, Any]]] = []
    if shape.depth < 1:
        made.append(("prune-blocks", {"ratio": 1 - shape.depth}))
    if shape.width < 1:
        made += [(name, {"ratio": 1 - shape.width}) for name in ("prune-heads", "prune-channels")]
    if shape.separable:
        made.append(("factorize-conv", {"decomposition": "depthwise", "ratio": 1.0}))
    made.append(("finetune", training))
    steps = [Apply(get_pass(name)()) for name in PREPARED]
    whole = Sequential(tuple(Apply(get_pass(name)(**fields)) for name, fields in made), "end")
    return Recipe("distill", (*steps, whole), "A student of the model, trained towards it.")
