"""What is looked at beside the outputs themselves: what enters the operators that make labels, or rows of a number that
depends on the data.

    cls = ArgMax(logits)       -> "logits" is compared, the labels are counted only
    idx = NonMaxSuppression    -> its boxes and scores are compared; one row more or less is no fault
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from onnxcomp.model import Model
from onnxcomp.tensors import ALL_FLOAT_TYPES
from onnxcomp.verify.reading.entries import LabelEntry, expose, find_entries, numbers_not_labels, varies_in_length

Array = NDArray[Any]


@dataclass(frozen=True)
class Watched:
    """entries: the tensors. ragged: outputs whose length depends on the data; labels: outputs that only name or choose;
    numbers: integer outputs that were made by rounding."""

    entries: tuple[LabelEntry, ...] = ()
    ragged: frozenset[str] = frozenset()
    labels: frozenset[str] = frozenset()
    numbers: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: Model) -> Watched:
        """What to watch in a model."""
        outputs = {each.name: each.type.tensor_type.elem_type for each in model.proto.graph.output}
        discrete = {name for name, kind in outputs.items() if kind not in ALL_FLOAT_TYPES}
        ragged = frozenset(name for name in outputs if varies_in_length(model, name))
        numbers = frozenset(name for name in discrete if numbers_not_labels(model, name))
        if not discrete and not ragged:
            return cls()
        wanted = ragged | (discrete - numbers)
        entries = tuple(each for each in find_entries(model) if wanted.intersection(each.outputs or (each.output,)))
        return cls(entries, ragged, frozenset(discrete - numbers), numbers)

    def prepare(self, model: Model) -> tuple[Model, Mapping[str, str]]:
        """The model with the tensors as further outputs, and which tensor each of these shows."""
        return expose(model, self.entries) if self.entries else (model, {})

    def named(self, outputs: Mapping[str, Array], shown: Mapping[str, str]) -> dict[str, Array]:
        """Outputs of the prepared model, its further ones called by what they enter."""
        by_tensor = {each.tensor: f"{each.tensor} (into {each.operator})" for each in self.entries}
        return {by_tensor[shown[name]] if name in shown else name: each for name, each in outputs.items()}

    def stands_for(self, output: str) -> str | None:
        """Why an output is not compared itself: what is compared in its place, or None."""
        if output not in self.ragged | self.labels:
            return None
        found = [each.operator for each in self.entries if output in (each.outputs or (each.output,))]
        return f"judged by what enters {found[0]}" if found else None
