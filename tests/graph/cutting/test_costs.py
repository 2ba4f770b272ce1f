"""What units are said to cost, against what the models that lost them really take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxcomp.graph.channels.dependencies import dependencies
from onnxcomp.graph.channels.removal import remove_units
from onnxcomp.graph.cutting.costs import prices_of
from onnxcomp.graph.ir.reader import Graph, close_graph, open_graph
from onnxcomp.graph.report.macs import count_macs
from onnxcomp.model import load

MODELS = Path(__file__).parents[3] / "models"


def taken(graph: Graph) -> dict[str, float]:
    return {
        "macs": sum(each.count for each in count_macs(graph).values() if each is not None),
        "bytes": sum(constant.nbytes for scope in graph.scopes for constant in scope.constants),
    }


@pytest.mark.parametrize("name", ["lenet5", "lenet300", "resnet8"])
def test_totals_are_those_of_the_cut_model(name: str) -> None:
    """Of groups whose units go one by one: shapes and positions aside, to the byte."""
    graph = open_graph(load(MODELS / f"{name}.onnx"))
    found = dependencies(graph)
    prices = prices_of(found, found.groups)
    counts = np.array([1 + group.units.size // 3 for group in found.groups])
    predicted = {kind: prices[kind].total(counts) for kind in ("macs", "bytes")}
    gone = [group.units[:count] for group, count in zip(found.groups, counts, strict=True)]
    remove_units(found, np.concatenate(gone))
    assert taken(open_graph(close_graph(graph))) == pytest.approx(predicted, rel=1e-9)


def test_units_are_counted_over_all_groups() -> None:
    found = dependencies(open_graph(load(MODELS / "lenet5.onnx")))
    prices = prices_of(found, found.groups)["units"]
    sizes = [group.units.size for group in found.groups]
    assert prices.total(np.zeros(len(sizes))) == pytest.approx(sum(sizes))
    assert prices.total(np.array([3, 0, 10])) == pytest.approx(sum(sizes) - 13)
