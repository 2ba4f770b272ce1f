"""Fits for tables that tests make up."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import Model
from onnxcomp.pipeline.weight_search.candidates import Table
from onnxcomp.pipeline.weight_search.fits import Fit
from onnxcomp.receipt import Entry


def put_in(table: Table, choice: int, model: Model, names: Iterable[str] | None = None) -> None:
    """Let a choice give weights the values that they have in a model."""
    for each in weights(open_graph(model)):
        if names is None or each.name in set(names):
            values = np.asarray(each.values)
            entry = Entry(each.name, "made up", {})
            size = values.nbytes
            table.fits[choice, each.name] = Fit(values, None, each.shape, 0.0, 0.0, 0.0, size, entry)
